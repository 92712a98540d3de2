"""layers: equal to the kernels on every element, engine by engine."""

import copy

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq
from torch.ao.nn.quantized import dynamic as nnqd

from qtorch_tutorial import data, repro, train
from qtorch_tutorial.affine import QParams, QTensor, choose_qparams, quantize
from qtorch_tutorial.layers import (
    ENGINES,
    DynamicIntegerLinear,
    IntegerLinear,
    IntegerLinearReLU,
    LoRALinear,
    WeightOnlyInt8Linear,
    choose_dynamic_qparams,
)

HERE = [e for e in ENGINES if e in torch.backends.quantized.supported_engines]
ENGINE = pytest.mark.parametrize("engine", HERE)
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
AXIS = pytest.mark.parametrize("axis", [None, 0], ids=["per-tensor", "per-channel"])
RELU = pytest.mark.parametrize("relu", [False, True], ids=["linear", "linear-relu"])


def sizes(rng):
    """Batch, input features and output features, each in 1..300."""
    return torch.randint(1, 301, (3,), generator=rng).tolist()


def pack(module, weight, bias, axis):
    """Put a float weight into a torch module, quantized as its qconfig would."""
    grid = choose_qparams(weight, signed=True, symmetric=True, axis=axis)
    module.set_weight_bias(quantize(weight, grid).to_torch(), bias)
    return module


OUTPUTS = 100_000
"""Outputs to compare for each engine, with and without bias, granularity and ReLU."""


def magnitude(rng):
    """A power of ten, 1e-3 to 1e3."""
    return 10 ** (6 * float(torch.rand(1, generator=rng)) - 3)


def layer_and_input(rng, *, engine, bias, axis, relu):
    """A torch module with its grid, and its quantized input, of drawn shapes."""
    rows, features, units = sizes(rng)
    weight = torch.randn(units, features, generator=rng) * magnitude(rng)
    weight[0] = 0  # a channel without a range
    x = (torch.randn(rows, features, generator=rng) * 3 + 1) * magnitude(rng)
    y = x @ weight.T
    b = torch.randn(units, generator=rng) * y.std(correction=0) * 3 if bias else None
    y = y if b is None else y + b
    # Half of the output grids are too narrow, so that the clamp works, and start below
    # zero even under ReLU, so that the clamp's end is seen.
    grid = choose_qparams(y * float(torch.rand(1, generator=rng) + 0.5))
    module = (nniq.LinearReLU if relu else nnq.Linear)(features, units)
    pack(module, weight, b, axis)
    module.scale, module.zero_point = grid.scale.item(), int(grid.zero_point)
    return module, quantize(x, choose_qparams(x, reduce_range=engine != "qnnpack"))


@ENGINE
@BIAS
@AXIS
@RELU
def test_every_output_equals_the_kernels(engine, bias, axis, relu):
    rng = repro.generator(1000 * HERE.index(engine) + 10 * bias + 20 * relu)
    ours_of = (IntegerLinearReLU if relu else IntegerLinear).from_torch
    compared = different = inside = 0
    with repro.engine(engine):
        while compared < OUTPUTS:
            module, x = layer_and_input(
                rng, engine=engine, bias=bias, axis=axis, relu=relu
            )
            theirs = module(x.to_torch()).int_repr()
            different += int(ours_of(module)(x).q.ne(theirs).sum())
            compared += theirs.numel()
            inside += int(((theirs > 0) & (theirs < 255)).sum())
    assert different == 0
    # Most outputs are no ends of the grid, where any wrong rounding would be hidden.
    assert inside > 0.3 * compared


def test_the_outputs_compared_are_more_than_a_million():
    combinations = 2 * 2 * 2 * len(HERE)
    assert combinations * OUTPUTS >= 1_000_000 or len(HERE) < 2


