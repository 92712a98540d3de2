"""Checks of chapter 3, The settings: sums of 16 bits, a qconfig, a Pareto front."""

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq

from qtorch_tutorial import repro
from qtorch_tutorial.checks import Wrong, answer_of

# Two batches. The ends move a tenth of the way: to -1 - 0.1 and to 3 + 0.4.
BATCHES = ([-1.0, 0.5, 3.0], [-2.0, 0.0, 7.0])
WEIGHTS = ([[1.0, -5.1, 2.0], [0.0, 2.55, -0.5]], [[0.1, 0.2, 0.1], [0.1, 0.0, 0.2]])


def ex1(answer: object) -> None:
    """Check exercise 3.1: the pair sums saturate, against Python's integers."""
    # The lesson of each case, and bytes of which only it decides.
    cases = [
        ("a product of bytes needs 16 bits: widen", [200, 100, 3, 7], [1, 1, -1, 2]),
        ("pair neighbors, not the two halves", [255, 1, 255, 1], [127, 1, 127, 1]),
        ("clamp each pair sum at 32767", [255, 255, 1, 1], [127, 127, 1, 1]),
        ("the lower end is -32768", [255, 255, 2, 1], [-128, -128, -1, -1]),
    ]
    rng = repro.generator(31)
    for k in (2, 6, 64):
        x = torch.randint(200, 256, (k,), generator=rng).tolist()
        w = torch.randint(-128, 128, (k,), generator=rng).tolist()
        cases.append((f"other bytes, k = {k}", x, w))
    for lesson, x, w in cases:
        bytes_x = torch.tensor(x, dtype=torch.uint8)
        given = answer_of(answer, bytes_x, torch.tensor(w, dtype=torch.int8))
        if isinstance(given, bool) or not isinstance(given, int):
            raise Wrong(f"return a Python int, not {type(given).__name__}")
        products = [a * b for a, b in zip(x, w, strict=True)]
        pairs = [a + b for a, b in zip(products[::2], products[1::2], strict=True)]
        right = sum(min(max(pair, -(2**15)), 2**15 - 1) for pair in pairs)
        if given != right:
            why = _why(given, pairs) or lesson
            shown = f"for x {x} and w {w} you" if len(x) <= 6 else "you"
            raise Wrong(f"{why}: {shown} return {given}, not {right}")


def _why(given: int, pairs: list[int]) -> str:
    """Say which mistake gives this number, or nothing."""
    mistakes = {
        sum((pair + 2**15) % 2**16 - 2**15 for pair in pairs): (
            "int16 wraps around, the instruction stops at the end"
        ),
        min(max(sum(pairs), -(2**15)), 2**15 - 1): (
            "clamp the pairs, and add their sums exactly"
        ),
        sum(pairs): (
            "no pair sum was clamped (a single product always fits in int16, "
            "the sum of two may not)"
        ),
    }
    return mistakes.get(given, "")


def ex2(answer: object) -> None:
    """Check exercise 3.2: the observers of a qconfig compute what was asked for."""
    with repro.quiet():
        try:
            qconfig = answer_of(answer)
        except ValueError as error:
            if "observer instance" not in str(error):
                raise
            raise Wrong(
                "a qconfig holds constructors, not observer instances: use with_args"
            ) from error
        if not isinstance(qconfig, tq.QConfig):
            raise Wrong(f"return a QConfig, not {type(qconfig).__name__}")
        activation = _built(qconfig.activation, "activation")
        weight = _built(qconfig.weight, "weight")
        if activation.dtype is torch.qint8 and weight.dtype is torch.quint8:
            raise Wrong("the members are swapped: quint8 is for the activation")
        _examine_activation(activation)
        _examine_weight(weight)


def _built(constructor: object, member: str) -> nn.Module:
    """Build an observer, and prove that each call builds another one."""
    observer = answer_of(constructor)
    if not isinstance(observer, tq.ObserverBase):
        raise Wrong(f"{member} must build an observer, not {type(observer).__name__}")
    if observer is constructor():
        raise Wrong(f"each call of {member} must build a new observer of its own")
    return observer


def _qparams(observer: nn.Module, batches: tuple) -> tuple[Tensor, Tensor]:
    for batch in batches:
        observer(torch.tensor(batch))
    scale, zero_point = observer.calculate_qparams()
    return scale.double(), zero_point


