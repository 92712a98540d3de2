"""convert: four laws over every form, with and without bias, in every nesting."""

import copy
import math

import pytest
import torch
import zoo
from torch import nn
from torch.ao import quantization as tq
from torch.ao.nn import intrinsic as nni
from torch.ao.nn import qat as nnqat
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import qat as nniqat
from torch.ao.nn.intrinsic import quantized as nniq
from torch.ao.nn.quantized import dynamic as nnqd

from qtorch_tutorial import convert, measure, repro
from qtorch_tutorial.convert import (
    DYNAMIC,
    FLOAT,
    FORMS,
    FUSED,
    LAMPS,
    QAT,
    QAT_FUSED,
    STATIC,
)

FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
LAMP = pytest.mark.parametrize("form", LAMPS, ids=lambda form: form.name)
QUANTIZED = pytest.mark.parametrize("form", LAMPS[1:], ids=lambda form: form.name)
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
MIN_MAX = tq.QConfig(
    activation=tq.MinMaxObserver.with_args(dtype=torch.quint8),
    weight=tq.default_weight_observer,
)
NESTING = pytest.mark.parametrize("nesting", zoo.MODELS)

# Root mean square of one rounding error over that of the values, for normal values:
# they span about 7 standard deviations, cut into the 127 steps of a reduced range; the
# weights of a row span about 4, cut into 255 steps.
ACTIVATION = 7 / 127 / math.sqrt(12)
WEIGHT = 4 / 255 / math.sqrt(12)

# Linear layers that a value passes on its way, and grids that it is rounded to if they
# are static: a run needs one for its input and one for each layer's output.
DEEP = {"sequential": 3, "attribute": 2, "module-list": 2, "two-heads": 2, "twice": 3,
        "nested": 2, "bare": 1}  # fmt: skip
GRIDS = {"sequential": 4, "attribute": 4, "module-list": 4, "two-heads": 4, "twice": 6,
         "nested": 4, "bare": 2}  # fmt: skip


@pytest.fixture
def x():
    # Not the seed of the zoo: its layers' own rows among the inputs are outliers.
    rng = repro.generator(1)
    return torch.randn(256, 12, dtype=torch.float64, generator=rng).float()


def linear_modules(model):
    """Every distinct linear module of a model, float or quantized."""
    kinds = (nn.Linear, nnq.Linear)
    return [m for m in model.modules() if isinstance(m, kinds)]


@FORM
@BIAS
@NESTING
def test_the_input_model_is_unchanged(form, bias, nesting, x):
    model = zoo.make(nesting, bias=bias).train()
    before, text = copy.deepcopy(model.state_dict()), str(model)
    form.make(model, x)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert str(model) == text
    assert all(module.training for module in model.modules())
    assert not any(hasattr(module, "qconfig") for module in model.modules())


@QUANTIZED
@NESTING
def test_the_bias_survives(form, nesting, x):
    model = zoo.make(nesting, bias=True)
    biases = [m.bias() for m in linear_modules(form.make(model, x))]
    folded = form is FUSED and nesting == "two-heads"  # BatchNorm changes that bias
    for module, bias in list(zip(linear_modules(model), biases, strict=True))[folded:]:
        assert torch.equal(bias, module.bias)


@QUANTIZED
@NESTING
def test_no_bias_stays_no_bias(form, nesting, x):
    made = linear_modules(form.make(zoo.make(nesting, bias=False), x))
    if form is FUSED and nesting == "two-heads":
        made = made[1:]  # BatchNorm gives the first layer one
    assert all(m.bias() is None for m in made)


@FORM
@BIAS
@NESTING
def test_the_output_stays_near_the_float_output(form, bias, nesting, x):
    model = zoo.make(nesting, bias=bias)
    made = form.make(model, x)
    with torch.no_grad():
        error = measure.relative_error(model.eval()(x), made(x))
    # Rounding errors are independent, so their powers add up along the way through the
    # model. 30 seeds stayed between 0.15 and 1.8 times the sum with a bias (it adds
    # signal and no error), and between 0.4 and 1.8 times without.
    layers = DEEP[nesting]
    roundings = {FLOAT: 0, DYNAMIC: layers}.get(form, GRIDS[nesting])
    weights = 0 if form is FLOAT else layers
    expected = math.sqrt(roundings * ACTIVATION**2 + weights * WEIGHT**2)
    assert (0.1 if bias else 0.3) * expected <= error <= 2 * expected


