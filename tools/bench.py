"""Print the performance table: ``make bench``.

    python tools/bench.py                    every part, some minutes
    python tools/bench.py html latency       these parts

No row is a test: a time depends on what else the machine does. A goal that is not
reached is printed as "missed", and the exit code is 0.
"""

import copy
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import nbformat
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.ao import quantization as tq

from qtorch_tutorial import convert, measure, models, repro

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
NBVAL = ["-m", "pytest", "-n2", "--dist=loadscope", "-pno:cacheprovider", "--nbval"]
NBVAL += ["--nbval-current-env", "--nbval-cell-timeout=120"]
NBVAL += [f"--nbval-sanitize-with={ROOT / 'tests' / 'sanitize.cfg'}"]
MODULES = "affine, tale, repro, data, models, layers, measure, train, convert, compare"


class Row(NamedTuple):
    """One line of the table; ``met`` says whether the goal was reached."""

    what: str
    goal: str
    measured: str
    met: bool


def seconds(*command: str, folder: Path = ROOT) -> float:
    """Time a command of this environment; what it said is the error if it fails."""
    start = time.perf_counter()
    program = Path(sys.executable).parent / command[0]
    ran = subprocess.run(
        [program, *command[1:]], cwd=folder, text=True, capture_output=True
    )
    if ran.returncode:
        said = (ran.stdout + ran.stderr).strip()
        raise RuntimeError(f"{command[0]} failed: ... {said[-200:]}")
    return time.perf_counter() - start


def nbval() -> list[Row]:
    """Run every cell of every chapter, and as many notebooks that only import."""
    with tempfile.TemporaryDirectory() as folder:
        for path in CHAPTERS:
            nbformat.write(importing_notebook(), Path(folder) / path.name)
        base = seconds("python", *NBVAL, ".", folder=Path(folder))
    ratio = (whole := seconds("python", *NBVAL, "chapters")) / base
    what = f"nbval over {len(CHAPTERS)} chapters / notebooks that only import"
    shown = f"{ratio:.2f} ({whole:.0f} s / {base:.0f} s)"
    return [Row(what, "<= 2.5", shown, ratio <= 2.5)]


def importing_notebook() -> nbformat.NotebookNode:
    """Make a notebook that imports what a chapter imports and does nothing."""
    cell = nbformat.v4.new_code_cell("import torch, torchvision, qtorch_tutorial")
    return nbformat.v4.new_notebook(cells=[cell])


def html() -> list[Row]:
    """Build a copy of the book, edit a chapter, build again; weigh the pages."""
    build = ("jupyter-book", "build", ".", "-n", "--keep-going")
    with tempfile.TemporaryDirectory() as name:
        copied = Path(name)
        for part in ("book", "chapters"):
            shutil.copytree(ROOT / part, copied / part)
        for part in ("_config.yml", "_toc.yml"):
            shutil.copy(ROOT / part, copied)
        whole = seconds(*build, folder=copied)
        edit(copied / "chapters" / CHAPTERS[-1].name)
        again = seconds(*build, folder=copied)
        pages = (copied / "_build" / "html" / "chapters").glob("*.html")
        size, page = max((page_bytes(path) / 1000, path.stem) for path in pages)
    return [
        Row("HTML of the whole book", "<= 30 s", f"{whole:.1f} s", whole <= 30),
        Row("HTML after editing a chapter", "<= 10 s", f"{again:.1f} s", again <= 10),
        Row("largest page", "<= 600 kB", f"{size:.0f} kB ({page})", size <= 600),
    ]


