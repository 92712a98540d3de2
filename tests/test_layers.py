"""layers: equal to the kernels on every element, engine by engine."""

import pytest
import torch
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq
from torch.ao.nn.quantized import dynamic as nnqd

from qtorch_tutorial import repro
from qtorch_tutorial.affine import QParams, QTensor, choose_qparams, quantize
from qtorch_tutorial.layers import (
    ENGINES,
    DynamicIntegerLinear,
    IntegerLinear,
    IntegerLinearReLU,
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
