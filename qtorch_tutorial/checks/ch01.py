"""Checks of chapter 1, The spark: a grid by hand, zero points, the price of a scale."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from qtorch_tutorial import repro
from qtorch_tutorial.checks import Wrong, answer_of


def ex1(answer: object) -> None:
    """Check exercise 1.1: quantize a list, against exact fractions."""
    # The lesson of each case, and values of which only it decides.
    cases = (
        ("divide by the scale", [1.0, 2.0, 3.0], 0.5, 0, 8),
        ("add the zero point before you clamp", [-1.0, -2.5, 0.0], 0.5, 6, 4),
        ("round to the nearest integer, do not cut off", [0.8, 1.4, 2.7], 1.0, 0, 8),
        ("round to the nearest, also below zero", [-0.8, -1.4, -2.7], 1.0, 9, 8),
        ("ties go to the even integer", [0.25, 1.25, 2.25, 0.75], 0.5, 0, 8),
        ("round before you add the zero point", [0.25, 0.75, 1.25], 0.5, 3, 8),
        ("clamp at 0: no integer is below the grid", [-9.0, 1.0], 0.5, 3, 8),
        ("the grid of 3 bits ends at 2**3 - 1 = 7", [0.0, 3.9, 99.0], 0.5, 2, 3),
        ("the grid of 8 bits ends at 255", [0.0, 500.0], 0.5, 2, 8),
    )
    for lesson, x, scale, zero_point, bits in cases:
        given = answer_of(answer, list(x), scale, zero_point, bits)
        if not isinstance(given, list) or len(given) != len(x):
            raise Wrong(f"return a list of {len(x)} integers, not {given!r}")
        if any(isinstance(q, bool) or not isinstance(q, int) for q in given):
            raise Wrong(f"the list must hold integers (int), and yours is {given}")
        steps = [round(Fraction(v) / Fraction(scale)) + zero_point for v in x]
        right = [min(max(q, 0), 2**bits - 1) for q in steps]
        if given != right:
            raise Wrong(
                f"{lesson}: for {x}, scale {scale}, zero point {zero_point}, "
                f"{bits} bits you return {given}, not {right}"
            )


def ex2(answer: object) -> None:
    """Check exercise 1.2: the zero-point correction, against centered integers."""
    rng = repro.generator(12)
    # Each lesson with the batch, the outputs, the terms and the zero points.
    cases = (
        ("with no zero points there is nothing to correct", 3, 4, 5, 0, 0),
        ("the input's zero point goes with the weight's row sums", 3, 4, 5, 7, 0),
        ("the weight's zero point goes with the input's row sums", 3, 4, 5, 0, 7),
        ("each input's sum belongs to its row of the result", 4, 4, 5, 0, -9),
        ("two zero points leave a fourth term, k * z_x * z_w", 3, 4, 5, 7, -3),
        ("the fourth term comes k times", 2, 6, 64, 127, 100),
    )
    for lesson, batch, outputs, k, z_x, z_w in cases:
        x = torch.randint(256, (batch, k), generator=rng, dtype=torch.int32)
        w = torch.randint(-128, 128, (outputs, k), generator=rng, dtype=torch.int32)
        sums = x.sum(dim=1, dtype=torch.int32), w.sum(dim=1, dtype=torch.int32)
        try:
            given = answer_of(answer, x @ w.T, *sums, z_x, z_w, k)
        except RuntimeError as error:
            raise Wrong(f"the shapes do not fit together: {error}") from None
        if not isinstance(given, Tensor):
            raise Wrong(f"return a tensor, not {type(given).__name__}")
        if given.dtype != torch.int32:
            raise Wrong(f"the accumulator is int32, and yours is {given.dtype}")
        right = (x - z_x) @ (w - z_w).T
        if given.shape != right.shape:
            raise Wrong(f"return shape {tuple(right.shape)}, not {tuple(given.shape)}")
        if not torch.equal(given, right):
            raise Wrong(f"{lesson} (here z_x = {z_x}, z_w = {z_w}, k = {k})")


def ex3(answer: object) -> None:
    """Check exercise 1.3: the cheapest bits and group size, against all pairs."""
    for w, least_db, sizes in _weights():
        given = answer_of(answer, w.clone(), least_db, sizes)
        if not (isinstance(given, tuple | list) and len(given) == 2):
            raise Wrong(f"return two integers, (bits, size), not {given!r}")
        pair = bits, size = tuple(given)
        if bits not in range(2, 9) or size not in sizes:
            raise Wrong(f"bits is 2 to 8 and size one of {sizes}, not {given}")
        good = _good(w, least_db, sizes)
        if pair == min(good, key=_cost):
            continue
        if pair == min(_good(w.T, least_db, sizes), key=_cost, default=None):
            raise Wrong("groups are runs of a row, and yours run down the columns")
        if pair not in good:
            reached = f"{_sqnr_db(w, *pair):.1f} dB, and {least_db} are wanted"
            raise Wrong(f"{bits} bits in groups of {size} reach {reached}")
        raise Wrong(_too_dear(pair, good))


def _weights() -> list[tuple[Tensor, float, tuple[int, ...]]]:
    """Weights, the least SQNR and the group sizes: each wants another kind of pair."""
    rng = repro.generator(13)
    calm, wild, column, row = (torch.randn(128, 128, generator=rng) for _ in range(4))
    wild[:, 5] *= 20
    column[:, 5] *= 4
    row[5] *= 20
    calm[:, ::2] *= 1e-3
    return [
        (wild, 31.0, (4, 16, 128)),
        (row, 30.0, (8, 32, 128)),
        (column, 25.0, (8, 16, 32, 64, 128)),
        (calm, 15.0, (8, 32, 128)),
    ]


def _good(w: Tensor, least_db: float, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """All pairs of bits and group size that reach the SQNR."""
    pairs = ((bits, size) for bits in range(2, 9) for size in sizes)
    return [pair for pair in pairs if _sqnr_db(w, *pair) >= least_db]


def _sqnr_db(w: Tensor, bits: int, size: int) -> float:
    """SQNR of a weight in groups, by torch's own fake quantization."""
    rows, half = w.reshape(-1, size), 2 ** (bits - 1)
    scale = rows.abs().amax(dim=1) / (half - 0.5)
    zeros = torch.zeros(len(rows), dtype=torch.int32)
    rows_hat = torch.fake_quantize_per_channel_affine(
        rows, scale, zeros, 0, -half, half - 1
    )
    noise = (rows - rows_hat).square().sum()
    return 10 * math.log10(rows.square().sum() / noise)


def _cost(pair: tuple[int, int], scale_bits: int = 32) -> float:
    """Bits that a weight costs, its share of a scale included."""
    return pair[0] + scale_bits / pair[1]


def _too_dear(pair: tuple[int, int], good: list[tuple[int, int]]) -> str:
    """Say which mistake leads to a pair that is good enough and costs too much."""
    if pair[0] == min(bits for bits, _ in good):
        why = "the fewest bits are not the cheapest once you count the scales"
    elif pair == min(good, key=lambda one: _cost(one, 8)):
        why = "a float32 scale takes 32 bits, not 8"
    elif pair[1] == max(size for _, size in good):
        why = "few scales are not the cheapest once you count the bits"
    else:
        why = "a weight costs its bits, and each group 32 bits more"
    cost, least = _cost(pair), min(map(_cost, good))
    given = f"{pair[0]} bits in groups of {pair[1]}"
    return f"{given} cost {cost:.4g} bits a weight, but {least:.4g} would do: {why}"