@LAMP
@BIAS
@NESTING
def test_size_bytes_equals_a_count_by_hand(form, bias, nesting, x):
    model = zoo.make(nesting, bias=bias)
    made = form.make(model, x)
    expected = 0
    for module in linear_modules(model):
        rows, columns = module.weight.shape
        weight = rows * columns * (4 if form is FLOAT else 1)
        has_bias = bias or (form is FUSED and nesting == "two-heads" and rows == 16)
        grids = {FLOAT: 0, DYNAMIC: 8, STATIC: 8 * rows, FUSED: 8 * rows}[form]
        output = 0 if form is FLOAT else 8
        expected += weight + 4 * rows * has_bias + grids + output
    if nesting == "two-heads" and form is not FUSED:
        expected += 4 * 16 * 4 + 8  # BatchNorm: 4 vectors and a counter
    stubs = sum(isinstance(m, nnq.Quantize) for m in made.modules())
    expected += stubs * (4 + 8)  # a float32 scale and an int64 zero point each
    assert measure.size_bytes(made) == expected


@LAMP
@NESTING
def test_every_linear_layer_becomes_the_forms_module(form, nesting, x):
    made = form.make(zoo.make(nesting), x)
    kinds = {type(m) for m in linear_modules(made)}
    expected = {
        FLOAT: {nn.Linear},
        DYNAMIC: {nnqd.Linear},
        STATIC: {nnq.Linear},
        FUSED: {nnq.Linear, nniq.LinearReLU},
    }[form]
    assert kinds <= expected
    assert len(linear_modules(made)) == len(linear_modules(zoo.make(nesting)))


@NESTING
def test_fused_finds_the_neighbors_that_stand_in_a_sequential(nesting, x):
    made = convert.to_fused(zoo.make(nesting), calibration=x)
    found = sum(type(m) is nniq.LinearReLU for m in made.modules())
    assert found == {"sequential": 2, "two-heads": 1, "nested": 1}.get(nesting, 0)


def test_a_run_stays_in_integers_from_end_to_end(x):
    made = convert.to_static(zoo.make("sequential"), calibration=x)
    assert [type(m) for m in made] == [
        nnq.Quantize, nnq.Linear, nn.ReLU, nnq.Linear, nn.ReLU, nnq.Linear,
        nnq.DeQuantize,
    ]  # fmt: skip
    assert list(dict(made.named_children())) == [
        "0_quant", "0", "1", "2", "3", "4", "4_dequant"
    ]  # fmt: skip


@pytest.mark.parametrize("make", [convert.to_static, convert.to_fused])
def test_the_result_is_that_of_torchs_own_steps(make, x):
    model = zoo.make("sequential").eval()
    by_hand = nn.Sequential(tq.QuantStub(), *copy.deepcopy(model), tq.DeQuantStub())
    by_hand.eval()
    if make is convert.to_fused:
        tq.fuse_modules(by_hand, [["1", "2"], ["3", "4"]], inplace=True)
    by_hand.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    tq.prepare(by_hand, inplace=True)
    by_hand(x)
    tq.convert(by_hand, inplace=True)
    assert torch.equal(make(model, calibration=x)(x), by_hand(x))


def test_dynamic_is_torchs_own_and_takes_its_qconfig(x):
    model = zoo.make("sequential").eval()
    theirs = tq.quantize_dynamic(model, {nn.Linear})
    assert torch.equal(convert.to_dynamic(model)(x), theirs(x))
    per_channel = convert.to_dynamic(model, qconfig=tq.per_channel_dynamic_qconfig)
    assert per_channel[0].weight().qscheme() == torch.per_channel_affine