def orders_of_rounding(acc, bias, step):
    """Accumulator and bias in three orders that look alike on paper."""
    divided = acc.float() + bias / step
    multiplied = acc.float() + bias * (1.0 / step)
    at_once = (acc.double() + bias.double() * (1.0 / step).double()).float()
    return {"divided": divided, "multiplied": multiplied, "at once": at_once}


@pytest.mark.skipif("fbgemm" not in HERE, reason="this build has no FBGEMM")
@pytest.mark.parametrize(("axis", "kernel"), [(None, "at once"), (0, "divided")])
def test_fbgemm_rounds_the_bias_in_this_order_and_no_other(axis, kernel):
    # The last digit of a large accumulator decides: about 1 output in 500,000 differs.
    rng = repro.generator(0)
    weight = torch.rand(1000, 300, generator=rng)
    x = torch.rand(4000, 300, generator=rng)
    bias = torch.rand(1000, generator=rng) * 150
    with repro.engine("fbgemm"):
        module = pack(nnq.Linear(300, 1000), weight, bias, axis)
        grid = choose_qparams(x @ weight.T + bias)
        module.scale, module.zero_point = grid.scale.item(), int(grid.zero_point)
        x_q = quantize(x, choose_qparams(x, reduce_range=True))
        theirs = module(x_q.to_torch()).int_repr()
        layer = IntegerLinear.from_torch(module)
    assert torch.equal(layer(x_q).q, theirs)
    step = x_q.qparams.scale * layer.weight.qparams.scale
    totals = orders_of_rounding(layer.accumulate(x_q), bias, step)
    for order, total in totals.items():
        q = torch.round(total * (step / grid.scale)) + grid.zero_point
        different = int(q.clamp(0, 255).ne(theirs).sum())
        assert different == 0 if order == kernel else 0 < different < 100


def test_a_sum_of_many_products_is_exact(rng):
    # 3,000 products reach 2**26, where float32 holds every fourth integer only.
    weight = torch.randint(100, 128, (4, 3000), generator=rng)
    x = torch.randint(200, 256, (5, 3000), generator=rng)
    zero = torch.tensor(0, dtype=torch.int32)
    layer = IntegerLinear(
        QTensor(weight.to(torch.int8), QParams(torch.tensor(0.1), zero, -128, 127)),
        None,
        "x86",
        QParams(torch.tensor(1.0), zero, 0, 255),
    )
    x_q = QTensor(x.to(torch.uint8), QParams(torch.tensor(0.1), zero, 0, 255))
    assert layer.accumulate(x_q).max() > 2**25
    assert torch.equal(layer.accumulate(x_q), (x @ weight.T).int())  # int64


@pytest.mark.skipif("qnnpack" not in HERE, reason="this build has no QNNPACK")
def test_qnnpack_saturates_a_bias_that_exceeds_int32(rng):
    weight = torch.randn(4, 9, generator=rng)
    weight[0] = 0  # its scale is the smallest one: a bias of 5.0 is too many steps
    bias = torch.tensor([5.0, 5.0, -5.0, 0.0])
    with repro.engine("qnnpack"):
        module = pack(nnq.Linear(9, 4), weight, bias, 0)
        module.scale, module.zero_point = 1e-6, 100
        x = quantize(torch.rand(7, 9, generator=rng) * 0.01, choose_qparams(weight))
        ours = IntegerLinear.from_torch(module)
        step = x.qparams.scale * ours.weight.qparams.scale
        assert (bias / step)[0] > 2**31
        assert torch.equal(ours(x).q, module(x.to_torch()).int_repr())


