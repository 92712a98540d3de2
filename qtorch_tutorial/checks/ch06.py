"""Checks of chapter 6, The sealed lamp: grids, requantization, rows, calibration."""

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver

from qtorch_tutorial import convert, measure, models, repro
from qtorch_tutorial.checks import Wrong, answer_of


def ex1(answer: object) -> None:
    """Check exercise 6.1: the grid of an output, with the reduced range."""
    for low, high in ((-1.0, 1.5), (-13.4, 11.9), (0.5, 6.0), (-8.0, -1.0)):
        given = answer_of(answer, low, high)
        if not (isinstance(given, tuple | list) and len(given) == 2):
            raise Wrong(f"return two numbers, (scale, zero_point), not {given!r}")
        scale, zero_point = float(given[0]), given[1]
        with repro.quiet():
            observer = MinMaxObserver(reduce_range=True)
            observer(torch.tensor([low, high]))
            right_scale, right_zero_point = (
                t.item() for t in observer.calculate_qparams()
            )
        _check_scale(scale, right_scale, low, high)
        if zero_point != int(zero_point):
            raise Wrong(f"the zero point is an integer, and yours is {zero_point}")
        if off := int(zero_point) - right_zero_point:
            where = f"{abs(off)} too {'high' if off > 0 else 'low'}"
            raise Wrong(
                f"your zero point for {low}..{high} is {where}: it is the integer of "
                "0.0, found by rounding to the nearest and kept in 0..127"
            )


def _check_scale(scale: float, right: float, low: float, high: float) -> None:
    """Say which mistake gives this scale."""
    if _near(scale, right):
        return
    span = right * 127
    for steps in (255, 128):
        if _near(scale, span / steps):
            raise Wrong(f"you divide by {steps}; from 0 to 127 there are 127 steps")
    if _near(scale, (high - low) / 127):
        raise Wrong(f"{low}..{high} does not contain 0.0: widen it to zero first")
    raise Wrong(f"the scale for {low}..{high} is not {scale:.4g}: divide the width")


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-5 * abs(other)


def ex2(answer: object) -> None:
    """Check exercise 6.2: requantization, against the kernel."""
    # A lesson, then x, w, bias, s_x, s_w, s_y, z_y of a case that only it decides.
    # Halves and quarters are exact floats, so that a tie is a tie.
    rng = repro.generator(62)
    many = torch.randint(128, (32, 16), generator=rng)
    wide = torch.randint(-128, 128, (8, 16), generator=rng)
    rows = torch.rand(8, generator=rng) * 0.02 + 0.001
    bias = torch.randn(8, generator=rng)
    up, one, none = torch.arange(1, 121)[:, None], torch.tensor([[1]]), torch.zeros(1)
    half, quarter = torch.tensor([0.5]), torch.tensor([0.25])
    cases = (
        ("multiply by s_x * s_w / s_y", 2 * up[:60], one, none, 1, half, 1, 0),
        ("round to the nearest integer", 4 * up[:25] - 1, one, none, 1, quarter, 1, 0),
        ("ties go to the even integer", up, one, none, 1, half, 1, 0),
        ("round before you add the zero point", up, one, none, 1, half, 1, 3),
        ("clamp at 0, not at the zero point", up, -one, none, 1, half, 1, 80),
        ("clamp at 255 before the cast", up, 10 * one, none, 1, half, 1, 0),
        (
            "the bias is a float: divide it by s_x * s_w, and do not round that",
            up,
            one,
            1.25 + none,
            1,
            half,
            1,
            0,
        ),
        ("each output has its own s_w", many, wide, bias, 0.01, rows, 0.1, 100),
    )
    for lesson, x, w, b, s_x, s_w, s_y, z_y in cases:
        theirs = _kernel(x, w, b, s_x, s_w, s_y, z_y)
        scales = (torch.tensor(float(s_x)), s_w, torch.tensor(float(s_y)))
        given = answer_of(answer, (x @ w.T).int(), b, *scales, z_y)
        if not isinstance(given, Tensor) or given.dtype != torch.uint8:
            raise Wrong(f"return a tensor of uint8, not {_kind(given)}")
        if given.shape != theirs.shape:
            raise Wrong(f"return shape {tuple(theirs.shape)}, not {tuple(given.shape)}")
        if wrong := (given != theirs).sum().item():
            raise Wrong(f"{wrong} of {theirs.numel()} outputs differ: {lesson}")


def _kernel(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    s_x: float,
    s_w: Tensor,
    s_y: float,
    z_y: int,
) -> Tensor:
    """Output integers of torch's own layer for given integers, zero point 0."""
    with repro.quiet():
        layer = nnq.Linear(w.shape[1], w.shape[0])
        zeros = torch.zeros(len(w), dtype=torch.long)
        s_rows = s_w.expand(len(w))
        w_q = torch.quantize_per_channel(
            w * s_rows[:, None], s_rows.double(), zeros, 0, torch.qint8
        )
        layer.set_weight_bias(w_q, bias)
        layer.scale, layer.zero_point = float(s_y), z_y
        x_q = torch.quantize_per_tensor(x * float(s_x), float(s_x), 0, torch.quint8)
        return layer(x_q).int_repr()


