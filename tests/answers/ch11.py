"""Answers to the exercises of chapter 11: one right, and the mistakes learners make."""

import math

import torch
import torch.ao.quantization as tq


class Through(torch.autograd.Function):
    """Fake quantization whose backward lets through what lies on the grid."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        q = torch.round(x / scale) + zero_point
        ctx.save_for_backward(torch.logical_and(q >= qmin, q <= qmax))
        return (torch.clamp(q, qmin, qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return grad * mask, None, None, None, None


def glass_right(x, scale, zero_point, qmin, qmax):
    return Through.apply(x, scale, zero_point, qmin, qmax)


def snapped(x, scale, zero_point, qmin, qmax):
    q = (torch.round(x / scale) + zero_point).clamp(qmin, qmax)
    return (q - zero_point) * scale


def glass_without_clamped_zeros(x, scale, zero_point, qmin, qmax):
    return x + (snapped(x, scale, zero_point, qmin, qmax) - x).detach()


def glass_that_stops(x, scale, zero_point, qmin, qmax):
    return snapped(x, scale, zero_point, qmin, qmax)


def glass_detached(x, scale, zero_point, qmin, qmax):
    return snapped(x, scale, zero_point, qmin, qmax).detach()


def glass_cut_at_the_ends(x, scale, zero_point, qmin, qmax):
    inside = x.clamp((qmin - zero_point) * scale, (qmax - zero_point) * scale)
    return inside + (snapped(x, scale, zero_point, qmin, qmax) - inside).detach()


def glass_without_clamp(x, scale, zero_point, qmin, qmax):
    return x + (torch.round(x / scale) * scale - x).detach()


def glass_without_zero_point(x, scale, zero_point, qmin, qmax):
    return glass_right(x, scale, 0, qmin, qmax)


def glass_of_integers(x, scale, zero_point, qmin, qmax):
    q = torch.round(x / scale) + zero_point
    return q.clamp(qmin, qmax).to(torch.int32)


def glass_with_scaled_slope(x, scale, zero_point, qmin, qmax):
    inside = glass_right(x, scale, zero_point, qmin, qmax) / scale
    x_hat = snapped(x, scale, zero_point, qmin, qmax)
    return inside + (x_hat - inside).detach()


def glass_of_rows(x, scale, zero_point, qmin, qmax):
    return glass_right(x, scale, zero_point, qmin, qmax).flatten()


def blows_right(slope, lr, scale):
    w, steps = 0.0, 0
    if slope == 0:
        return math.inf, math.inf
    while abs(w) < scale / 2:
        w -= lr * slope
        steps += 1
    return steps, (1 if steps == 1 else math.inf)


def blows_to_a_whole_step(slope, lr, scale):
    if slope == 0:
        return math.inf, math.inf
    stride = abs(lr * slope) / scale
    return math.ceil(1 / stride), 1 if stride > 0.5 else math.inf


def blows_rounded_down(slope, lr, scale):
    kept, rounded = blows_right(slope, lr, scale)
    return kept - 1, rounded


def blows_that_add_up(slope, lr, scale):
    kept, _ = blows_right(slope, lr, scale)
    return kept, kept


def blows_turned(slope, lr, scale):
    return blows_right(slope, lr, scale)[::-1]


def blows_uphill_only(slope, lr, scale):
    if slope <= 0:
        return math.inf, math.inf
    return blows_right(slope, lr, scale)


def blows_never_zero(slope, lr, scale):
    return blows_right(slope, lr, scale) if slope else (1, math.inf)


def one_number(slope, lr, scale):
    return blows_right(slope, lr, scale)[0]


def slope_right(x, scale, zero_point, qmin, qmax):
    q = torch.round(x / scale) + zero_point
    inside = (q >= qmin) & (q <= qmax)
    return torch.where(
        inside, q - zero_point - x / scale, q.clamp(qmin, qmax) - zero_point
    )


def slope_turned(x, scale, zero_point, qmin, qmax):
    return -slope_right(x, scale, zero_point, qmin, qmax)


def slope_of_a_product(x, scale, zero_point, qmin, qmax):
    return (torch.round(x / scale) + zero_point).clamp(qmin, qmax) - zero_point


def slope_zero_outside(x, scale, zero_point, qmin, qmax):
    q = torch.round(x / scale) + zero_point
    inside = (q >= qmin) & (q <= qmax)
    return slope_right(x, scale, zero_point, qmin, qmax) * inside


def slope_without_zero_point(x, scale, zero_point, qmin, qmax):
    q = torch.round(x / scale) + zero_point
    inside = (q >= qmin) & (q <= qmax)
    return torch.where(inside, q - zero_point - x / scale, q.clamp(qmin, qmax))


def slope_without_half_a_step(x, scale, zero_point, qmin, qmax):
    steps = x / scale
    low, high = qmin - zero_point, qmax - zero_point
    inside = (steps >= low) & (steps <= high)
    return torch.where(inside, steps.round() - steps, steps.clamp(low, high))


def slope_summed(x, scale, zero_point, qmin, qmax):
    return slope_right(x, scale, zero_point, qmin, qmax).sum()


def fake_quant(bits, **changes):
    options = {
        "observer": tq.MovingAveragePerChannelMinMaxObserver,
        "quant_min": -(2**bits) // 2,
        "quant_max": 2**bits // 2 - 1,
        "dtype": torch.qint8,
        "qscheme": torch.per_channel_symmetric,
        "averaging_constant": 1,
    }
    return tq.FakeQuantize.with_args(**(options | changes))


def with_torchs_constant(bits):
    return fake_quant(bits, averaging_constant=0.01)


def torchs_own(bits):
    return tq.default_per_channel_weight_fake_quant


def per_tensor(bits):
    observer = tq.MovingAverageMinMaxObserver
    scheme = torch.per_tensor_symmetric
    return fake_quant(bits, observer=observer, qscheme=scheme)


def with_extremes(bits):
    return tq.FakeQuantize.with_args(
        observer=tq.PerChannelMinMaxObserver,
        quant_min=-(2**bits) // 2,
        quant_max=2**bits // 2 - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )


def built(bits):
    return fake_quant(bits)()


def without_the_lowest(bits):
    return fake_quant(bits, quant_min=-(2**bits) // 2 + 1)


def fused(bits):
    return tq.FusedMovingAvgObsFakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver,
        quant_min=-(2**bits) // 2,
        quant_max=2**bits // 2 - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        averaging_constant=1,
    )


def observer_alone(bits):
    return tq.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1)


ANSWERS = {
    "ch11.ex1": {
        "right": glass_right,
        "wrong": {
            "1 everywhere": (glass_without_clamped_zeros, "the gradient must be 0"),
            "0 everywhere": (glass_that_stops, "rounding stops it"),
            "detached": (glass_detached, "no gradient comes back"),
            "cut at the ends": (glass_cut_at_the_ends, "up to half a step beyond"),
            "no clamp": (glass_without_clamp, "must stop at its ends"),
            "no zero point": (glass_without_zero_point, "on the grid"),
            "integers": (glass_of_integers, "return a float tensor"),
            "slope over scale": (glass_with_scaled_slope, "times what comes"),
            "flattened": (glass_of_rows, "the shape must be"),
        },
    },
    "ch11.ex2": {
        "right": blows_right,
        "wrong": {
            "a whole step": (blows_to_a_whole_step, "half a step of the grid"),
            "rounded down": (blows_rounded_down, "pass the middle"),
            "rounding adds up": (blows_that_add_up, "takes back is lost"),
            "turned": (blows_turned, "comes first in the pair"),
            "uphill only": (blows_uphill_only, "a negative slope"),
            "moves without a slope": (blows_never_zero, "without a slope"),
            "one number": (one_number, "return a pair"),
        },
    },
    "ch11.ex3": {
        "right": slope_right,
        "wrong": {
            "turned": (slope_turned, "the sign is turned"),
            "product rule": (slope_of_a_product, "a term is missing"),
            "0 outside": (slope_zero_outside, "move with the scale"),
            "no zero point": (slope_without_zero_point, "steps from zero"),
            "no half step": (slope_without_half_a_step, "half a step beyond"),
            "summed": (slope_summed, "the shape must be"),
        },
    },
    "ch11.ex4": {
        "right": fake_quant,
        "wrong": {
            "torch's constant": (with_torchs_constant, "it remembers"),
            "torch's own": (torchs_own, "it remembers"),
            "per tensor": (per_tensor, "a scale for each row"),
            "extremes": (with_extremes, "it remembers"),
            "built": (built, "without a call after it"),
            "one integer less": (without_the_lowest, "bits are the integers"),
            "fused": (fused, "another formula"),
            "an observer": (observer_alone, "must build a FakeQuantize"),
        },
    },
}