@pytest.mark.skipif("fbgemm" not in HERE, reason="this build has no FBGEMM")
@RELU
def test_an_affine_weight_with_a_zero_point_is_exact_too(relu, rng):
    with repro.engine("fbgemm"):
        weight = torch.rand(33, 65, generator=rng) + 0.5
        module = (nniq.LinearReLU if relu else nnq.Linear)(65, 33)
        grid = choose_qparams(weight, signed=True, axis=0)
        assert grid.zero_point.ne(0).all()
        module.set_weight_bias(quantize(weight, grid).to_torch(), None)
        x = torch.randn(40, 65, generator=rng)
        y = choose_qparams(x @ weight.T)
        module.scale, module.zero_point = y.scale.item(), int(y.zero_point)
        x_q = quantize(x, choose_qparams(x, reduce_range=True))
        ours = (IntegerLinearReLU if relu else IntegerLinear).from_torch(module)(x_q)
        assert torch.equal(ours.q, module(x_q.to_torch()).int_repr())


def test_relu_never_stores_an_integer_below_the_zero_point(rng):
    weight = torch.randn(20, 30, generator=rng)
    module = pack(nniq.LinearReLU(30, 20), weight, None, 0)
    module.scale, module.zero_point = 0.1, 60
    x = torch.randn(50, 30, generator=rng)
    y = IntegerLinearReLU.from_torch(module)(quantize(x, choose_qparams(x)))
    assert y.q.min() == 60
    assert y.dequantize().min() == 0


class RoundsLast(DynamicIntegerLinear):
    """The dynamic layer of FBGEMM in torch 2.11: ``round(x * (1 / s) + z)``, fused."""

    def quantize_input(self, x):
        grid = choose_dynamic_qparams(x, reduce_range=True)
        inverse = (1.0 / grid.scale).double()
        q = torch.round((x.double() * inverse + grid.zero_point).float())
        return QTensor(q.clamp(0, 255).to(torch.uint8), grid)


def dynamic_reference(engine):
    """The class whose rounding this torch has; torch 2.11 adds before it rounds.

    On a grid of step 1 and zero point 1, 0.5 is a tie, and the two part.
    """
    last = 255 if engine == "qnnpack" else 127
    weight, x = torch.tensor([[1.0]]), torch.tensor([[-1.0], [0.5], [last - 1.0]])
    tie = pack(nnqd.Linear(1, 1, bias_=False), weight, None, None)(x)[1].item()
    return DynamicIntegerLinear if abs(tie) < 0.1 else RoundsLast


@ENGINE
@BIAS
@AXIS
def test_the_dynamic_layer_agrees_to_the_last_float_digits(engine, bias, axis):
    rng = repro.generator(3)
    worst = 0.0
    with repro.engine(engine):
        reference = dynamic_reference(engine)
        for _ in range(40):
            rows, features, units = sizes(rng)
            weight = torch.randn(units, features, generator=rng)
            b = torch.randn(units, generator=rng) if bias else None
            module = pack(nnqd.Linear(features, units), weight, b, axis)
            x = torch.randn(rows, features, generator=rng) * 3 + 1
            theirs = module(x)
            error = (reference.from_torch(module)(x) - theirs).abs().max()
            worst = max(worst, (error / theirs.abs().max()).item())
    # Found: below 3e-7 of the largest output, two or three units in the last place.
    assert worst < 5e-7


