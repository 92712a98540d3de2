"""The checks of chapter 2: a peak, a paired test, an interval, a roof."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor

from qtorch_tutorial.checks import Wrong, answer_of

# Sizes, batch, and the numbers alive at the peak for each row, counted by hand.
PEAKS = (
    ((784, 128, 10), 1000, 128 + 128),  # at the ReLU
    ((5, 3, 11), 7, 3 + 11),  # at the last layer, whose output no ReLU doubles
    ((50, 4, 9, 2), 3, 9 + 9),
    ((20, 30), 5, 30),  # one layer: its input was there before
)

# Both right, only one, only other, both wrong alike, both wrong in two ways; p-value.
DUELS = (
    ((20, 1, 4, 2, 0), 12 / 32),
    ((20, 4, 1, 2, 0), 12 / 32),
    ((9, 0, 6, 1, 0), 2 / 64),
    ((9, 3, 1, 1, 5), 10 / 16),
    ((5, 2, 2, 1, 1), 1.0),
    ((8, 0, 0, 1, 3), 1.0),
)

# How many of n sorted ratios lie outside at each end: the table of the sign test.
OUTSIDE = {27: 7, 20: 5, 15: 3, 9: 1, 6: 0}


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * abs(other)


def ex1(peak_of: Callable) -> None:
    """Check exercise 2.1: the peak equals counts made by hand."""
    for sizes, batch, alive in PEAKS:
        said = answer_of(peak_of, sizes, batch)
        if not isinstance(said, int):
            raise Wrong(f"return an int, not {type(said).__name__}")
        row = 4 * batch  # bytes for each number alive in a row
        expected = row * alive
        if said == expected:
            continue
        hidden, last = sizes[1:-1], sizes[-1]
        weights = sum((i + 1) * o for i, o in pairwise(sizes))
        mistakes = {
            batch * alive: "a float32 takes 4 bytes",
            4 * alive: "every row of the batch has its own numbers",
            row * (2 * sum(hidden) + last): "an input is freed after its module",
            row * max(sizes[1:]): "a module's input and output stand side by side",
            row * max(map(sum, pairwise(sizes))): (
                "the network's own input does not count, and a ReLU makes a new tensor"
            ),
            row * 2 * max(sizes[1:]): "no ReLU follows the last layer",
            expected + 4 * weights: "the weights were there before the call",
        }
        why = mistakes.get(said, f"got {said}")
        raise Wrong(f"sizes {sizes}, batch {batch}: expected {expected}: {why}")


def ex2(mcnemar: Callable) -> None:
    """Check exercise 2.2: p-values of small cases that can be counted by hand."""
    for counts, expected in DUELS:
        one, other, y = _predictions(counts)
        said = answer_of(mcnemar, one, other, y)
        if isinstance(said, Tensor) or not isinstance(said, float):
            raise Wrong(f"return a float, not {type(said).__name__}")
        if _same(said, expected):
            continue
        _, won, lost, _, astray = counts
        where = f"{won} digits won, {lost} lost"
        if said > 1:
            raise Wrong(f"{where}: a chance is at most 1, not {said:.4g}")
        if expected < 1 and _same(said, expected / 2):
            raise Wrong(f"{where}: two-sided: count the uneven splits of both ends")
        if astray:
            raise Wrong(f"{where}: a digit that both get wrong is no coin")
        if won > lost:
            raise Wrong(f"{where}: the smaller count is the tail, whoever has it")
        raise Wrong(f"{where}: exact p is {expected:.4g}, got {said:.4g}")


def _predictions(counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Make predictions of two networks, and the truth, with these counts."""
    kinds = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    y = torch.arange(len(kinds)) % 10
    # What is added to the truth; 0 is a right answer.
    one = torch.tensor([0, 0, 1, 1, 1])[kinds]
    other = torch.tensor([0, 1, 0, 1, 2])[kinds]
    return (y + one) % 10, (y + other) % 10, y


