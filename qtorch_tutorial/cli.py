"""The command line: ``qtorch doctor`` looks at this machine, ``qtorch trial`` compares.

Exit code 0: all is well. 1: something is missing, or a file cannot be written. 2: the
command was given something that it does not accept.

``doctor`` must run where ``torch.ao`` is gone, so what needs it is imported late.
"""

import importlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Annotated, NoReturn

import pandas as pd
import torch
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from qtorch_tutorial import data, models, repro, train

app = typer.Typer(
    help="Quantized linear modules: look at this machine, compare the forms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

OWN_ROWS = 512
"""Random rows that a model of the reader's own is calibrated and compared on."""


@app.command()
def doctor() -> None:
    """Show what this machine has, and which chapters will run as printed."""
    rows, missing = _examine()
    table = Table(title="qtorch doctor", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    out.print(table)
    for name, remedy in missing.items():
        _say(f"missing: {name}. {remedy}")
    if missing:
        raise typer.Exit(1)


def _examine() -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Rows for the doctor's table, and what is missing with its remedy."""
    nothing = [("torch", torch.__version__), ("all chapters", "cannot run")]
    try:
        here = repro.probe()
    except PackageNotFoundError as error:
        return nothing, {error.name: f"Remedy: pip install {error.name}"}
    except ImportError as error:
        return nothing, {"torch.ao": str(error)}
    missing = {}
    rows = [(name, _in_words(value)) for name, value in asdict(here).items()]
    if not here.engines:
        missing["quantized engine"] = (
            "This build of torch has none. Install torch from PyPI for x86-64 or ARM64."
        )
    elif here.engine in ("x86", "fbgemm") and "AVX2" not in here.instructions:
        missing["AVX2"] = (
            f"Engine {here.engine} needs it. If the processor has none, set "
            "torch.backends.quantized.engine = 'qnnpack' in each chapter."
        )
    return [*rows, ("chapters 01 to 13", _chapters(here, missing))], missing


def _in_words(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def _chapters(here: repro.Probe, missing: dict[str, str]) -> str:
    """Say whether the chapters will show here what they show in the book."""
    if missing:
        return "cannot run"
    if here.engine in ("x86", "fbgemm"):
        return "run as printed, but for times"
    return f"run, with other digits than printed (engine {here.engine})"


@app.command()
def trial(  # noqa: PLR0913 (a parameter for each option)
    model: Annotated[
        str | None, typer.Option(help="your own model: package.module:factory")
    ] = None,
    shape: Annotated[
        int | None, typer.Option(help="input features of your model")
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(help="a form to compare, also qat, qat-fused; repeat"),
    ] = None,
    batch: Annotated[
        int, typer.Option(help=f"rows of a timed call, up to {OWN_ROWS}")
    ] = 1,
    epochs: Annotated[int, typer.Option(help="passes over the 4,000 digits")] = 10,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="write CSV, JSON and PNG here")
    ] = None,
    with_map: Annotated[
        bool, typer.Option("--map", help="add the break-even map (under a minute)")
    ] = False,
    with_search: Annotated[
        bool, typer.Option("--search", help="add the search for the best settings")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(help="keep the search here: sqlite:///search.db, or a server"),
    ] = None,
) -> None:
    """Compare the four lamps of the tale's network, or of your own model.

    The tale's network is trained on the digits first. A model of your
    own is taken as it is and compared on random inputs: its accuracy
    there would say nothing and is left out.

    A search that was stopped goes on with the same --storage; a second
    process with the same --storage takes its share.
    """
    try:
        repro.check_modules()
        from qtorch_tutorial import compare  # late: needs torch.ao

        _check_range("--batch", batch, OWN_ROWS)
        _check_range("--epochs", epochs, 1000)
        forms = _forms(form, with_map)
        if storage is not None:
            _check_storage(storage, with_search)
        if out_dir is not None:
            _check_writable(out_dir)
        network, split = _own(model, shape) if model else _tale(epochs, shape)
        table = compare.compare(network, split, forms=forms, batch=batch)
    except (ValueError, TypeError) as error:
        _stop(f"qtorch trial: {error}", code=2)
    except ImportError as error:
        _stop(f"qtorch trial: {error}", code=1)
    _print(table)
    settings = _searched(network, split, storage) if with_search else None
    grid = compare.break_even(forms=forms[1:]) if with_map else None
    if grid is not None:
        _print_map(grid)
    if out_dir is not None:
        about = {"model": model or "the tale's network", "batch": batch}
        _write(out_dir, table, about, grid=grid, settings=settings)


def _say(text: str) -> None:
    err.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)


