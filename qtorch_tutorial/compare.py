"""All forms side by side: one row for each, on the reader's own model and data."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from qtorch_tutorial import measure, models
from qtorch_tutorial.convert import DYNAMIC, FLOAT, FORMS, FUSED, LAMPS, STATIC, Form
from qtorch_tutorial.data import Split

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 4, 16, 64, 256)
"""The whole grid of :func:`break_even`."""

BLOCK_US = 500.0
"""Length of a timed turn, microseconds; see :func:`qtorch_tutorial.measure.latency`."""


def compare(
    model: nn.Module,
    split: Split,
    *,
    forms: Sequence[Form] = LAMPS,
    calibration_rows: int = 512,
    batch: int = 1,
    rounds: int = 27,
    progress: bool = True,
) -> pd.DataFrame:
    """Convert ``model`` to every form and measure each.

    Parameters
    ----------
    model : nn.Module
        A trained float model on the CPU. It is not changed.
    split : Split
        Calibration takes the first rows of ``train_x``; the rest is measured on the
        test part, all of it in one call (a dynamic layer then sees it as one batch).
    forms : sequence of Form
    calibration_rows : int
    batch : int
        Rows in a timed call, taken from ``test_x``.
    rounds : int
        Rounds of :func:`qtorch_tutorial.measure.latency`.
    progress : bool
        Show a bar.

    Returns
    -------
    DataFrame
        One row per form, indexed by its name, in the order given:

        * ``module``: what it is made of;
        * ``size_bytes``, ``file_bytes``: held in memory, and written to disk;
        * ``accuracy``: share of right classes, 0 to 1 (NaN if ``test_y`` holds no
          classes);
        * ``agreement``: share of rows with the same greatest output as the float model;
        * ``sqnr_db``: of the outputs, against the float model's;
        * ``latency_us``: median time of a call, microseconds, one thread;
        * ``ratio``, ``low``, ``high``: that time over the first form's, with its 95 %
          interval.

    Raises
    ------
    TypeError, ValueError
        If a form is none or comes twice, the data do not fit, or the model cannot be
        converted.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> x, y = torch.rand(64, 4, generator=rng), torch.arange(64) % 2
    >>> table = compare(nn.Linear(4, 2), Split(x, y, x, y), progress=False)
    >>> list(table.index)
    ['float', 'dynamic', 'static', 'fused']
    """
    _check(forms, split, batch)
    calibration, x = split.train_x[:calibration_rows], split.test_x[:batch]
    reference = _reference(model, split.test_x)
    made, rows = {}, {}
    bar = tqdm(total=2 * len(forms) + 1, disable=not progress)
    with torch.no_grad(), bar:
        for form in forms:
            bar.set_description(f"convert: {form.name}")
            made[form.name] = form.make(model, calibration)
            bar.update()
        bar.set_description("time them in turns")
        calls = {name: _call(m, x) for name, m in made.items()}
        times = measure.latency(calls, rounds=rounds, block_us=BLOCK_US)
        bar.update()
        for form in forms:
            bar.set_description(f"measure: {form.name}")
            rows[form.name] = (
                {"module": form.module}
                | _quality(made[form.name], split, reference)
                | _time_columns(times[form.name])
            )
            bar.update()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("form")


def break_even(
    *,
    widths: Sequence[int] = WIDTHS,
    batches: Sequence[int] = BATCHES,
    forms: Sequence[Form] = (DYNAMIC, STATIC, FUSED),
    rounds: int = 12,
    progress: bool = True,
) -> pd.DataFrame:
    """Time one square Linear with ReLU, float against each form, over sizes.

    The layer takes and gives floats, so a static form's time contains the quantization
    of its input and the dequantization of its output.

    Parameters
    ----------
    widths : sequence of int
        Input and output features of the layer.
    batches : sequence of int
        Rows of a call.
    forms : sequence of Form
        Each is compared with the float form.
    rounds : int
    progress : bool
        Show a bar; it estimates the time left from a rough model of the work left.

    Returns
    -------
    DataFrame
        One row per width, batch and form: columns ``width``, ``batch``, ``form``,
        ``latency_us``, ``ratio`` (to float), ``low``, ``high`` and ``verdict``.

    Raises
    ------
    TypeError, ValueError
        If a form is none or comes twice, or a width or a batch is below 1.

    Examples
    --------
    >>> grid = break_even(widths=(16,), batches=(1, 2), rounds=6, progress=False)
    >>> len(grid), list(grid.form.unique())
    (6, ['dynamic', 'static', 'fused'])
    """
    _check_forms(forms)
    for name, values in (("width", widths), ("batch", batches)):
        if not values or min(values) < 1:
            raise ValueError(f"every {name} must be at least 1, got {tuple(values)}")
    rng = torch.Generator().manual_seed(0)
    turns = rounds * (1 + len(forms))
    work = {(w, b): turns * _turn_seconds(w, b) for w in widths for b in batches}
    for width in widths:
        work[width, batches[0]] += _convert_seconds(width)
    total, shown = sum(work.values()), "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    rows = []
    with tqdm(total=total, bar_format=shown + "{postfix}", disable=not progress) as bar:
        for width in widths:
            linear = models.make_tale_network((width, width), rng=rng)
            layer = nn.Sequential(*linear, nn.ReLU())
            x = torch.rand(max(batches), width, generator=rng)
            made = {f.name: f.make(layer, x) for f in (FLOAT, *forms)}
            for batch in batches:
                bar.set_postfix(width=width, batch=batch)
                calls = {name: _call(m, x[:batch]) for name, m in made.items()}
                times = measure.latency(calls, rounds=rounds, block_us=BLOCK_US)
                rows += [
                    {"width": width, "batch": batch, "form": f.name}
                    | _time_columns(times[f.name])
                    | {"verdict": times[f.name].verdict}
                    for f in forms
                ]
                bar.update(work[width, batch])
    return pd.DataFrame(rows)


def _turn_seconds(width: int, batch: int) -> float:
    """Guess how long a timed turn takes: a block, or a call where that is longer.

    A call multiplies and reads its weight, at 40 billion products and 12 GB in a
    second: about what one core did in 2026. Only the bar's estimate rests on it, and
    the bar corrects for the speed that it sees.
    """
    return max(BLOCK_US / 1e6, width**2 * (batch / 40e9 + 4 / 12e9))


def _convert_seconds(width: int) -> float:
    """Guess how long the forms of a layer take to make: 80 ns for each weight."""
    return 80e-9 * width**2


def _call(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return a call of ``model`` on ``x`` without arguments, to be timed."""
    return lambda: model(x)