@ENGINE
@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e-7, 1e-4, 1e-2, 1.0, 1e6, 1e20])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0], ids=["below", "around", "above"])
def test_the_dynamic_grid_is_the_kernels_at_every_magnitude(
    engine, magnitude, shift, rng
):
    # An identity weight lets the quantized input through: a wrong grid would show.
    x = (torch.randn(8, 16, generator=rng) + shift) * magnitude
    with repro.engine(engine):
        module = pack(nnqd.Linear(16, 16, bias_=False), torch.eye(16), None, None)
        ours, theirs = DynamicIntegerLinear.from_torch(module)(x), module(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_the_dynamic_grid_of_zeros_is_torchs(rng):
    module = pack(nnqd.Linear(4, 3), torch.randn(3, 4, generator=rng), torch.ones(3), 0)
    x = torch.zeros(2, 4)
    assert torch.equal(DynamicIntegerLinear.from_torch(module)(x), module(x))


@pytest.mark.parametrize("bad", [[float("nan")], [float("inf")], []])
def test_a_dynamic_input_without_a_range_is_refused(bad):
    with pytest.raises(ValueError, match="it has no range"):
        choose_dynamic_qparams(torch.tensor([bad]), reduce_range=True)


@pytest.mark.parametrize("shape", [(30,), (2, 29), (2, 3, 30)])
def test_an_input_of_the_wrong_shape_is_refused(shape, rng):
    module = pack(nnq.Linear(30, 20), torch.randn(20, 30, generator=rng), None, 0)
    x = torch.rand(shape, generator=rng)
    with pytest.raises(ValueError, match=r"shape \(batch, 30\), got"):
        IntegerLinear.from_torch(module)(quantize(x, choose_qparams(x)))


@pytest.mark.parametrize(
    ("ours", "module"),
    [
        (IntegerLinear, torch.nn.Linear),
        (IntegerLinear, nniq.LinearReLU),
        (IntegerLinear, nnqd.Linear),
        (IntegerLinearReLU, nnq.Linear),
        (DynamicIntegerLinear, nnq.Linear),
    ],
    ids=["float", "relu", "dynamic", "no-relu", "static"],
)
def test_another_module_is_refused(ours, module):
    with pytest.raises(TypeError, match="expected a converted"):
        ours.from_torch(module(2, 2))


def test_an_engine_whose_arithmetic_is_unknown_is_refused():
    with pytest.raises(ValueError, match="'onednn' is not reproduced"):
        IntegerLinear.from_torch(nnq.Linear(2, 2), engine="onednn")


def test_the_engine_decides_what_becomes_of_the_bias(rng):
    weight = torch.randn(300, 100, generator=rng) * 0.01
    bias = torch.randn(300, generator=rng) * 0.01
    module = pack(nnq.Linear(100, 300), weight, bias, 0)
    x = torch.randn(300, 100, generator=rng)
    grid = choose_qparams(x @ weight.T + bias)
    module.scale, module.zero_point = grid.scale.item(), int(grid.zero_point)
    x_q = quantize(x, choose_qparams(x, reduce_range=True))
    as_float = IntegerLinear.from_torch(module, engine="x86")(x_q).q.int()
    as_integer = IntegerLinear.from_torch(module, engine="qnnpack")(x_q).q.int()
    off = (as_float - as_integer).abs()
    assert 0 < off.ne(0).sum() < off.numel() / 100
    assert off.max() == 1


def test_a_reference_without_its_bias_would_be_caught(rng):
    weight, bias = torch.randn(8, 9, generator=rng), torch.ones(8) * 5
    module = pack(nnq.Linear(9, 8), weight, bias, 0)
    module.scale, module.zero_point = 0.2, 100
    x = torch.randn(5, 9, generator=rng)
    x_q = quantize(x, choose_qparams(x))
    layer = IntegerLinear.from_torch(module)
    bare = IntegerLinear(layer.weight, None, layer.engine, layer.output)
    assert not torch.equal(bare(x_q).q, layer(x_q).q)
    assert isinstance(layer(x_q), QTensor)


# --- layers to train next to integers --------------------------------------------


def float_layer(rng, features=7, units=5, bias=True):
    layer = nn.Linear(features, units, bias=bias)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    return layer


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors)


@BIAS
def test_a_weight_only_layer_is_a_linear_with_a_rounded_weight(bias, rng):
    linear = float_layer(rng, bias=bias)
    linear.weight.data[2] = 0  # a row without a range
    layer = WeightOnlyInt8Linear.from_float(linear)
    error = (layer.q * layer.scale[:, None] - linear.weight).abs()
    assert layer.q.dtype == torch.int8
    # Half a step; a whole one would need rounding down. The largest positive value of a
    # row lies at 127.5 steps.
    assert (error <= 0.5001 * layer.scale[:, None]).all()
    assert (layer.scale * 127.5 - linear.weight.abs().amax(1)).abs().max() < 2e-5
    x = torch.randn(3, 4, 7, generator=rng)
    reference = nn.functional.linear(
        x.double(), (layer.q.double() * layer.scale.double()[:, None]), linear.bias
        if linear.bias is None else linear.bias.double()
    )  # fmt: skip
    torch.testing.assert_close(layer(x), reference.float())
    assert (layer.bias is None) == (not bias)
    assert repr(layer).endswith(f"in_features=7, out_features=5, bias={bias})")


