"""Checks of chapter 7, "The lamp that trims itself"."""

import torch
from torch import Tensor
from torch.ao.nn.quantized import dynamic as nnqd
from torch.ao.quantization import MinMaxObserver

from qtorch_tutorial import repro
from qtorch_tutorial.checks import Wrong, answer_of


def ex1(answer: object) -> None:
    """Check exercise 7.1: torch's observer and quantized tensors are the judges."""
    rng = repro.generator(701)
    for rows, shift, wild in ((5, 0.0, 1.0), (6, 3.0, 4.0), (7, -3.0, 255.0)):
        x = torch.randn(rows, 50, generator=rng) + shift
        x[1] *= wild
        got = answer_of(answer, x)
        if not (isinstance(got, Tensor) and got.shape == (rows,)):
            raise Wrong(f"return a tensor with one number for each of the {rows} rows")
        if got.is_floating_point():
            raise Wrong("steps between integers are whole: round x / scale first")
        _check_steps(got, x)


def _check_steps(got: Tensor, x: Tensor) -> None:
    """Compare the steps of each row and recognize a wrong grid."""
    right = _spans(x, reduce_range=True)
    if torch.equal(got.long(), right):
        return
    if torch.equal(got.long(), _spans(x, reduce_range=False)):
        raise Wrong("your grid has 255 steps: one call uses 0 to 127")
    alone = torch.cat([_spans(row[None], reduce_range=True) for row in x])
    if torch.equal(got.long(), alone):
        raise Wrong("you give each row a grid of its own: the call has only one")
    low, high = x.aminmax()
    narrow = torch.round(x * 127 / (high - low))
    if (low > 0 or high < 0) and ((narrow.amax(1) - narrow.amin(1)) == got).all():
        raise Wrong("the range of your grid does not contain 0: widen it first")
    where = int((got.long() - right).abs().argmax())
    raise Wrong(f"row {where} spans {int(right[where])} steps, not {int(got[where])}")


def _spans(x: Tensor, *, reduce_range: bool) -> Tensor:
    """Count the steps that each row of x spans on the grid of torch's observer."""
    with repro.quiet():
        observer = MinMaxObserver(dtype=torch.quint8, reduce_range=reduce_range)
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        q = torch.quantize_per_tensor(x, scale.item(), int(zero_point), torch.quint8)
    return q.int_repr().amax(1).long() - q.int_repr().amin(1).long()


def ex2(answer: object) -> None:
    """Check exercise 7.2: torch's kernel is the judge."""
    rng = repro.generator(702)
    for rows, features, outputs, shift in ((3, 40, 5, 0.0), (8, 300, 7, 2.0)):
        x = torch.randn(rows, features, generator=rng) + shift
        w = torch.randint(-128, 128, (outputs, features), generator=rng).to(torch.int8)
        bias = torch.randn(outputs, generator=rng) * 20
        y = answer_of(answer, x, w, 0.05, bias)
        if not (isinstance(y, Tensor) and y.shape == (rows, outputs)):
            raise Wrong(f"return a tensor of shape ({rows}, {outputs})")
        if y.dtype != torch.float32:
            raise Wrong(f"the lamp gives float32, you give {y.dtype}")
        _check_output(y, x, w, bias)


def _check_output(y: Tensor, x: Tensor, w: Tensor, bias: Tensor) -> None:
    """Compare with the kernel; recognize what a forgotten part leaves behind."""
    with repro.quiet():
        packed = torch.quantize_per_tensor(w.float() * 0.05, 0.05, 0, torch.qint8)
        module = nnqd.Linear(w.shape[1], w.shape[0])
        module.set_weight_bias(packed, bias)
        right = module(x)
    in_float = x @ (w.float() * 0.05).T

    def near(other: Tensor) -> bool:
        return bool((y - other).abs().max() <= 1e-5 * right.abs().max())

    if near(right):
        return
    if near(in_float + bias):
        raise Wrong("weights only: your input was never rounded to its grid")
    if near(right - bias):
        raise Wrong("the bias is missing")
    if _same_everywhere((y - right + bias) / bias):
        raise Wrong("you scale the bias too: it is float, add it last")
    if _same_everywhere((y - right) / (w.float().sum(dim=1) * 0.05)):
        raise Wrong("all sums are shifted: subtract the zero point from the integers")
    if _same_everywhere((y - bias) / (right - bias)):
        raise Wrong("the sum is off by a factor: both scales belong on it")
    raise Wrong(
        "not the kernel's output: sum wide integers (or float64), multiply by both "
        "scales, add the bias"
    )