def test_static_takes_a_qconfig(x):
    made = convert.to_static(zoo.make("bare"), calibration=x, qconfig=MIN_MAX)
    assert made[1].weight().qscheme() == torch.per_tensor_affine
    span = x.max() - x.min()
    assert made[0].scale.item() == pytest.approx(span.item() / 255, rel=1e-5)


def test_a_model_fused_by_hand_keeps_its_fused_layers(x):
    model = zoo.make("attribute").eval()
    model.first = nni.LinearReLU(model.first, nn.ReLU())
    made = convert.to_static(model, calibration=x)
    assert type(made.first[1]) is nniq.LinearReLU
    assert measure.relative_error(model(x), made(x)) < 0.05
    dynamic = convert.to_dynamic(model)
    assert "LinearReLU" in type(dynamic.first).__name__


def test_the_engine_in_use_packs_the_weight(x):
    with repro.engine("qnnpack"):
        made = convert.to_static(zoo.make("bare"), calibration=x)
    assert made[1].weight().qscheme() == torch.per_tensor_affine


def test_batches_calibrate_as_their_whole_does_for_min_and_max(x):
    whole = convert.to_static(zoo.make("bare"), calibration=x, qconfig=MIN_MAX)
    batches = x.split(50)
    parts = convert.to_static(zoo.make("bare"), calibration=batches, qconfig=MIN_MAX)
    assert torch.equal(whole(x), parts(x))


@QUANTIZED
def test_the_result_is_in_eval_mode_and_has_nothing_to_train(form, x):
    made = form.make(zoo.make("sequential").train(), x)
    assert not any(m.training for m in made.modules())
    assert list(made.parameters()) == []
    assert form.trainable is False


def test_only_the_forms_that_say_so_look_at_calibration():
    for form in FORMS:
        if form.needs_calibration:
            with pytest.raises(ValueError, match="missing"):
                form.make(zoo.make("bare"), None)
        else:
            form.make(zoo.make("bare"), None)


def test_a_subclass_of_linear_is_left_alone(x):
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(12, 12), Own(12, 5))
    assert type(convert.to_static(model, calibration=x)[-1]) is Own


# --- what is refused -----------------------------------------------------------


@FORM
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: nn.ReLU(), ValueError, "has no nn.Linear layer"),
        (lambda x: "model", TypeError, "expected an nn.Module, got str"),
        (
            lambda x: convert.to_dynamic(zoo.make("bare")),
            ValueError,
            "already quantized or prepared: it is",
        ),
        (
            lambda x: convert.to_static(zoo.make("sequential"), calibration=x),
            ValueError,
            "already quantized or prepared: '0_quant' is",
        ),
        (lambda x: zoo.make("bare").to("meta"), ValueError, "on device meta.*CPU only"),
        (lambda x: spoiled(float("nan")), ValueError, "'weight' holds a NaN"),
        (lambda x: spoiled(float("inf")), ValueError, "'weight' holds a NaN"),
        (lambda x: zoo.make("bare").double(), ValueError, "call model.float"),
    ],
    ids=[
        "no-linear",
        "no-module",
        "dynamic",
        "static",
        "device",
        "nan",
        "inf",
        "double",
    ],
)
def test_a_model_that_cannot_be_converted_is_refused(form, model, error, message, x):
    with pytest.raises(error, match=message):
        form.make(model(x), x)


def spoiled(value):
    model = zoo.make("bare")
    model.weight.data[0, 0] = value
    return model


def test_a_prepared_model_is_refused(x):
    model = nn.Sequential(nn.Linear(12, 5)).eval()
    model.qconfig = tq.get_default_qconfig("x86")
    with pytest.raises(ValueError, match="already quantized or prepared"):
        convert.to_static(tq.prepare(model), calibration=x)