@torch.no_grad()
def _reference(model: nn.Module, x: Tensor) -> Tensor:
    """Output of the float model, shape (rows, outputs)."""
    float_model = FLOAT.make(model, None)
    try:
        y = float_model(x)
    except Exception as error:  # the reader's own code may raise anything
        raise ValueError(
            f"the model does not take test_x of shape {tuple(x.shape)}: {error}"
        ) from error
    if not (isinstance(y, Tensor) and y.ndim == 2 and torch.isfinite(y).all()):
        raise ValueError(
            "the model must give one finite tensor of shape (rows, outputs)"
        )
    return y


def _time_columns(latency: measure.Latency) -> dict[str, float]:
    return {
        "latency_us": latency.median_us,
        "ratio": latency.ratio,
        "low": latency.low,
        "high": latency.high,
    }


def _quality(model: nn.Module, split: Split, reference: Tensor) -> dict[str, float]:
    """Bytes, accuracy, agreement and error of one converted model."""
    y = model(split.test_x)
    classes = not split.test_y.is_floating_point()
    return {
        "size_bytes": measure.size_bytes(model),
        "file_bytes": measure.file_bytes(model),
        "accuracy": (
            measure.accuracy(model, split.test_x, split.test_y)
            if classes
            else float("nan")
        ),
        "agreement": (y.argmax(1) == reference.argmax(1)).double().mean().item(),
        "sqnr_db": measure.sqnr_db(reference, y),
    }


def _check_forms(forms: Sequence[Form]) -> None:
    known = ", ".join(f.name for f in FORMS)
    if not forms:
        raise ValueError(f"give at least one form; known are {known}")
    for form in forms:
        if not isinstance(form, Form):
            raise TypeError(f"{form!r} is not a Form; convert.FORMS holds {known}")
    names = [form.name for form in forms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two forms have the name {name!r}: a row needs its own")


def _check(forms: Sequence[Form], split: Split, batch: int) -> None:
    """Refuse what could not be compared, before any work is done."""
    _check_forms(forms)
    for name, x in (("train_x", split.train_x), ("test_x", split.test_x)):
        if x.ndim < 2:
            raise ValueError(
                f"{name} needs shape (rows, features), got {tuple(x.shape)}"
            )
    y = split.test_y
    if not y.is_floating_point() and y.shape != split.test_x.shape[:1]:
        raise ValueError(
            f"test_y needs shape ({len(split.test_x)},), a class for each row of "
            f"test_x, got {tuple(y.shape)}"
        )
    if not 1 <= batch <= len(split.test_x):
        raise ValueError(
            f"batch must be in 1..{len(split.test_x)}, the rows of test_x, got {batch}"
        )
