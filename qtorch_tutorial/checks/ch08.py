"""Checks of chapter 8, The shaded lamp: ReLU on integers, the gain, what to fuse."""

import math

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver

from qtorch_tutorial import convert, models, repro
from qtorch_tutorial.affine import QParams, QTensor
from qtorch_tutorial.checks import Wrong, answer_of


def ex1(answer: object) -> None:
    """Check exercise 8.1: ReLU on uint8, against torch's kernel for quint8."""
    every = torch.arange(256).to(torch.uint8)
    for z, q in ((55, every), (128, every.reshape(4, 64)), (0, every), (255, every)):
        given_q = q.clone()
        given = answer_of(answer, given_q, z)
        if not isinstance(given, Tensor):
            raise Wrong(f"return a tensor, not {type(given).__name__}")
        if not torch.equal(given_q, q):
            raise Wrong("you changed q itself: return a new tensor")
        if given.dtype != torch.uint8:
            raise Wrong(f"the integers stay uint8, and yours are {given.dtype}")
        if given.shape != q.shape:
            raise Wrong(f"the shape {tuple(q.shape)} became {tuple(given.shape)}")
        zero_point = torch.tensor(z, dtype=torch.int32)
        grid = QParams(torch.tensor(0.5), zero_point, 0, 255)
        with repro.quiet():
            right = torch.relu(QTensor(q, grid).to_torch()).int_repr()
        if not torch.equal(given, right):
            raise Wrong(_relu_mistake(q, z, given, right))


def _relu_mistake(q: Tensor, z: int, given: Tensor, right: Tensor) -> str:
    """Say which mistake gives these integers."""
    if torch.equal(given, q):
        return (
            f"nothing was removed: with zero point {z} the negative values are the "
            f"integers below {z}, not those below 0"
        )
    if torch.equal(given, right - z):
        return f"you moved to another grid: on this one 0.0 stays at {z}"
    if torch.equal(given, q - z):
        return f"uint8 knows no negative number: q - {z} wraps around below {z}"
    if torch.equal(given, torch.where(q < z, 0, q)):
        return f"what ReLU removes becomes 0.0, and 0.0 is the integer {z}, not 0"
    i = int((given != right).flatten().nonzero()[0])
    told = given.flatten()[i], right.flatten()[i], q.flatten()[i]
    return "with zero point {} you make {} of {}; it is {}".format(
        z, *(int(told[k]) for k in (0, 2, 1))
    )


def ex2(answer: object) -> None:
    """Check exercise 8.2: the gain, from the steps that torch's observers choose."""
    for low, high in ((-3.0, 4.5), (-12.0, 2.0), (-0.25, 8.0), (1.0, 6.0), (0.0, 2.0)):
        given = answer_of(answer, low, high)
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise Wrong(f"return a float, not {type(given).__name__}")
        ratio = _step(low, high) / _step(0.0, high)
        right = 20 * math.log10(ratio)
        if abs(given - right) > 1e-4:
            raise Wrong(_gain_mistake(low, high, given, ratio))


def _step(low: float, high: float) -> float:
    """Return the scale of a min-max observer that saw these two values."""
    observer = MinMaxObserver()
    observer(torch.tensor([low, high]))
    return float(observer.calculate_qparams()[0])


def _gain_mistake(low: float, high: float, given: float, ratio: float) -> str:
    """Say which mistake gives this gain."""
    right = 20 * math.log10(ratio)
    guesses = [
        (ratio, "that is the ratio of the steps: turn it into decibels"),
        (-right, "a smaller step is a gain: divide the pair's step by the fused one"),
        (right / 2, "errors are amplitudes, not powers: it is 20 log10, not 10 log10"),
        (20 * math.log(ratio), "decibels take the logarithm to base 10"),
    ]
    if low > 0:
        not_widened = 20 * math.log10((high - low) / high)
        why = f"{low}..{high} does not contain 0: the observer widens it, gain 0 dB"
        guesses.insert(0, (not_widened, why))
    if low < 0:
        only_low = 20 * math.log10(-low / high)
        guesses.append((only_low, "the pair's grid covers high too: its width counts"))
    for value, why in guesses:
        if abs(given - value) <= 1e-4:
            return why
    return f"the gain for {low}..{high} is not {given:.4g} dB: compare the two widths"


class _OtherReLU(nn.ReLU):
    """A subclass, which might compute something else."""