def test_a_weight_only_layer_is_torchs_own_quantized_weight(rng):
    linear = float_layer(rng)
    linear.qconfig = tq.per_channel_dynamic_qconfig
    weight = nnqd.Linear.from_float(linear).weight()
    layer = WeightOnlyInt8Linear.from_float(linear)
    assert torch.equal(layer.q, weight.int_repr())
    torch.testing.assert_close(
        layer.scale.double(), weight.q_per_channel_scales(), rtol=1e-6, atol=0
    )


@BIAS
def test_the_gradients_of_a_weight_only_layer_are_those_of_its_float_twin(bias, rng):
    layer = WeightOnlyInt8Linear.from_float(float_layer(rng, bias=bias)).double()
    layer.scale.requires_grad_()
    x = torch.randn(6, 7, dtype=torch.float64, generator=rng, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    weight = (layer.q * layer.scale[:, None]).detach().requires_grad_()
    twin = nn.functional.linear(x, weight, layer.bias).square().sum()
    of_x, of_weight = gradients(twin, [x, weight])
    theirs, of_scale = gradients(layer(x).square().sum(), [x, layer.scale])
    torch.testing.assert_close(theirs, of_x)
    # The chain rule: a weight is its integer times the scale of its row.
    torch.testing.assert_close(of_scale, (of_weight * layer.q).sum(1))


def test_a_weight_only_layer_shares_nothing_with_the_layer_it_came_from(rng):
    linear = float_layer(rng)
    layer = WeightOnlyInt8Linear.from_float(linear)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before.items())


def test_a_weight_only_layer_is_frozen_until_its_scale_is_thawed(rng):
    x = torch.randn(40, 7, generator=rng)
    split = data.Split(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long())
    model = nn.Sequential(WeightOnlyInt8Linear.from_float(float_layer(rng)))
    with pytest.raises(ValueError, match="no trainable parameter"):
        train.fit(model, split, epochs=1, lr=0.1, rng=rng)
    before = copy.deepcopy(model.state_dict())
    model[0].scale.requires_grad_()
    losses = train.fit(model, split, epochs=20, lr=0.02, rng=rng, progress=False)
    assert losses[-1] < losses[0]
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"0.scale"}
    assert model[0].q.dtype == torch.int8


def test_a_weight_only_layer_is_made_of_a_linear_alone(rng):
    with pytest.raises(TypeError, match=r"expected an nn\.Linear, got ReLU"):
        WeightOnlyInt8Linear.from_float(nn.ReLU())
    linear = float_layer(rng)
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        WeightOnlyInt8Linear.from_float(linear)


@pytest.fixture(params=["float", "weight-only"])
def base(request, rng):
    linear = float_layer(rng)
    if request.param == "float":
        return linear
    return WeightOnlyInt8Linear.from_float(linear)