def _stop(text: str, *, code: int) -> NoReturn:
    """Say in one line what is wrong and end the command."""
    _say(text)
    raise typer.Exit(code)


def _check_range(option: str, given: int, last: int) -> None:
    if not 1 <= given <= last:
        raise ValueError(f"{option} must be in 1..{last}, got {given}")


def _forms(names: list[str] | None, with_map: bool) -> tuple:
    """Forms by name; float always comes first: all is compared with it."""
    from qtorch_tutorial.convert import FORMS, LAMPS  # late: needs torch.ao

    by_name = {form.name: form for form in FORMS}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"unknown form {name!r}; known are {', '.join(by_name)}")
    wanted = {"float", *(names or (form.name for form in LAMPS))}
    if with_map and wanted == {"float"}:
        raise ValueError("--map compares float with other forms; only float was given")
    return tuple(form for form in FORMS if form.name in wanted)


def _tale(epochs: int, features: int | None) -> tuple[nn.Module, data.Split]:
    """Train the tale's network on the digits."""
    if features is not None:
        raise ValueError(f"--shape {features} belongs to --model, which is missing")
    rng = repro.generator(0)
    split = data.digits()
    network = models.make_tale_network(rng=rng)
    train.fit(network, split, epochs=epochs, lr=1e-3, rng=rng)
    return network, split


def _check_storage(url: str, with_search: bool) -> None:
    """Open the storage of a search before any work is done."""
    if not with_search:
        raise ValueError(f"--storage {url} belongs to --search, which is missing")
    from qtorch_tutorial import search  # late: needs torch.ao

    search.open_storage(url)


def _searched(
    network: nn.Module, split: data.Split, storage: str | None
) -> pd.DataFrame:
    """Try all settings and print the best; what has finished if it is stopped."""
    from qtorch_tutorial import search  # late: needs torch.ao

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            settings = search.search(network, split, storage=storage)
    except ValueError as error:
        _stop(f"qtorch trial: {error}", code=2)
    for warning in caught:
        if warning.category is RuntimeWarning:
            _say(f"qtorch trial: {warning.message}")
    _print_front(settings)
    return settings


def _own(path: str, features: int | None) -> tuple[nn.Module, data.Split]:
    """Make the reader's model, with random inputs to compare it on."""
    if features is None:
        raise ValueError("--model needs --shape, the number of its input features")
    _check_range("--shape", features, 100_000)
    network = _made_by(path)
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"--model {path} must give an nn.Module, got {type(network).__name__}"
        )
    x = torch.rand(2 * OWN_ROWS, features, generator=repro.generator(0))
    no_classes = torch.full((OWN_ROWS,), float("nan"))
    return network, data.Split(x[:OWN_ROWS], no_classes, x[OWN_ROWS:], no_classes)