def edit(path: Path) -> None:
    """Add a sentence to a notebook, as an author would."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\nOne more sentence."
    nbformat.write(notebook, path)


def page_bytes(page: Path) -> int:
    """Count the bytes of a page and of each image that it shows, once each."""
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r'<img[^>]* src="([^":]+)"', text))
    images = {(page.parent / name).resolve() for name in names}
    return page.stat().st_size + sum(image.stat().st_size for image in images)


def imports() -> list[Row]:
    """Time imports in fresh processes, in turns."""
    codes = ["import torch", "import qtorch_tutorial"]
    codes += [f"from qtorch_tutorial import {MODULES}"]
    rounds = [[seconds("python", "-c", code) for code in codes] for _ in range(7)]
    base, package, modules = map(statistics.median, zip(*rounds, strict=True))
    ratio, every = package / base, modules / base
    shown = f"{ratio:.2f} (with all modules but plot {every:.2f})"
    what = "import qtorch_tutorial / import torch"
    return [Row(what, "<= 1.1", shown, ratio <= 1.1)]


def conversion() -> list[Row]:
    """Time models of ``convert`` against models converted by hand, 27 pairs of them.

    Where its tensors lie in memory makes a model some percent faster or slower, so each
    pair is made anew, and which of the two is made first is drawn.
    """
    rng = repro.generator(0)
    network, x = models.make_tale_network(rng=rng), torch.rand(512, 784, generator=rng)
    ratios = []
    for _ in range(27):
        makers = [convert.to_static, by_hand]
        random.shuffle(makers)
        made = {make.__name__: make(network, calibration=x) for make in makers}
        hand, ours = made["by_hand"], made["to_static"]
        calls = {"hand": lambda m=hand: m(x[:1]), "ours": lambda m=ours: m(x[:1])}
        ratios.append(measure.latency(calls, rounds=10)["ours"].ratio)
    low, high = interval(ratios)
    shown = f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
    what = "latency: converted / converted by hand"
    return [Row(what, "1 in the interval", shown, low <= 1 <= high)]


def by_hand(model: nn.Sequential, *, calibration: torch.Tensor) -> nn.Module:
    """Take torch's own steps, as its documentation lists them."""
    made = nn.Sequential(tq.QuantStub(), *copy.deepcopy(model), tq.DeQuantStub()).eval()
    with repro.quiet(), torch.no_grad():
        made.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
        tq.prepare(made, inplace=True)(calibration)
        return tq.convert(made, inplace=True)


def interval(ratios: list[float]) -> tuple[float, float]:
    """Enclose the true median of 27 values with a confidence of 98 %."""
    ordered = sorted(ratios)
    return ordered[7], ordered[-8]  # order statistics; see measure.latency


def latency() -> list[Row]:
    """Time one callable against itself, a hundred times over."""
    layer, x = nn.Linear(256, 256), torch.rand(1, 256)
    start, held = time.perf_counter(), 0
    for _ in range(100):
        again = measure.latency({"a": lambda: layer(x), "b": lambda: layer(x)})["b"]
        held += again.low <= 1 <= again.high
    took = time.perf_counter() - start
    return [
        Row("A/A: intervals that contain 1", ">= 95 of 100", f"{held}", held >= 95),
        Row("A/A: time for the hundred", "< 20 s", f"{took:.1f} s", took < 20),
    ]


PARTS = {part.__name__: part for part in (nbval, html, imports, conversion, latency)}


def run(name: str) -> list[Row]:
    """Measure one part; what cannot be measured is missed, and the row says why."""
    try:
        return PARTS[name]()
    except Exception as error:
        return [Row(name, "it runs", f"{type(error).__name__}: {error}", False)]


def table(rows: list[Row]) -> Table:
    """Lay the rows out."""
    shown = Table("what", "goal", "measured", "verdict", title="make bench")
    for row in rows:
        verdict = "[green]met[/]" if row.met else "[bold red]missed[/]"
        shown.add_row(row.what, row.goal, row.measured.replace("[", r"\["), verdict)
    return shown


def main(names: list[str]) -> None:
    """Measure the parts named, or all of them, and print the table."""
    if unknown := set(names) - set(PARTS):
        sys.exit(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    console, rows = Console(), []
    for name in names or PARTS:
        with console.status(f"measuring: {name}"):
            rows += run(name)
    console.print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