@pytest.mark.parametrize("make", [convert.to_static, convert.to_fused])
@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        (None, ValueError, "missing"),
        ([], ValueError, "empty"),
        (torch.empty(0, 12), ValueError, "empty"),
        ([torch.rand(3, 12), torch.empty(0, 12)], ValueError, "empty"),
        (torch.rand(12), ValueError, r"shape \(rows, features\), got \(12,\)"),
        (torch.rand(4, 11), ValueError, r"of shape \(4, 11\) do not fit the model"),
        (torch.full((4, 12), float("nan")), ValueError, "hold a NaN"),
        (torch.full((4, 12), float("inf")), ValueError, "hold a NaN or an infinity"),
        ([[1.0] * 12], TypeError, "calibration needs tensors, got list"),
        (torch.rand(4, 12, device="meta"), ValueError, "on meta"),
    ],
    ids=["none", "no-batch", "no-row", "one-empty", "1-d", "features", "nan", "inf",
         "list", "device"],
)  # fmt: skip
def test_bad_calibration_is_refused(make, calibration, error, message):
    model = zoo.make("sequential")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        make(model, calibration=calibration)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("make", [convert.to_static, convert.to_fused])
def test_an_engine_that_this_build_lacks_is_refused(make, x, monkeypatch):
    kind = type(torch.backends.quantized)
    monkeypatch.setattr(kind, "supported_engines", ["none", "other"])
    with pytest.raises(ValueError, match="not supported here; supported are other"):
        make(zoo.make("bare"), calibration=x)


# --- layers that stay float ------------------------------------------------------


MAKERS = {
    "dynamic": lambda model, x, names: convert.to_dynamic(model, keep_float=names),
    "static": lambda model, x, names: convert.to_static(
        model, calibration=x, keep_float=names
    ),
    "fused": lambda model, x, names: convert.to_fused(
        model, calibration=x, keep_float=names
    ),
}
MAKER = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@MAKER
@NESTING
def test_a_kept_layer_stays_float_and_all_others_do_not(make, nesting, x):
    model = zoo.make(nesting, bias=True)
    names = convert.linear_layers(model)
    for name in names if len(names) > 1 else ():
        made = make(model, x, [name])
        kept = made.get_submodule(name)
        assert type(kept) is nn.Linear
        assert torch.equal(kept.weight, model.get_submodule(name).weight)
        floats = [m for m in made.modules() if type(m) is nn.Linear]
        assert len(floats) == 1
        assert not kept._forward_hooks  # no observer is left on it
        y, expected = made(x), model.eval()(x)
        assert y.dtype == torch.float32
        assert measure.sqnr_db(expected, y) > 15


@MAKER
def test_a_model_with_less_in_integers_is_closer_to_float_and_larger(make, x):
    model = zoo.make("sequential", bias=True)
    expected = model.eval()(x)
    made = [make(model, x, names) for names in ((), ("4",), ("4", "2"))]
    sizes = [measure.size_bytes(m) for m in made]
    errors = [measure.relative_error(expected, m(x)) for m in made]
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)


@MAKER
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["5"], "the model has no Linear layer '5'; it has '0', '2', '4'"),
        (["1"], "the model has no Linear layer '1'"),
        (["0", "2", "4"], "keep_float names every Linear layer: nothing to quantize"),
    ],
)
def test_names_that_are_no_layers_or_all_layers_are_refused(make, names, message, x):
    with pytest.raises(ValueError, match=message):
        make(zoo.make("sequential", bias=True), x, names)


# --- fine-tuning: to_qat and from_qat --------------------------------------------

FUSE = pytest.mark.parametrize("fuse", [False, True], ids=["qat", "qat-fused"])
BITS = pytest.mark.parametrize("bits", range(2, 9))


def calibrated(model, x):
    """The model, its observers at rest after one look at the data."""
    model.eval()(x)
    return model.apply(tq.disable_observer)


def turn_rows(model):
    """Make the largest weight of each row positive: there the clamp decides a tie."""
    with torch.no_grad():
        for layer in linear_modules(model):
            largest = layer.weight.abs().argmax(1, keepdim=True)
            layer.weight *= layer.weight.gather(1, largest).sign()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.weight.abs_()  # it is folded into the row, with its sign
    return model


def tuned(nesting, x, *, qconfig=None, fuse=False, turn=turn_rows):
    """A fake-quantized model after a few steps that only make its weights its own."""
    model = convert.to_qat(turn(zoo.make(nesting)), qconfig=qconfig, fuse=fuse)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # for a dropout
        for batch in x.split(64):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return calibrated(model, x)  # so that the observers see the last weights