def _same_everywhere(ratio: Tensor) -> bool:
    """Whether one factor explains the difference."""
    middle = ratio.median()
    return bool((ratio - middle).abs().max() <= 1e-2 * middle.abs())


def ex3(answer: object) -> None:
    """Check exercise 7.3: good rows untouched, wild rows within the bound."""
    rng = repro.generator(703)
    for size in (1.0, 200.0):
        good = 2 * torch.rand(16, 20, generator=rng) - 1
        good *= size * good.abs()  # most values are far below the reach of their row
        good[:, 0] = size * torch.linspace(0.8, 1.2, 16)
        many = (1e3, -1e4, 1e5, 1e6, 1e7, -1e3, 1e4)
        for factors in ((), (50.0,), (-1e6,), many):
            x = good.clone()
            for row, factor in enumerate(factors):
                x[row, 3] = factor * size
            _check_guard(answer, x, wild=len(factors))


def _check_guard(answer: object, x: Tensor, *, wild: int) -> None:
    """Check one batch whose first ``wild`` rows are wild."""
    given = x.clone()
    got = answer_of(answer, given)
    if not torch.equal(given, x):
        raise Wrong("you change x itself: give a new tensor")
    if not (isinstance(got, Tensor) and got.shape == x.shape):
        raise Wrong(f"return a tensor of the shape of x, {tuple(x.shape)}")
    where = (
        f"in a batch with {wild} of {len(x)} rows wild" if wild else "in a clean batch"
    )
    if not torch.equal(got[wild:], x[wild:]):
        raise Wrong(f"{where} you change good rows: their reach is below the bound")
    reach = x[wild:].abs().max().item()
    # The typical reach of the good rows is 0.8 to 1.2 times their size.
    bound = 3 * 1.2 * reach
    if x.min() == got.min() < -bound:
        raise Wrong(f"{where} a large negative value stays: clip both sides")
    if x.max() == got.max() > bound:
        raise Wrong(f"{where} a large positive value stays: clip both sides")
    if got.abs().max() > bound:
        raise Wrong(
            f"{where} values of {got.abs().max():.2g} are left: the wild rows moved "
            "your idea of what is typical"
        )


def ex4(answer: object) -> None:
    """Check exercise 7.4: the error of the median row decides, on both grids."""
    rng = repro.generator(704)
    seen = torch.rand(200, 30, generator=rng)
    usual = torch.rand(32, 30, generator=rng)
    usual[0, 0] = seen.max()
    wild, wilder, faint = usual.clone(), 0.1 * usual, 0.1 * usual
    wild[5] *= 40
    wilder[5, 0] = 0.5
    faint[:, 10:] = 0  # so that the median of all values is an error of 0
    cases = {
        "8 times the calibrated range": (8 * usual, "dynamic"),
        "a tenth of the calibrated range": (faint, "dynamic"),
        "the calibrated range, where the grids are equal": (usual, "static"),
        "one wild row among usual ones": (wild, "static"),
        "a tenth of the range, with one row that is larger": (wilder, "dynamic"),
        "1.5 times the calibrated range": (1.5 * usual, "static"),
    }
    for case, (batch, right) in cases.items():
        got = answer_of(answer, seen, batch)
        if got not in ("static", "dynamic"):
            raise Wrong(f'return "static" or "dynamic", not {got!r}')
        if got != right:
            raise Wrong(f"{case}: you choose {got}, but {_WHY[case]}")


_WHY = {
    "8 times the calibrated range": "the static grid clamps most values",
    "a tenth of the calibrated range": "the static steps are ten times too large",
    "the calibrated range, where the grids are equal": "a tie goes to static",
    "one wild row among usual ones": "the median row does not care how much the "
    "static grid clamps of the wild one",
    "a tenth of the range, with one row that is larger": "even stretched by that row "
    "the dynamic steps are the smaller ones",
    "1.5 times the calibrated range": "with a reduced range the integers 128 to 255 "
    "are free: the static grid clamps nothing, and its steps are the smaller ones",
}