def ex3(ratio_interval: Callable) -> None:
    """Check exercise 2.3: ratios that are known exactly, in a drawn order."""
    rng = torch.Generator().manual_seed(0)
    for n, outside in OUTSIDE.items():
        steps = torch.randperm(n, generator=rng).tolist()
        # All are powers of two, so that every ratio comes back exactly.
        ratios = [2.0 ** (step - n // 3) for step in steps]
        first = [2.0**step for step in torch.randperm(n, generator=rng).tolist()]
        second = [r * f for r, f in zip(ratios, first, strict=True)]
        said = answer_of(ratio_interval, list(first), list(second))
        if not (isinstance(said, tuple) and len(said) == 2):
            raise Wrong("return a tuple (low, high)")
        ranked = sorted(ratios)
        if not _alike(said, (ranked[outside], ranked[-1 - outside])):
            raise Wrong(f"{n} rounds: {_why(said, first, second, ranked, outside)}")


def _alike(one: Iterable[float], other: Iterable[float]) -> bool:
    return all(map(_same, one, other))


def _why(said: tuple, first: list, second: list, ranked: list, outside: int) -> str:
    """Name the mistake behind a wrong interval."""
    n, low, high = len(ranked), ranked[outside], ranked[-1 - outside]
    inside = range(1, (n - 1) // 2 - outside + 1)
    as_measured = [b / a for a, b in zip(first, second, strict=True)]
    unpaired = [b / a for a, b in zip(sorted(first), sorted(second), strict=True)]
    if _alike(said, (high, low)):
        return "return the lower end first"
    if _alike(said, (1 / high, 1 / low)):
        return "second over first, not first over second"
    if outside and _alike(said, (ranked[0], ranked[-1])):
        return "least and greatest ratio: more may lie outside"
    if any(
        _alike(said, (ranked[outside + k], ranked[-1 - outside - k])) for k in inside
    ):
        return "too many outside: both ends together miss at most 5 %"
    if any(_alike(said, (ranked[k], ranked[-1 - k])) for k in range(outside)):
        return "too few outside: 95 % would allow more"
    if _alike(said, (as_measured[outside], as_measured[-1 - outside])):
        return "sort the ratios before you count"
    spots = (outside, -1 - outside)
    if _alike(said, (sorted(unpaired)[k] for k in spots)):
        return "divide within each round; sorted times are no pairs"
    return f"expected ({low}, {high}), got {said}"


def ex4(least_time: Callable) -> None:
    """Check exercise 2.4: each limit binds once."""
    # Width 8: 64 weights; a row has 128 operations and moves 64 bytes.
    cases = (
        ((8, 1, 4, 10.0, 1e9), (256 + 64) / 10),
        ((8, 1, 1, 10.0, 1e9), (64 + 64) / 10),
        ((8, 5, 1, 1e9, 100.0), 5 * 128 / 100),
        ((8, 3, 2, 40.0, 30.0), 3 * 128 / 30),
    )
    for given, expected in cases:
        said = answer_of(least_time, *given)
        if not isinstance(said, float):
            raise Wrong(f"return a float, not {type(said).__name__}")
        if _same(said, expected):
            continue
        width, batch, weight_bytes, bandwidth, rate = given
        compute = 2 * batch * width**2 / rate
        weights = weight_bytes * width**2
        moving = (weights + 8 * batch * width) / bandwidth
        mistakes = (
            (compute + moving, "the limits overlap: the longer time, not the sum"),
            (min(compute, moving), "the slower limit binds, not the faster"),
            (compute / 2, "a product and a sum: two operations for each weight"),
            (weights / bandwidth, "the input and the output move too"),
            ((weights + 4 * batch * width) / bandwidth, "input *and* output move"),
            ((weights + 8 * width) / bandwidth, "every row has an input and an output"),
            (
                weight_bytes * (width**2 + 2 * batch * width) / bandwidth,
                "activations stay float32, whatever the weights take",
            ),
        )
        why = [text for value, text in mistakes if _same(said, value)]
        why = why[0] if why else f"got {said:.4g}"
        raise Wrong(f"{given}: expected {expected:.4g} seconds: {why}")