def _made_by(path: str) -> object:
    """Import the factory named ``package.module:factory`` and call it."""
    name, _, factory = path.partition(":")
    if not (name and factory):
        raise ValueError(f"--model needs package.module:factory, got {path!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        return getattr(importlib.import_module(name), factory)()
    except Exception as error:  # the reader's own code may raise anything
        raise ValueError(
            f"--model {path} failed: {type(error).__name__}: {error}"
        ) from error


def _print(table: pd.DataFrame) -> None:
    """Print one row per form."""
    # No lines and little padding: it fits 80 columns, where rich would cut numbers off.
    shown = Table(title="the lamps on trial", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.collapse_padding = True
    columns = ("form", "size\nkB", "file\nkB", "right", "as\nfloat", "SQNR\ndB")
    for column in (*columns, "time\nµs", "time / float\n[95 % interval]"):
        side = "left" if column == "form" else "right"
        shown.add_column(column.replace("[", r"\["), justify=side, overflow="fold")
    for name, row in table.iterrows():
        shown.add_row(
            str(name),
            f"{row.size_bytes / 1000:.1f}",
            f"{row.file_bytes / 1000:.1f}",
            "-" if pd.isna(row.accuracy) else f"{row.accuracy:.1%}",
            f"{row.agreement:.1%}",
            f"{row.sqnr_db:.1f}",
            f"{row.latency_us:.1f}",
            rf"{row.ratio:.2f} \[{row.low:.2f}, {row.high:.2f}]",
        )
    out.print(shown)


def _print_front(settings: pd.DataFrame) -> None:
    """Print the settings that no other beats."""
    front = settings[settings.on_front]
    title = f"the best of {len(settings)} settings: bytes against error"
    shown = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("observer", "weight", "range", "stay float"):
        shown.add_column(column, overflow="fold")
    for column in ("size\nkB", "error\n%"):
        shown.add_column(column, justify="right")
    for row in front.itertuples():
        shown.add_row(
            row.observer,
            row.granularity,
            "reduced" if row.reduce_range else "full",
            escape(", ".join(row.keep_float)) or "none",
            f"{row.size_bytes / 1000:.1f}",
            f"{100 * row.error:.2f}",
        )
    out.print(shown)


def _print_map(grid: pd.DataFrame) -> None:
    """Print time over float's for every width and batch, one table for each form."""
    for form, rows in grid.groupby("form", sort=False):
        widths = sorted(rows.width.unique())
        shown = Table(title=f"{form}: time / float ('=': no difference)")
        shown.add_column("batch", justify="right")
        for width in widths:
            shown.add_column(str(width), justify="right")
        for batch, cells in rows.groupby("batch"):
            by_width = cells.set_index("width")
            shown.add_row(
                str(batch),
                *(
                    "="
                    if by_width.verdict[w] == "no difference"
                    else f"{by_width.ratio[w]:.2f}"
                    for w in widths
                ),
            )
        out.print(shown)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        _stop(f"qtorch trial: cannot write to {folder}: {reason}", code=1)


def _check_writable(folder: Path) -> None:
    """Try to write where ``folder`` is or will be, before any work is done."""
    with _writing_to(folder):
        tempfile.TemporaryFile(dir=_existing(folder)).close()


def _existing(folder: Path) -> Path:
    """Give the folder itself, or the nearest one above it that exists."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def _write(
    folder: Path,
    table: pd.DataFrame,
    about: dict,
    *,
    grid: pd.DataFrame | None = None,
    settings: pd.DataFrame | None = None,
) -> None:
    """Write tables as CSV and JSON and figures as PNG, all or none."""
    from qtorch_tutorial import plot  # late: matplotlib takes a second to load

    files: dict[str, Callable[[Path], object]] = {
        "trial.csv": table.to_csv,
        "trial.json": lambda path: path.write_text(_as_json(table, about)),
    }
    fig, axes = plot.figure(3)
    plot.trial(axes, table)
    files["trial.png"] = fig.savefig
    if grid is not None:
        files["map.csv"] = lambda path: grid.to_csv(path, index=False)
        for form in grid.form.unique():
            fig, ax = plot.figure()
            plot.break_even_map(ax, grid, form, title=f"{form}: time over float's")
            files[f"map_{form}.png"] = fig.savefig
    if settings is not None:
        files["search.csv"] = lambda path: settings.to_csv(path, index=False)
        fig, ax = plot.figure()
        plot.front(ax, settings, title="bytes against error")
        files["search.png"] = fig.savefig
    # Finished beside the folder, then moved: an interrupted write leaves nothing.
    with (
        _writing_to(folder),
        tempfile.TemporaryDirectory(dir=_existing(folder)) as unfinished,
    ):
        for name, save in files.items():
            save(Path(unfinished) / name)
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            (Path(unfinished) / name).replace(folder / name)
    out.print(f"written to {folder}: {', '.join(files)}", markup=False, soft_wrap=True)


def _as_json(table: pd.DataFrame, about: dict) -> str:
    """Rows of the table, with what was measured and on what."""
    rows = json.loads(table.reset_index().to_json(orient="records"))
    facts = about | {"measured_on": asdict(repro.probe()), "rows": rows}
    return json.dumps(facts, indent=2)


if __name__ == "__main__":
    app()
