"""affine: equal to torch's observers and fake quantization, and true to its bounds."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver

from qtorch_tutorial import repro
from qtorch_tutorial.affine import (
    QParams,
    QTensor,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)

BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8], ids=lambda b: f"int{b}")
SIGNED = pytest.mark.parametrize("signed", [False, True], ids=["uint", "int"])
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True], ids=["aff", "sym"])
AXIS = pytest.mark.parametrize("axis", [None, 0], ids=["per-tensor", "per-channel"])

KINDS = ("normal", "positive", "negative", "constant", "zeros", "single")


def make_data(kind, rows, columns, exponent, seed):
    """A float32 matrix of the kind, of magnitude 10**exponent."""
    rng = repro.generator(seed)
    x = torch.randn(rows, columns, dtype=torch.float64, generator=rng)
    x = {
        "normal": x,
        "positive": x.abs(),
        "negative": -x.abs(),
        "constant": torch.full_like(x, x[0, 0].item()),
        "zeros": torch.zeros_like(x),
        "single": x[:1, :1],
    }[kind]
    return (x * 10.0**exponent).float()


matrices = st.builds(
    make_data,
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    exponent=st.floats(-30, 30),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=300, deadline=None)
@given(
    x=matrices,
    signed=st.booleans(),
    symmetric=st.booleans(),
    reduce_range=st.booleans(),
    per_channel=st.booleans(),
)
def test_the_grid_is_exactly_that_of_torchs_observer(
    x, signed, symmetric, reduce_range, per_channel
):
    assume(not (symmetric and reduce_range and not signed))  # torch has no such
    granularity = "per_channel" if per_channel else "per_tensor"
    scheme = f"{granularity}_{'symmetric' if symmetric else 'affine'}"
    Observer = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    with repro.quiet():
        observer = Observer(
            dtype=torch.qint8 if signed else torch.quint8,
            qscheme=getattr(torch, scheme),
            reduce_range=reduce_range,
        )
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    ours = choose_qparams(
        x,
        signed=signed,
        symmetric=symmetric,
        reduce_range=reduce_range,
        axis=0 if per_channel else None,
    )
    assert torch.equal(ours.scale.reshape(-1), scale)
    assert torch.equal(ours.zero_point.reshape(-1).long(), zero_point.long())


@BITS
@SIGNED
@SYMMETRIC
def test_fewer_bits_are_torchs_observer_with_a_range_of_its_own(
    bits, signed, symmetric, rng
):
    x = torch.randn(5, 7, generator=rng)
    ours = choose_qparams(x, bits=bits, signed=signed, symmetric=symmetric)
    # For 8 bits torch takes another zero point if the range is named: do not name it.
    named = {"quant_min": ours.qmin, "quant_max": ours.qmax} if bits < 8 else {}
    observer = MinMaxObserver(
        dtype=torch.qint8 if signed else torch.quint8,
        qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine,
        **named,
    )
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    assert (ours.scale, ours.zero_point) == (scale, zero_point)
    assert ours.qmax - ours.qmin == 2**bits - 1


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    per_channel=st.booleans(),
    overshoot=st.floats(0.1, 4.0),
)
def test_fake_quantize_has_exactly_torchs_values_and_gradients(
    seed, bits, signed, symmetric, per_channel, overshoot
):
    rng = repro.generator(seed)
    data = torch.randn(6, 11, generator=rng)
    axis = 0 if per_channel else None
    grid = choose_qparams(
        data, bits=bits, signed=signed, symmetric=symmetric, axis=axis
    )
    x = (data * overshoot).requires_grad_()
    y = x.detach().clone().requires_grad_()
    if per_channel:
        theirs = torch.fake_quantize_per_channel_affine(
            y, grid.scale, grid.zero_point, 0, grid.qmin, grid.qmax
        )
    else:
        theirs = torch.fake_quantize_per_tensor_affine(
            y, grid.scale, grid.zero_point, grid.qmin, grid.qmax
        )
    ours = fake_quantize(x, grid)
    upstream = torch.randn(6, 11, generator=rng)
    ours.backward(upstream)
    theirs.backward(upstream)
    assert torch.equal(ours, theirs)
    assert torch.equal(x.grad, y.grad)


@SIGNED
@AXIS
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e6])
def test_quantize_gives_the_integers_of_torchs_kernel(signed, axis, magnitude, rng):
    x = torch.randn(64, 65, generator=rng) * magnitude
    grid = choose_qparams(x, signed=signed, axis=axis)
    dtype = torch.qint8 if signed else torch.quint8
    wider = x * 1.5  # some values lie beyond the grid
    if axis is None:
        theirs = torch.quantize_per_tensor(
            wider, grid.scale.item(), int(grid.zero_point), dtype
        )
    else:
        theirs = torch.quantize_per_channel(
            wider, grid.scale.double(), grid.zero_point.long(), axis, dtype
        )
    ours = quantize(wider, grid)
    assert torch.equal(ours.q, theirs.int_repr())
    assert torch.equal(dequantize(ours), theirs.dequantize())


def test_ties_go_to_the_even_integer():
    grid = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -128, 127)
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert quantize(x, grid).q.tolist() == [-2, -2, 0, 0, 2, 2]


@BITS
@SIGNED
@AXIS
def test_rounding_moves_a_value_by_at_most_half_a_step(bits, signed, axis, rng):
    x = torch.randn(16, 64, generator=rng)
    grid = choose_qparams(x, bits=bits, signed=signed, axis=axis)
    scale, _ = grid.along(x)
    # An affine grid starts within half a step of the range's end: hence one step there.
    inside = (x > x.amin(1, keepdim=True)) & (x < x.amax(1, keepdim=True))
    steps = ((dequantize(quantize(x, grid)) - x).abs() / scale)[inside]
    assert steps.quantile(0.95) <= 0.5 + 1e-4
    # The bound must also be nearly reached, or a finer grid would pass unseen.
    assert steps.quantile(0.95) > 0.4


@BITS
@SYMMETRIC
@AXIS
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0], ids=["below", "around", "above"])
def test_zero_is_represented_exactly(bits, symmetric, axis, shift, rng):
    x = torch.randn(4, 8, generator=rng) + shift
    grid = choose_qparams(x, bits=bits, symmetric=symmetric, axis=axis)
    zero = torch.zeros(4, 8)
    assert torch.equal(dequantize(quantize(zero, grid)), zero)


def test_a_negative_axis_counts_from_the_end(rng):
    x = torch.randn(3, 5, generator=rng)
    assert choose_qparams(x, axis=-1).axis == 1
    assert choose_qparams(x, axis=-1).scale.shape == (5,)


def test_reduce_range_doubles_the_step_and_keeps_the_grid(rng):
    x = torch.randn(100, generator=rng)
    full, reduced = choose_qparams(x), choose_qparams(x, reduce_range=True)
    torch.testing.assert_close(reduced.scale, full.scale * 255 / 127)
    assert (reduced.qmin, reduced.qmax) == (0, 255)


@SIGNED
@AXIS
def test_a_qtensor_survives_the_way_through_torch(signed, axis, rng):
    x = torch.randn(7, 5, generator=rng)
    ours = quantize(x, choose_qparams(x, signed=signed, axis=axis))
    back = QTensor.from_torch(ours.to_torch())
    assert torch.equal(back.q, ours.q)
    assert torch.equal(back.qparams.scale, ours.qparams.scale)
    assert torch.equal(back.qparams.zero_point, ours.qparams.zero_point)
    assert back.qparams.axis == ours.qparams.axis
    ends = (back.qparams.qmin, back.qparams.qmax)
    assert ends == (ours.qparams.qmin, ours.qparams.qmax)
    assert back.shape == (7, 5)
    assert torch.equal(back.dequantize(), ours.to_torch().dequantize())


@pytest.mark.parametrize("bits", [1, 9])
def test_a_width_outside_the_grid_is_refused(bits):
    with pytest.raises(ValueError, match=r"bits must be in 2\.\.8, got"):
        choose_qparams(torch.ones(3), bits=bits)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or an infinity"):
        choose_qparams(torch.tensor([0.0, bad]))


def test_an_empty_tensor_is_refused():
    with pytest.raises(ValueError, match="empty"):
        choose_qparams(torch.empty(0, 3))


def test_a_symmetric_unsigned_grid_has_no_reduced_range():
    with pytest.raises(ValueError, match="no reduced range"):
        choose_qparams(torch.ones(3), symmetric=True, reduce_range=True)


def test_only_8_bit_torch_tensors_are_read():
    with pytest.raises(ValueError, match="quint8 or qint8"):
        QTensor.from_torch(torch.zeros(3))