@FUSE
@NESTING
def test_every_linear_layer_becomes_one_to_train(fuse, nesting):
    model = convert.to_qat(zoo.make(nesting).eval(), fuse=fuse)
    kinds = {type(m) for m in linear_modules(model)}
    fused = {nniqat.LinearReLU, nniqat.LinearBn1d} if fuse else set()
    assert kinds <= {nnqat.Linear, *fused}
    assert len(linear_modules(model)) == len(linear_modules(zoo.make(nesting)))
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_fused_joins_the_relu_or_the_batch_norm():
    kinds = [type(m) for m in convert.to_qat(zoo.make("sequential"), fuse=True)]
    assert kinds == [
        tq.QuantStub, nniqat.LinearReLU, nn.Identity, nniqat.LinearReLU, nn.Identity,
        nnqat.Linear, tq.DeQuantStub,
    ]  # fmt: skip
    body = convert.to_qat(zoo.make("two-heads"), fuse=True).body
    assert [type(m) for m in body][1:4] == [nniqat.LinearBn1d, nn.Identity, nn.ReLU]


@FUSE
@NESTING
def test_conversion_gives_the_names_and_modules_of_the_static_forms(fuse, nesting, x):
    if fuse and nesting == "two-heads":
        pytest.skip("to_fused joins Linear, BatchNorm1d and ReLU; torch's QAT cannot")
    made = convert.from_qat(tuned(nesting, x, fuse=fuse))
    form = FUSED if fuse else STATIC
    theirs = form.make(zoo.make(nesting), x)
    assert [(n, type(m)) for n, m in made.named_modules()] == [
        (n, type(m)) for n, m in theirs.named_modules()
    ]
    assert not any(m.training for m in made.modules())
    if nesting != "two-heads":  # BatchNorm stays float there
        assert list(made.parameters()) == []


@FUSE
def test_both_ways_are_torchs_own_steps(fuse, x):
    model = zoo.make("sequential")
    by_hand = nn.Sequential(tq.QuantStub(), *copy.deepcopy(model), tq.DeQuantStub())
    by_hand.train()
    if fuse:
        tq.fuse_modules_qat(by_hand, [["1", "2"], ["3", "4"]], inplace=True)
    by_hand.qconfig = tq.get_default_qat_qconfig(torch.backends.quantized.engine)
    tq.prepare_qat(by_hand, inplace=True)
    made = convert.to_qat(model, fuse=fuse)
    for _ in range(3):
        assert torch.equal(made(x), by_hand(x))
    assert torch.equal(convert.from_qat(made)(x), tq.convert(by_hand.eval())(x))


@pytest.mark.parametrize(
    ("engine", "bits"),
    [("qnnpack", 8), *(("fbgemm", bits) for bits in range(2, 8))],
)
@FUSE
@NESTING
def test_the_converted_model_predicts_as_the_fake_quantized_one(
    engine, bits, fuse, nesting, x
):
    # The stated bound. Both round the same sums to the same grid; one sums floats, the
    # other integers, so only a sum within float's error of a tie can go apart, to the
    # neighboring step. (A reduced range and the bias of QNNPACK: see the next tests.)
    with repro.engine(engine):
        qconfig = convert.low_bit_qconfig(bits)
        model = tuned(nesting, x, qconfig=qconfig, fuse=fuse)
        made = convert.from_qat(model)
        wide = torch.cat([x, 3 * x])  # far beyond what the observers saw
        with torch.no_grad():
            before, after = model(wide), made(wide)
    last = [m for m in model.modules() if isinstance(m, nnqat.Linear)][-1]
    steps = (before - after).abs() / last.activation_post_process.scale
    assert (steps < 0.01).float().mean() > (0.97 if engine == "qnnpack" else 0.995)
    if nesting == "bare":  # no hidden step, which would weigh as its weight does
        assert steps.max() < 1.01