def _examine_activation(observer: nn.Module) -> None:
    """Two batches, and the scale that each mistake would give."""
    if observer.dtype is not torch.quint8:
        raise Wrong(f"the activation's dtype must be quint8, not {observer.dtype}")
    scale, zero_point = _qparams(observer, BATCHES)
    if scale.numel() != 1:
        raise Wrong("the activation has one scale for the whole tensor")
    size = float(scale)
    mistakes = {
        4.5 / 255: "the activation uses the full range: reduce_range leaves out a bit",
        4.05 / 127: "the averaging constant is 0.1, and yours is 0.01, the default",
        4.05 / 255: "set the averaging constant and reduce_range, both",
        9 / 127: "a moving average forgets, and your observer keeps the extremes",
        9 / 255: "a moving average forgets, and your observer keeps the extremes",
    }
    for wrong, why in mistakes.items():
        if abs(size - wrong) < 1e-5:
            raise Wrong(f"{why} (scale {size:.4g}, not {4.5 / 127:.4g})")
    if abs(size - 4.5 / 127) > 1e-5 or int(zero_point) != 31:
        raise Wrong(
            f"after two batches the activation has scale {size:.4g} and zero point "
            f"{int(zero_point)}, not {4.5 / 127:.4g} and 31"
        )


def _examine_weight(observer: nn.Module) -> None:
    """Two weights, of which the first has the extremes: 5.1 and 2.55."""
    if observer.dtype is not torch.qint8:
        raise Wrong(f"the weight's dtype must be qint8, not {observer.dtype}")
    scale, zero_point = _qparams(observer, WEIGHTS)
    if scale.numel() == 1:
        raise Wrong("the weight has one scale for each output, not one for the tensor")
    if scale.numel() != 2:
        raise Wrong("the weight's channels are its rows, the outputs: axis 0")
    if zero_point.any() or observer.qscheme is not torch.per_channel_symmetric:
        raise Wrong("the weight is symmetric: its zero points are 0")
    right = torch.tensor([5.1, 2.55], dtype=torch.float64) / 127.5
    if torch.allclose(scale, right * 127.5 / 63.5, rtol=1e-4):
        raise Wrong("only the activation leaves out a bit: the weight has all eight")
    if not torch.allclose(scale, right, rtol=1e-4):
        raise Wrong(
            f"the weight's observer keeps the extremes: its scales are "
            f"{[round(s, 4) for s in scale.tolist()]}, not [0.04, 0.02]"
        )


def ex3(answer: object) -> None:
    """Check exercise 3.3: the front, against the definition, pair by pair."""
    rng = repro.generator(33)
    sizes, errors = torch.randint(1, 30, (2, 60), generator=rng).tolist()
    many = [(s, e / 4) for s, e in zip(sizes, errors, strict=True) if s + e > 20]
    # The lesson of each case, and points of which only it decides.
    cases = (
        ("smaller is better, in size and in error", [(1, 2.0), (2, 3.0)]),
        ("sort by size, the smallest first", [(2, 1.0), (1, 2.0)]),
        ("the front is more than its two ends", [(1, 3.0), (2, 1.5), (3, 1.0)]),
        ("compare every point with every other", [(1, 1.0), (2, 5.0), (3, 4.0)]),
        (
            "equal in one and smaller in the other is enough to beat",
            [(1, 3.0), (1, 2.0), (2, 2.0)],
        ),
        ("equal points do not beat each other", [(1, 2.0), (1, 2.0), (2, 1.0)]),
        (
            "the front may bulge: a point above the line of two others stays",
            [(1, 10.0), (2, 9.0), (3, 1.0)],
        ),
        ("a front of many points", many + many[:5]),
    )
    for lesson, points in cases:
        given = answer_of(answer, list(points))
        if not isinstance(given, list):
            raise Wrong(f"return a list of points, not {type(given).__name__}")
        if not all(isinstance(point, tuple) and len(point) == 2 for point in given):
            raise Wrong(f"the list holds tuples (size, error), not {given[:3]}")
        right = sorted(p for p in points if not any(_beats(q, p) for q in points))
        if given != right:
            if len(points) > 3:
                raise Wrong(f"{lesson}: you keep {len(given)}, not these {len(right)}")
            raise Wrong(f"{lesson}: of {points} you keep {given}, not {right}")


def _beats(one: tuple, other: tuple) -> bool:
    """Whether a point is as small in both, and not the same."""
    return one[0] <= other[0] and one[1] <= other[1] and one != other
