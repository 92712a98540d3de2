"""The checks of chapter 11: a gradient, a count of steps, a scale, a memory."""

import math
from collections.abc import Callable

import torch
import torch.ao.quantization as tq
from torch import Tensor

from qtorch_tutorial.checks import Wrong, answer_of

GRIDS = ((0.2, 5, 0, 15), (0.05, 0, -8, 7), (0.5, 128, 0, 255), (0.3, -2, -4, 3))
"""Scale, zero point and ends; with and without negative integers."""


def _values(scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """Values on both sides of a grid, away from its ties; shape (2, 300)."""
    low, high = qmin - zero_point - 4, qmax - zero_point + 4
    steps = torch.linspace(low, high, 600, dtype=torch.float64)
    ties = ((steps % 1) - 0.5).abs() < 0.02
    return (torch.where(ties, steps.round(), steps) * scale).float().reshape(2, 300)


def _float_like(result: object, x: Tensor) -> Tensor:
    """Raise Wrong unless ``result`` is a float tensor of the shape of ``x``."""
    if not isinstance(result, Tensor) or not result.is_floating_point():
        raise Wrong(f"return a float tensor, not {getattr(result, 'dtype', result)}")
    if result.shape != x.shape:
        raise Wrong(f"the shape must be {tuple(x.shape)}, not {tuple(result.shape)}")
    return result


def ex1(glass: Callable) -> None:
    """Check exercise 11.1: values and gradients equal those of torch's operator."""
    for grid in GRIDS:
        scale, zero_point, qmin, qmax = grid
        x = _values(*grid)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        result = _float_like(answer_of(glass, ours, *grid), x)
        expected = torch.fake_quantize_per_tensor_affine(theirs, *grid)
        off = (result - expected).abs() > 1e-3 * scale
        where = f"scale {scale}, zero point {zero_point}, integers {qmin} to {qmax}"
        clamped = (expected == expected.min()) | (expected == expected.max())
        if off.any() and not off[~clamped].any():
            raise Wrong(f"{where}: values beyond the grid must stop at its ends")
        if off.any():
            first = off.flatten().nonzero()[0]
            value = x.flatten()[first].item()
            right = expected.flatten()[first].item()
            raise Wrong(f"{where}: {value:.3g} becomes {right:.3g} on the grid")
        if not result.requires_grad:
            raise Wrong("no gradient comes back: x itself must be part of the result")
        weight = torch.linspace(1, 2, x.numel()).reshape(x.shape)
        (result * weight).sum().backward()
        (expected * weight).sum().backward()
        _compare_slopes(ours.grad / weight, theirs.grad / weight, where)


def _compare_slopes(ours: Tensor, theirs: Tensor, where: str) -> None:
    """Raise Wrong that tells apart the ways to get a gradient wrong."""
    wrong = (ours - theirs).abs() > 1e-3
    inside = theirs > 0.5
    if not wrong.any():
        return
    if (ours == 0).all():
        raise Wrong("the gradient is 0 everywhere: rounding stops it, go around it")
    if wrong[~inside].all():
        raise Wrong(f"{where}: where a value is clamped the gradient must be 0")
    if not wrong[~inside].any() and (ours[wrong] == 0).all():
        raise Wrong(
            f"{where}: up to half a step beyond an end a value still rounds onto the "
            "grid, and its gradient is 1"
        )
    raise Wrong(f"{where}: the gradient is 1 inside and 0 outside, times what comes")


def ex2(blows: Callable) -> None:
    """Check exercise 11.2: against a walk that is really taken."""
    cases = ((0.03, 0.01, 0.002), (0.0011, 0.01, 0.002), (0.7, 0.1, 0.1))
    for slope, lr, scale in (*cases, (-0.07, 0.01, 0.002), (0.0, 0.1, 0.01)):
        said = answer_of(blows, slope, lr, scale)
        where = f"slope {slope}, lr {lr}, scale {scale}"
        if not (isinstance(said, tuple | list) and len(said) == 2):
            raise Wrong(f"return a pair, not {said!r}")
        kept = _walk(slope, lr, scale, rounded=False)
        rounded = _walk(slope, lr, scale, rounded=True)
        if tuple(said) == (kept, rounded):
            continue
        if tuple(said) == (rounded, kept):
            raise Wrong("the float weight comes first in the pair")
        if said[0] != kept:
            hint = _why_steps(said[0], kept, slope, lr, scale)
            raise Wrong(
                f"{where}: a float weight needs {kept} steps, not {said[0]}{hint}"
            )
        raise Wrong(
            f"{where}: rounded after every step it needs {rounded}, not {said[1]}: "
            "what rounding takes back is lost"
        )


def _why_steps(said: float, kept: float, slope: float, lr: float, scale: float) -> str:
    """Name the mistake behind a wrong number of steps."""
    if slope < 0:
        return ": a negative slope moves it as far"
    if slope == 0:
        return ": without a slope it never moves"
    if said == math.ceil(scale / (lr * slope)):
        return ": half a step of the grid is enough to round to the next integer"
    if said == kept - 1:
        return ": it has to pass the middle between two integers"
    return ""


def _walk(slope: float, lr: float, scale: float, *, rounded: bool) -> float:
    """Count steps of descent until the integer is another; inf after 1,000."""
    w = 0.0
    for step in range(1, 1001):
        w -= lr * slope
        if round(w / scale) != 0:
            return step
        if rounded:
            w = 0.0
    return math.inf


def ex3(scale_slope: Callable) -> None:
    """Check exercise 11.3: against autograd, with only the rounding passed through."""
    for grid in GRIDS:
        scale, zero_point, qmin, qmax = grid
        x = _values(*grid)
        result = _float_like(answer_of(scale_slope, x.clone(), *grid), x)
        scales = torch.full_like(x, scale).requires_grad_()
        steps = x / scales
        # The value of the rounded steps, exactly, with the gradient of the steps.
        q = steps.detach().round() + (steps - steps.detach()) + zero_point
        # Not clamp alone: at an end itself its gradient is a matter of convention.
        ends = q.detach().clamp(qmin, qmax)
        q = torch.where(q.detach() == ends, q, ends)
        ((q - zero_point) * scales).sum().backward()
        wrong = (result - scales.grad).abs() > 1e-2
        if not wrong.any():
            continue
        raise Wrong(_why_slope(result, scales.grad, steps.detach(), grid))


def _why_slope(ours: Tensor, right: Tensor, steps: Tensor, grid: tuple) -> str:
    """Name the mistake behind a wrong slope of the scale."""
    scale, zero_point, qmin, qmax = grid
    where = f"scale {scale}, zero point {zero_point}, integers {qmin} to {qmax}"
    low, high = qmin - zero_point, qmax - zero_point
    inside = (steps.round() >= low) & (steps.round() <= high)
    wrong = (ours - right).abs() > 1e-2
    if (ours + right)[inside].abs().max() < 1e-2:
        return "the sign is turned: rounded steps minus exact steps"
    if (ours - steps.round())[inside].abs().max() < 1e-2:
        return f"{where}: x / scale depends on the scale too, so a term is missing"
    if not wrong[inside & (steps >= low) & (steps <= high)].any():
        if wrong[inside].any():
            return f"{where}: half a step beyond an end still rounds onto the grid"
        if (ours[~inside] == 0).all():
            return (
                f"{where}: a clamped value lies at an end of the grid, and the ends "
                "move with the scale"
            )
        return f"{where}: the ends lie {low} and {high} steps from zero"
    return f"{where}: inside the grid the slope is wrong"


def ex4(memoryless: Callable) -> None:
    """Check exercise 11.4: show two weights; only the second may count."""
    for bits in (8, 4, 2):
        make = answer_of(memoryless, bits)
        if isinstance(make, torch.nn.Module):
            raise Wrong(
                "return the constructor: with_args(...) without a call after it"
            )
        if isinstance(make, tq.QConfig) or not callable(make):
            raise Wrong(f"return what FakeQuantize.with_args gives, not {make!r}")
        fake = make()
        if not isinstance(fake, tq.FakeQuantize):
            raise Wrong(f"it must build a FakeQuantize, not {type(fake).__name__}")
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        if (fake.quant_min, fake.quant_max) != (low, high):
            ends = f"{fake.quant_min} to {fake.quant_max}"
            raise Wrong(f"{bits} bits are the integers {low} to {high}, not {ends}")
        first, second = (
            torch.tensor([[8.0, -1.0], [2.0, 3.0]]),
            torch.tensor([[1.0, -0.5], [0.4, -0.2]]),
        )
        fake(first)
        w_hat = fake(second)
        if fake.scale.numel() != 2:
            raise Wrong(f"a scale for each row: two rows gave {fake.scale.numel()}")
        if fake.zero_point.any() or fake.dtype != torch.qint8:
            raise Wrong("symmetric int8: the zero points must all be 0")
        expected = second.abs().amax(dim=1) / ((high - low) / 2)
        if (fake.scale - expected).abs().max() <= 1e-6 * expected.max():
            by_hand = (second / expected[:, None]).round().clamp(low, high)
            if (w_hat - by_hand * expected[:, None]).abs().max() > 1e-6:
                raise Wrong("the weight is not on the grid of its scale")
            continue
        if isinstance(fake, tq.FusedMovingAvgObsFakeQuantize):
            raise Wrong("the fused class has another formula for the scale")
        raise Wrong("it remembers: the scale must be that of the weight it saw last")