@pytest.mark.parametrize("bits", [4, 3])
def test_folding_a_batch_norm_moves_a_weight_by_a_step_and_only_on_a_tie(bits, x):
    # It rounds anew, and the negative end of a row lies on a tie, 7.5 steps at 4 bits.
    with repro.engine("fbgemm"):
        qconfig = convert.low_bit_qconfig(bits)
        model = tuned("two-heads", x, qconfig=qconfig, fuse=True, turn=lambda m: m)
        made = convert.from_qat(model)
    (layer,) = (m for m in model.modules() if type(m) is nniqat.LinearBn1d)
    (folded,) = (m for m in made.body.modules() if type(m) is nnq.Linear)
    factor = layer.bn.weight / (layer.bn.running_var + layer.bn.eps).sqrt()
    weight = (layer.weight * factor[:, None]).detach()
    step = layer.weight_fake_quant.scale[:, None]
    before = (layer.weight_fake_quant(weight) / step).round().int()
    moved = before != folded.weight().int_repr()
    assert (before - folded.weight().int_repr()).abs().max() <= 1
    assert (((weight / step).abs() % 1 - 0.5).abs()[moved] < 1e-3).all()


@FUSE
def test_a_reduced_range_differs_only_where_training_clamps(fuse, x):
    with repro.engine("fbgemm"):
        qconfig = convert.low_bit_qconfig(8)
        model = convert.to_qat(zoo.make("sequential"), qconfig=qconfig, fuse=fuse)
        # A first batch gives the moving average its whole range.
        made = convert.from_qat(calibrated(model, x))
        with torch.no_grad():
            inside = model(x) - made(x)
            beyond = model(3 * x) - made(3 * x)
    step = made[-2].scale
    assert inside.abs().max() < 1.5 * step
    assert beyond.abs().max() > 5 * step


@pytest.mark.parametrize("bits", [8, 4])
def test_qnnpack_rounds_the_bias_to_a_step_of_the_accumulator(bits, x):
    # So the two agree less there, and the less the fewer bits: the step is coarser.
    shares = {}
    for bias in (True, False):
        with repro.engine("qnnpack"):
            qconfig = convert.low_bit_qconfig(bits)
            model = convert.to_qat(zoo.make("bare", bias=bias), qconfig=qconfig)
            made = convert.from_qat(calibrated(model, x))
            with torch.no_grad():
                steps = (model(x) - made(x)).abs() / made[1].scale
        assert steps.max() < 1.01
        shares[bias] = (steps < 0.01).float().mean()
    assert shares[False] > 0.995
    assert shares[True] > (0.99 if bits == 8 else 0.8)


@BITS
def test_a_grid_of_few_bits_holds_in_training_and_in_the_kernel(bits, x):
    with repro.engine("qnnpack"):
        qconfig = convert.low_bit_qconfig(bits)
        static = convert.to_static(zoo.make("bare"), calibration=x, qconfig=qconfig)
        trained = convert.from_qat(tuned("bare", x, qconfig=qconfig))
    for model in (static, trained):
        weight = model[1].weight().int_repr()
        assert weight.min() >= -(2 ** (bits - 1))
        assert weight.max() <= 2 ** (bits - 1) - 1
        assert len(weight.unique()) > min(2 ** (bits - 1), 40)  # not a coarser one
        for part in (model[0], model[:2]):
            out = part(9 * x).int_repr()  # far beyond what was seen
            assert out.min() == 0
            assert out.max() == 2**bits - 1


@pytest.mark.parametrize(("engine", "last"), [("qnnpack", 255), ("fbgemm", 127)])
def test_eight_bits_follow_the_engine_and_fewer_do_not(engine, last):
    with repro.engine(engine):
        full, four = convert.low_bit_qconfig(8), convert.low_bit_qconfig(4)
        assert full.activation().quant_max == last
        assert four.activation().quant_max == 15


def test_the_scale_of_a_weight_follows_it_at_once(x):
    model = convert.to_qat(zoo.make("bare"), qconfig=convert.low_bit_qconfig(4))
    model(x)
    model[1].weight.data *= 3
    model(x)
    expected = model[1].weight.abs().amax(1) / 7.5
    torch.testing.assert_close(model[1].weight_fake_quant.scale, expected)