def _kind(given: object) -> str:
    """Name the type of an answer, or the dtype of a tensor."""
    return str(given.dtype) if isinstance(given, Tensor) else type(given).__name__


def ex3(answer: object) -> None:
    """Check exercise 6.3: the rows whose step becomes less than half as large."""
    rng = repro.generator(63)
    loud = torch.rand(6, 9, generator=rng)
    loud[2] *= 7
    weights = (
        torch.tensor(
            [[0.1, 1.0, 0.2], [0.0, 0.3, -0.2], [4.0, 1.0, 0.0], [1.0, 2.1, 0]]
        ),
        torch.tensor([[0.1, 1.0, 0.2], [-9.0, 0.3, 0.2], [4.0, 1.0, 0.0]]),
        torch.tensor([[8.0, 0.0], [4.0, 1.0], [-4.0, 0.0], [3.9, 0.0]]),
        loud,
    )
    for w in weights:
        given = answer_of(answer, w)
        if not isinstance(given, list):
            raise Wrong(f"return a list of row numbers, not {_kind(given)}")
        if any(isinstance(j, bool) or not isinstance(j, int) for j in given):
            raise Wrong("the list holds row numbers (int), nothing else")
        _check_rows(given, w)


def _check_rows(given: list[int], w: Tensor) -> None:
    """Say which mistake gives these rows."""
    largest = [max(abs(v) for v in row) for row in w.tolist()]
    limit = max(largest) / 2
    right = [j for j, m in enumerate(largest) if m < limit]
    if given == right:
        return
    if given == [j for j, m in enumerate(largest) if m <= limit]:
        raise Wrong("a step that is exactly half as large is not less than half")
    if given == [j for j, m in enumerate(largest) if m >= limit]:
        raise Wrong("these rows keep a coarse step; the others gain")
    if sorted(given) == right:
        raise Wrong("give the row numbers in ascending order")
    signed = [max(row) for row in w.tolist()]
    if given == [j for j, m in enumerate(signed) if m < max(signed) / 2]:
        raise Wrong("a symmetric step comes from the largest absolute value")
    if any(j >= len(w) for j in given) or w.shape[0] != w.shape[1]:
        columns = w.abs().amax(dim=0)
        if given == (columns < columns.max() / 2).nonzero().flatten().tolist():
            raise Wrong("these are columns; per channel means one scale for each row")
    raise Wrong(
        f"for row maxima {[round(m, 2) for m in largest]}: {given} is not right"
    )


def ex4(answer: object) -> None:
    """Check exercise 6.4: at most four rows that calibrate twice as well."""
    for seed in (1, 2, 3):
        layer, pool = _timid_first(repro.generator(seed))
        rows = answer_of(answer, layer, pool)
        if not isinstance(rows, Tensor) or rows.dtype != torch.float32:
            raise Wrong(f"return the rows themselves (float32), not {_kind(rows)}")
        if rows.ndim != 2 or rows.shape[1] != pool.shape[1]:
            raise Wrong(
                f"return shape (rows, {pool.shape[1]}), not {tuple(rows.shape)}"
            )
        if not 1 <= len(rows) <= 4:
            raise Wrong(f"choose 1 to 4 rows; you return {len(rows)}")
        if not (rows[:, None] == pool[None]).all(dim=2).any(dim=1).all():
            raise Wrong("a row that you return is not a row of the pool")
        ratio = _error(layer, rows, pool) / _error(layer, pool[:16], pool)
        if ratio > 0.5:
            why = _missing(layer, rows, pool)
            raise Wrong(f"your error is {ratio:.2f} of the first 16 rows': {why}")


def _timid_first(rng: torch.Generator) -> tuple[nn.Sequential, Tensor]:
    """Make a layer, and a pool whose first rows give small outputs."""
    layer = models.make_tale_network((12, 5), rng=rng).requires_grad_(False)
    # A feature that the layer ignores: bright rows are not those with large outputs.
    layer[0].weight[:, 0] = 0
    pool = torch.rand(400, 12, generator=rng) ** 4
    pool[:, 1], pool[:, 2] = 0.0, 1.0
    order = (layer(pool) - layer(pool).mean(dim=0)).abs().amax(dim=1).argsort()
    return layer, pool[order]


def _error(layer: nn.Sequential, rows: Tensor, pool: Tensor) -> float:
    """Relative error on the pool of the layer calibrated on ``rows``."""
    lamp = convert.to_static(layer, calibration=rows)
    return measure.relative_error(layer(pool), lamp(pool))


def _missing(layer: nn.Sequential, rows: Tensor, pool: Tensor) -> str:
    """Say which end of the outputs the chosen rows do not reach."""
    low, high = torch.aminmax(layer(pool))
    margin = (high - low) / 10
    ends = []
    if layer(rows).min() > low + margin:
        ends.append("low")
    if layer(rows).max() < high - margin:
        ends.append("high")
    if len(ends) == 2:
        return "both ends of the outputs are missing; look at layer(pool)"
    return f"the {ends[0] if ends else 'right'} end of the outputs is missing"