def ex3(answer: object) -> None:
    """Check exercise 8.3: pairs to fuse, against lists written by hand."""
    a, b, c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    r, s = nn.ReLU(), nn.ReLU()
    other = nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2)
    plain = [("in", a), ("act", r), ("mid", b), ("act2", s), ("out", c)]
    cases = (
        ("name the Linear, then its ReLU", plain, [["in", "act"], ["mid", "act2"]]),
        ("no layer, no pair", [], []),
        ("a ReLU before the Linear is not its ReLU", [("x", r), ("y", a)], []),
        (
            "only the module right after the Linear counts",
            [("x", a), ("drop", nn.Dropout()), ("y", r), ("z", b), ("gelu", nn.GELU())],
            [],
        ),
        (
            "of two Linears in a row the second has the ReLU",
            [("x", a), ("y", b), ("z", r)],
            [["y", "z"]],
        ),
        (
            "compare types exactly: a subclass is another module",
            [("x", other), ("y", r), ("z", a), ("w", _OtherReLU())],
            [],
        ),
        ("ReLU6 is no ReLU", [("x", a), ("y", nn.ReLU6())], []),
        (
            "a Linear that stands in two places must stay",
            [("x", a), ("y", r), ("z", a), ("w", b), ("v", s)],
            [["w", "v"]],
        ),
        (
            "a ReLU that stands in two places must stay",
            [("x", a), ("y", r), ("z", b), ("w", r), ("v", c), ("u", s)],
            [["v", "u"]],
        ),
    )
    for lesson, children, right in cases:
        given = answer_of(answer, list(children))
        if not isinstance(given, list):
            raise Wrong(f"return a list of pairs, not {type(given).__name__}")
        for pair in given:
            if not isinstance(pair, list | tuple):
                raise Wrong(f"each pair is a list of two names, not {pair!r}")
        if [list(pair) for pair in given] != right:
            names = ", ".join(f"{n}: {type(m).__name__}" for n, m in children)
            raise Wrong(f"{lesson}: of [{names}] fuse {right}, not {given}")


def ex4(answer: object) -> None:
    """Check exercise 8.4: the module built, against torch's fused operator."""
    for bias, high in ((True, 3.0), (False, 0.75)):
        rng = repro.generator(84)
        net = models.make_tale_network((12, 7), rng=rng, bias=bias)
        if bias:
            net[0].bias.data.add_(torch.linspace(-1, 1, 7))
        rows = torch.rand(64, 12, generator=rng)
        stub, linear, _ = convert.to_static(net, calibration=rows)
        before = linear.scale, linear.zero_point, type(linear)
        given = answer_of(answer, linear, high)
        if given is linear:
            raise Wrong("you returned linear itself: make a new module")
        if (linear.scale, linear.zero_point, type(linear)) != before:
            raise Wrong("you changed linear itself: leave it as it is")
        _check_shade(linear, given, high)
        x = stub(rows)
        packed = linear._packed_params._packed_params
        right = torch.ops.quantized.linear_relu(x, packed, high / 127, 0)
        if not torch.equal(given(x).int_repr(), right.int_repr()):
            raise Wrong("its output is not that of the fused operator on this grid")


def _check_shade(linear: nnq.Linear, given: object, high: float) -> None:
    """Say what is wrong with the module that was built."""
    if type(given) is not nniq.LinearReLU:
        raise Wrong(f"expected an nniq.LinearReLU, got {type(given).__name__}")
    weight, right = given.weight(), linear.weight()
    if weight.shape != right.shape:
        raise Wrong("mind the order: in_features first, then out_features")
    if not torch.equal(weight.int_repr(), right.int_repr()):
        raise Wrong("its weight is not that of linear: a new module's is not set yet")
    had, has = linear.bias(), given.bias()
    if had is not None and (has is None or not torch.equal(has, had)):
        raise Wrong("the bias is lost: pack it together with the weight")
    if had is None and has is not None and has.any():
        raise Wrong("linear has no bias, and yours has one")
    if given.zero_point != 0:
        raise Wrong(
            f"a grid that starts at 0.0 has zero point 0, not {given.zero_point}"
        )
    for steps in (255, 128, 256):
        if math.isclose(given.scale, high / steps, rel_tol=1e-6):
            raise Wrong(f"you divide by {steps}: from 0 to 127 there are 127 steps")
    if math.isclose(given.scale, linear.scale, rel_tol=1e-6):
        raise Wrong("its step is still that of linear: set scale as well")
    if not math.isclose(given.scale, high / 127, rel_tol=1e-6):
        raise Wrong(f"the integer 127 stands for {127 * given.scale:.4g}, not for high")