@FUSE
def test_from_qat_leaves_its_argument_as_it_was(fuse, x):
    model = tuned("two-heads", x, fuse=fuse).train()
    before, text = copy.deepcopy(model.state_dict()), str(model)
    convert.from_qat(model)
    assert str(model) == text
    assert model.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("form", [QAT, QAT_FUSED], ids=lambda form: form.name)
def test_the_training_forms_are_calibrated_trainable_and_not_smaller(form, x):
    model = zoo.make("sequential")
    made = form.make(model, x)
    before = copy.deepcopy(made.state_dict())
    assert form.trainable
    assert list(made.parameters())
    assert measure.size_bytes(made) >= measure.size_bytes(model)
    made(9 * x)
    assert all(torch.equal(made.state_dict()[k], v) for k, v in before.items())


def test_a_kept_layer_is_trained_in_float(x):
    model = convert.to_qat(zoo.make("sequential"), keep_float=["4"])
    assert type(model.get_submodule("4")) is nn.Linear
    model(x).square().mean().backward()
    assert model.get_submodule("4").weight.grad is not None
    assert type(convert.from_qat(model).get_submodule("4")) is nn.Linear


def test_a_model_fused_for_training_by_hand_is_taken_for_training_only(x):
    model = zoo.make("two-heads").train()
    tq.fuse_modules_qat(model.body, ["0", "1"], inplace=True)
    assert any(type(m) is nniqat.LinearBn1d for m in convert.to_qat(model).modules())
    with pytest.raises(ValueError, match=r"'body\.0' was fused for training"):
        convert.to_static(model, calibration=x)


def test_batch_norm_is_folded_at_conversion_with_its_running_statistics(x):
    # The oracle: fold by the textbook, in float64.
    model = tuned("two-heads", x, fuse=True, qconfig=convert.low_bit_qconfig(8))
    (layer,) = (m for m in model.modules() if type(m) is nniqat.LinearBn1d)
    factor = layer.bn.weight / (layer.bn.running_var + layer.bn.eps).sqrt()
    expected = (layer.bias - layer.bn.running_mean) * factor + layer.bn.bias
    made = convert.from_qat(model)
    (folded,) = (m for m in made.body.modules() if type(m) is nnq.Linear)
    torch.testing.assert_close(folded.bias(), expected.detach())
    weight = layer.weight * factor[:, None]
    error = (folded.weight().dequantize() - weight).abs().amax(1)
    # Half a step, and the end that a symmetric grid of an even number of steps lacks.
    scales = folded.weight().q_per_channel_scales()
    assert (error <= 0.51 * scales).all()


def test_a_state_is_loaded_with_its_grids(x):
    # What a hook clamps at must follow the scale that is loaded.
    qconfig = convert.low_bit_qconfig(4)
    one = convert.from_qat(tuned("sequential", x, qconfig=qconfig))
    other = convert.from_qat(tuned("sequential", 5 * x, qconfig=qconfig))
    assert not torch.equal(one(3 * x), other(3 * x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(3 * x), other(3 * x))
    assert torch.equal(one(3 * x), copy.deepcopy(one)(3 * x))


def test_a_narrow_model_survives_its_file(x, tmp_path):
    model = convert.from_qat(tuned("bare", x, qconfig=convert.low_bit_qconfig(3)))
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(9 * x), model(9 * x))


def test_a_range_that_a_user_ends_early_is_kept_and_a_reduced_one_is_left(x):
    for reduce, last in ((True, 255), (False, 127)):
        quant_max = 255 if reduce else 127
        observer = tq.MinMaxObserver.with_args(
            quant_min=0, quant_max=quant_max, reduce_range=reduce
        )
        qconfig = tq.QConfig(observer, tq.default_weight_observer)
        made = convert.to_static(zoo.make("bare"), calibration=x, qconfig=qconfig)
        assert made[0](99 * x).int_repr().max() == last