def test_an_adapter_starts_as_its_base_and_freezes_it(base, rng):
    layer = LoRALinear(base, rank=2, rng=rng)
    x = torch.randn(3, 4, 7, generator=rng)
    assert torch.equal(layer(x), base(x))
    assert layer.down.abs().sum() > 0
    thawed = [n for n, p in layer.named_parameters() if p.requires_grad]
    assert thawed == ["down", "up"]


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1.0), (6.0, 3.0)])
def test_an_adapter_is_its_float_twin_with_the_product_merged(alpha, factor, base, rng):
    layer = LoRALinear(base, rank=2, alpha=alpha, rng=rng)
    layer.up.data = torch.randn(5, 2, generator=rng)
    layer = layer.double()
    eye = torch.eye(7, dtype=torch.float64)
    weight = (base(eye) - base(0 * eye)).T.detach()
    bias = base(0 * eye)[0].detach()
    x = torch.randn(6, 7, dtype=torch.float64, generator=rng, requires_grad=True)
    down, up = (p.detach().clone().requires_grad_() for p in (layer.down, layer.up))
    twin = nn.functional.linear(x, weight + factor * up @ down, bias)
    torch.testing.assert_close(layer(x), twin)
    torch.testing.assert_close(
        gradients(layer(x).square().sum(), [x, layer.down, layer.up]),
        gradients(twin.square().sum(), [x, down, up]),
    )
    assert torch.autograd.gradcheck(layer, x)


def test_only_the_adapter_moves_when_it_is_trained(base, rng):
    x = torch.randn(40, 7, generator=rng)
    split = data.Split(x, (x[:, 1] > 0).long(), x, (x[:, 1] > 0).long())
    model = nn.Sequential(LoRALinear(base, rank=1, rng=rng))
    before = copy.deepcopy(model.state_dict())
    train.fit(model, split, epochs=2, lr=0.01, rng=rng, progress=False)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"0.down", "0.up"}


def test_an_adapter_stands_on_a_dynamic_layer_too(rng):
    model = tq.quantize_dynamic(nn.Sequential(nn.Linear(7, 5)), {nn.Linear})
    layer = LoRALinear(model[0], rank=1, rng=rng)
    x = torch.randn(3, 7, generator=rng)
    assert torch.equal(layer(x), model[0](x))
    split = data.Split(x, torch.tensor([0, 1, 2]), x, torch.tensor([0, 1, 2]))
    before = layer.up.clone()
    train.fit(layer, split, epochs=1, lr=0.1, rng=rng, progress=False)
    assert not torch.equal(layer.up, before)
    assert layer.up.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_both_take_the_dtype_of_the_layer_they_are_made_of(dtype, rng):
    linear = float_layer(rng).to(dtype)
    x = torch.randn(3, 7, generator=rng).to(dtype)
    for base in (linear, WeightOnlyInt8Linear.from_float(linear)):
        layer = LoRALinear(base, rank=2, rng=rng)
        assert layer(x).dtype == base(x).dtype == dtype
        assert layer.down.dtype == layer.up.dtype == dtype


def test_an_adapter_is_drawn_as_it_says_and_bounded_by_the_smaller_side(rng):
    layer = LoRALinear(nn.Linear(100, 400), rank=100, rng=rng)
    assert 0.09 < layer.down.abs().max() <= 0.1
    assert layer.down.mean().abs() < 0.01
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.100"):
        LoRALinear(nn.Linear(100, 400), rank=101, rng=rng)


@pytest.mark.parametrize("rank", [0, -1, 6, 2.0, True, None])
def test_a_rank_that_no_weight_has_is_refused(rank, base, rng):
    with pytest.raises(ValueError, match=rf"rank must be in 1\.\.5, got {rank}"):
        LoRALinear(base, rank=rank, rng=rng)


def test_a_base_without_features_is_refused(rng):
    with pytest.raises(TypeError, match="ReLU does not have in_features"):
        LoRALinear(nn.ReLU(), rank=1, rng=rng)


def test_a_layer_whose_output_a_hook_changes_is_not_taken(rng):
    grid = choose_qparams(torch.tensor([0.0, 1.0]))
    module = pack(nnq.Linear(3, 2), torch.randn(2, 3, generator=rng), None, 0)
    module.scale, module.zero_point = grid.scale.item(), int(grid.zero_point)
    IntegerLinear.from_torch(module)
    module.register_forward_hook(lambda _, __, output: output)
    with pytest.raises(ValueError, match="has a forward hook"):
        IntegerLinear.from_torch(module)
