"""The command line: ``qtorch doctor`` looks at this machine, ``qtorch trial`` compares.

Exit code 0: all is well. 1: something is missing or a file cannot be written. 2: the
command was given something it does not accept.
"""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from qtorch_tutorial import compare, data, models, repro, train
from qtorch_tutorial.convert import FORMS, Form

app = typer.Typer(
    help="Quantized linear modules of PyTorch: look at this machine, compare the forms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

REMEDIES = {
    "Python": "install Python 3.11 or newer",
    "torch.ao": f"pip install 'torch=={repro.LAST_TORCH_WITH_AO}.*'",
    "quantized engine": (
        "this build of torch has none: install torch from PyPI for x86-64 or ARM64"
    ),
    "AVX2": (
        "the engines x86 and fbgemm need it; on this processor set "
        "torch.backends.quantized.engine = 'qnnpack'"
    ),
}


@app.command()
def doctor() -> None:
    """Show what this machine has, and which chapters will run as printed."""
    findings, missing = _examine()
    table = Table(title="qtorch doctor", show_header=False)
    for name, value in findings:
        table.add_row(name, value)
    out.print(table)
    for name in missing:
        err.print(f"missing: {name}. Remedy: {REMEDIES[name]}", style="bold red")
    if missing:
        raise typer.Exit(1)


def _examine() -> tuple[list[tuple[str, str]], list[str]]:
    """Rows for the doctor's table, and the names of what is missing."""
    missing = [] if sys.version_info >= (3, 11) else ["Python"]
    try:
        here = repro.probe()
    except ImportError as error:
        return [("torch.ao", str(error))], [*missing, "torch.ao"]
    rows = [(name, _in_words(value)) for name, value in asdict(here).items()]
    if not here.engines:
        missing.append("quantized engine")
    fbgemm = here.engine in ("x86", "fbgemm")
    if fbgemm and "AVX2" not in here.instructions:
        missing.append("AVX2")
    as_printed = "as printed" if fbgemm else "with other last digits (engine qnnpack)"
    vnni = "VNNI" in here.instructions
    rows += [
        ("chapters 04, 05", "run as printed"),
        ("chapters 06 to 09", "cannot run" if missing else f"run {as_printed}"),
        ("onednn engine", "exact (VNNI)" if vnni else "saturates (no VNNI)"),
    ]
    return rows, missing


def _in_words(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


@app.command()
def trial(
    model: Annotated[
        str | None,
        typer.Option(help="your own model: package.module:factory"),
    ] = None,
    shape: Annotated[
        int | None, typer.Option(help="input features of your model")
    ] = None,
    form: Annotated[
        list[str] | None, typer.Option(help="a form to compare; repeat for more")
    ] = None,
    batch: Annotated[int, typer.Option(help="rows of a timed call")] = 1,
    epochs: Annotated[int, typer.Option(help="passes over the 4,000 digits")] = 10,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="write CSV, JSON and PNG here")
    ] = None,
    with_map: Annotated[
        bool, typer.Option("--map", help="add the break-even map (minutes)")
    ] = False,
) -> None:
    """Compare all forms of the tale's network, or of a model of your own.

    The tale's network is trained on the digits first. A model of your own is taken as
    it is and compared on random inputs, so its accuracy says nothing and is left out.
    """
    try:
        forms = _forms(form)
        _check_writable(out_dir)
        network, split = _own(model, shape) if model else _tale(epochs)
        table = compare.compare(network, split, forms=forms, batch=batch)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        err.print(f"qtorch trial: {error}", style="bold red", markup=False)
        raise typer.Exit(2) from error
    except OSError as error:
        err.print(
            f"qtorch trial: cannot write: {error}", style="bold red", markup=False
        )
        raise typer.Exit(1) from error
    _print(table)
    grid = compare.break_even() if with_map else None
    if grid is not None:
        _print_map(grid)
    if out_dir is not None:
        _write(out_dir, table, grid)


def _forms(names: list[str] | None) -> tuple[Form, ...]:
    """Forms by name; float always comes first: all is compared with it."""
    by_name = {form.name: form for form in FORMS}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"unknown form {name!r}; known are {', '.join(by_name)}")
    wanted = {"float", *(names or by_name)}
    return tuple(form for form in FORMS if form.name in wanted)


def _tale(epochs: int) -> tuple[nn.Module, data.Split]:
    """Train the tale's network on the digits."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    rng = repro.generator(0)
    split = data.digits()
    network = models.make_tale_network(rng=rng)
    train.fit(network, split, epochs=epochs, lr=1e-3, rng=rng)
    return network, split


def _own(path: str, features: int | None) -> tuple[nn.Module, data.Split]:
    """Make the reader's model, with random inputs to compare it on."""
    if features is None or features < 1:
        raise ValueError(f"--model needs --shape, its input features, got {features}")
    module, _, factory = path.partition(":")
    if not factory:
        raise ValueError(f"--model needs package.module:factory, got {path!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    network = getattr(importlib.import_module(module), factory)()
    rng = repro.generator(0)
    x = torch.rand(1024, features, generator=rng)
    no_classes = torch.full((512,), float("nan"))
    return network, data.Split(x[:512], no_classes, x[512:], no_classes)


def _check_writable(folder: Path | None) -> None:
    """Try to write where ``folder`` is or will be, before any work is done."""
    if folder is not None:
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        tempfile.TemporaryFile(dir=existing).close()


def _print(table: pd.DataFrame) -> None:
    """Print one row per form."""
    shown = Table(title="the lamps on trial")
    columns = ("form", "size kB", "file kB", "right", "as float", "dB", "µs")
    for column in (*columns, "time / float"):
        side = "left" if column == "form" else "right"
        shown.add_column(column, justify=side, no_wrap=True)
    for name, row in table.iterrows():
        accurate = "-" if pd.isna(row.accuracy) else f"{row.accuracy:.1%}"
        shown.add_row(
            str(name),
            f"{row.size_bytes / 1000:.1f}",
            f"{row.file_bytes / 1000:.1f}",
            accurate,
            f"{row.agreement:.1%}",
            f"{row.sqnr_db:.1f}",
            f"{row.latency_us:.1f}",
            f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]",
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


def _write(folder: Path, table: pd.DataFrame, grid: pd.DataFrame | None) -> None:
    """Write tables as CSV and JSON and figures as PNG, all or none."""
    from qtorch_tutorial import plot

    files: dict[str, Callable[[Path], object]] = {
        "trial.csv": table.to_csv,
        "trial.json": lambda path: path.write_text(_as_json(table)),
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
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        for name, save in files.items():
            save(Path(unfinished) / name)
        for name in files:
            (Path(unfinished) / name).replace(folder / name)
    out.print(f"written to {folder}: {', '.join(files)}", markup=False)


def _as_json(table: pd.DataFrame) -> str:
    """Rows of the table, with what they were measured on."""
    rows = json.loads(table.reset_index().to_json(orient="records"))
    return json.dumps({"measured_on": asdict(repro.probe()), "rows": rows}, indent=2)


if __name__ == "__main__":
    app()