def test_an_observer_of_the_users_need_not_name_its_last_integer(x):
    class Fixed(tq.ObserverBase):
        def __init__(self):
            super().__init__(dtype=torch.quint8)

        def forward(self, x):
            return x

        def calculate_qparams(self):
            return torch.tensor([0.1]), torch.tensor([128])

    qconfig = tq.QConfig(Fixed, tq.default_weight_observer)
    made = convert.to_static(zoo.make("bare"), calibration=x, qconfig=qconfig)
    assert (made[1].scale, made[1].zero_point) == (pytest.approx(0.1), 128)


def test_fuse_leaves_a_kept_layer_alone(x):
    model = convert.to_qat(zoo.make("sequential"), fuse=True, keep_float=["2"])
    assert type(model.get_submodule("2")) is nn.Linear
    assert type(model.get_submodule("0")) is nniqat.LinearReLU


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_a_batch_norm_that_cannot_be_folded_stays(options, x):
    norm = nn.BatchNorm1d(5, **options)
    model = nn.Sequential(nn.Linear(12, 5), norm)
    made = convert.to_fused(model, calibration=x)
    assert any(isinstance(m, nn.BatchNorm1d) for m in made.modules())
    made = convert.to_qat(model, fuse=True)
    assert any(type(m) is nnqat.Linear for m in made.modules())


def test_a_package_of_the_users_may_be_called_quantized(x):
    kind = type("Own", (nn.Module,), {"forward": lambda self, x: x})
    kind.__module__ = "mine.quantized.nets"
    model = nn.Sequential(nn.Linear(12, 5), kind())
    assert type(convert.to_static(model, calibration=x)[1]) is nnq.Linear


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, "4"])
def test_a_width_that_is_no_grid_is_refused(bits):
    with pytest.raises(ValueError, match=rf"bits must be in 2\.\.8, got {bits}"):
        convert.low_bit_qconfig(bits)


def test_a_model_that_cannot_be_trained_is_refused():
    frozen = zoo.make("bare").requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that can be trained"):
        convert.to_qat(frozen)


def test_a_model_made_for_inference_only_gives_one_to_train(x):
    with torch.inference_mode():
        inference = zoo.make("bare")
    made = convert.to_qat(inference)
    made(x).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in made.parameters())


@pytest.mark.parametrize("qconfig", ["x86", tq.get_default_qat_qconfig_mapping()])
def test_what_is_no_qconfig_is_refused(qconfig):
    with pytest.raises(
        TypeError, match=r"expected a QConfig, got (str|QConfigMapping)"
    ):
        convert.to_qat(zoo.make("bare"), qconfig=qconfig)


def test_a_qconfig_that_only_observes_is_refused():
    with pytest.raises(ValueError, match="nothing would be fake-quantized"):
        convert.to_qat(zoo.make("bare"), qconfig=tq.get_default_qconfig("x86"))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: zoo.make("bare"), ValueError, "nothing .* is fake-quantized"),
        (lambda x: "model", TypeError, "expected an nn.Module, got str"),
        (
            lambda x: convert.from_qat(tuned("bare", x)),
            ValueError,
            "nothing .* is fake-quantized",
        ),
        (
            lambda x: convert.to_qat(zoo.make("bare")),
            ValueError,
            "'0.activation_post_process' has never seen data",
        ),
        (
            lambda x: convert.to_qat(
                zoo.make("bare"), qconfig=convert.low_bit_qconfig(4)
            ),
            ValueError,
            "'0.activation_post_process' has never seen data",
        ),
    ],
    ids=["float", "no-module", "converted", "not-calibrated", "low-bit"],
)
def test_a_model_that_is_not_ready_for_conversion_is_refused(model, error, message, x):
    with pytest.raises(error, match=message):
        convert.from_qat(model(x))


def test_training_on_an_engine_that_this_build_lacks_is_refused(monkeypatch):
    kind = type(torch.backends.quantized)
    monkeypatch.setattr(kind, "supported_engines", ["none", "other"])
    with pytest.raises(ValueError, match="not supported here; supported are other"):
        convert.to_qat(zoo.make("bare"))
