"""cli: what it prints and writes; one clear line for each mistake, and no remains."""

import csv
import errno
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from typer.testing import CliRunner

from qtorch_tutorial import cli, compare, measure, repro

OWN_MODELS = """
import torch
from torch import nn
from qtorch_tutorial import convert

NO_FUNCTION = 3

class Picky(nn.Linear):
    def forward(self, x):
        raise IndexError("not this one")

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

def other():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

def fails():
    raise KeyError("no weights here")

def nothing():
    return {"weights": 1}

def no_linear():
    return nn.ReLU()

def converted():
    return convert.to_dynamic(net())

def on_a_device():
    return net().to("meta")

def with_nan():
    model = net()
    model[0].bias.data[0] = float("nan")
    return model

def picky():
    return nn.Sequential(nn.Linear(6, 6), Picky(6, 3))

def flat():
    return nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
"""


@pytest.fixture(autouse=True)
def _own_models(tmp_path, monkeypatch):
    """Stand in a folder with a module of models, as a reader would."""
    (tmp_path / "own_models.py").write_text(OWN_MODELS)
    (tmp_path / "broken_models.py").write_text("this is no Python\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "80")
    yield
    sys.modules.pop("own_models", None)
    plt.close("all")


def qtorch(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def trial(*arguments):
    """Run ``qtorch trial`` on a small model, which takes no training."""
    return qtorch("trial", "--model", "own_models:net", "--shape", 6, *arguments)


def read_csv(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def complaint(result):
    """The one line that a refused command says, without progress bars."""
    lines = [s for s in re.split(r"[\r\n]+", result.stderr) if s and "|" not in s]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


# --- doctor ----------------------------------------------------------------------


def test_the_doctor_shows_what_the_probe_finds():
    result = qtorch("doctor")
    here = repro.probe()
    assert result.exit_code == 0
    assert result.stderr == ""
    shown = " ".join(result.stdout.split())
    found = (here.python, here.torch, *here.engines, *here.instructions)
    for value in (*found, f"threads │ {here.threads} ", f"engine │ {here.engine} "):
        assert value in shown
    assert re.search(r"chapters 01 to 13 +│ run", result.stdout)


@pytest.mark.parametrize(
    ("engine", "told"), [("x86", "as printed"), ("qnnpack", "other digits")]
)
def test_the_doctor_says_whether_numbers_will_be_those_printed(engine, told):
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this build has no {engine}")
    with repro.engine(engine):
        result = qtorch("doctor")
    (row,) = [r for r in result.stdout.splitlines() if "01 to 13" in r]
    assert told in row


@pytest.mark.parametrize(
    ("kind", "attribute", "value", "message"),
    [
        (
            type(torch.backends.quantized),
            "supported_engines",
            ["none"],
            "missing: quantized engine. This build of torch has none. Install torch",
        ),
        (repro, "_instructions", lambda: ("AVX-512",), "missing: AVX2. Engine x86 nee"),
        (
            repro,
            "MODULES",
            ("torch.ao.none",),
            "missing: torch.ao. torch .* pip install",
        ),
    ],
    ids=["no-engine", "no-avx2", "no-torch-ao"],
)
def test_the_doctor_names_what_is_missing_with_its_remedy(
    kind, attribute, value, message, monkeypatch
):
    monkeypatch.setattr(kind, attribute, value)
    result = qtorch("doctor")
    assert result.exit_code == 1
    assert re.match(message, complaint(result))
    assert "cannot run" in result.stdout


def test_the_doctor_names_a_package_that_is_missing(monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(repro, "version", version)
    result = qtorch("doctor")
    assert result.exit_code == 1
    assert complaint(result) == "missing: torchvision. Remedy: pip install torchvision"


WITHOUT_TORCH_AO = """
import sys
import torch

GONE = ("torch.ao.quantization", "torch.ao.nn.quantized", "torch.ao.nn.intrinsic")
for name in [m for m in sys.modules if m.startswith("torch.ao")]:
    del sys.modules[name]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(GONE):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
from qtorch_tutorial import cli
cli.app(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["doctor", "trial"])
def test_where_torch_ao_is_gone_one_line_says_so(command):
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH_AO, command],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert "has no torch.ao.quantization" in ran.stderr
    assert f"pip install 'torch=={repro.LAST_TORCH_WITH_AO}.*'" in ran.stderr


# --- trial: what it prints and writes --------------------------------------------


def test_the_tales_network_is_trained_compared_and_written(tmp_path):
    folder = tmp_path / "new" / "results"
    arguments = ("--epochs", "2", "--out", str(folder))
    ran = subprocess.run(
        [sys.executable, "-m", "qtorch_tutorial.cli", "trial", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert ran.returncode == 0, ran.stderr
    assert "fit: 100%" in ran.stderr
    files = {path.name: path for path in folder.iterdir()}
    assert set(files) == {"trial.csv", "trial.json", "trial.png"}
    rows = read_csv(files["trial.csv"])
    assert [row["form"] for row in rows] == ["float", "dynamic", "static", "fused"]
    assert all(0.8 < float(row["accuracy"]) < 1 for row in rows)
    assert int(rows[0]["size_bytes"]) == (785 * 256 + 257 * 256 + 257 * 10) * 4
    facts = json.loads(files["trial.json"].read_text())
    assert facts["model"] == "the tale's network"
    assert facts["measured_on"]["torch"] == torch.__version__
    assert [row["size_bytes"] for row in facts["rows"]] == [
        int(row["size_bytes"]) for row in rows
    ]
    assert files["trial.png"].read_bytes().startswith(b"\x89PNG")
    for row in rows:  # no number of the table is cut off at 80 columns
        printed = next(
            s for s in ran.stdout.splitlines() if s.split()[:1] == [row["form"]]
        )
        assert f"{int(row['size_bytes']) / 1000:.1f}" in printed
        assert f"{float(row['accuracy']):.1%}" in printed
        assert f"[{float(row['low']):.2f}, {float(row['high']):.2f}]" in printed


def test_large_numbers_fit_80_columns_too(capsys):
    row = {"size_bytes": 12_345_678, "file_bytes": 23_456_789, "accuracy": 0.9}
    row |= {"agreement": 1.0, "sqnr_db": 44.4, "latency_us": 12_345.6}
    row |= {"ratio": 12.34, "low": 10.2, "high": 15.5}
    cli._print(pd.DataFrame([row], index=["dynamic"]))
    (line,) = [s for s in capsys.readouterr().out.splitlines() if "dynamic" in s]
    assert line.split() == [
        *("dynamic", "12345.7", "23456.8", "90.0%", "100.0%", "44.4", "12345.6"),
        *("12.34", "[10.20,", "15.50]"),
    ]


def test_a_model_of_ones_own_has_no_accuracy(monkeypatch):
    asked = {}
    compare_all = compare.compare

    def watched(model, split, **options):
        asked.update(options)
        return compare_all(model, split, **options)

    monkeypatch.setattr(compare, "compare", watched)
    result = trial("--out", "results", "--batch", 4)
    assert result.exit_code == 0, result.stderr
    assert asked["batch"] == 4
    rows = read_csv("results/trial.csv")
    assert [row["accuracy"] for row in rows] == [""] * 4
    assert float(rows[0]["agreement"]) == 1
    facts = json.loads(Path("results/trial.json").read_text())
    assert (facts["model"], facts["batch"]) == ("own_models:net", 4)
    assert facts["rows"][0]["sqnr_db"] is None  # infinite, and JSON knows no infinity


@pytest.mark.parametrize("names", [["fused", "dynamic"], ["float"], []])
def test_float_comes_first_and_each_form_once(names):
    options = [part for name in [*names, *names] for part in ("--form", name)]
    result = trial(*options)
    rows = [s.split()[0] for s in result.stdout.splitlines() if "[" in s][1:]
    everything = ["float", "dynamic", "static", "fused"]
    wanted = {"float", *(names or everything)}
    assert rows == [name for name in everything if name in wanted]


def test_the_map_takes_the_whole_grid_and_the_forms_that_were_named(monkeypatch):
    asked = {}

    def small(**options):
        asked.update(options)
        grid = {"widths": (16, 32), "batches": (1, 2), "rounds": 6}
        return break_even(**grid, **options)

    break_even = compare.break_even
    monkeypatch.setattr(compare, "break_even", small)
    result = trial("--map", "--form", "static", "--out", "results")
    assert result.exit_code == 0, result.stderr
    assert [form.name for form in asked.pop("forms")] == ["static"]
    assert asked == {}  # widths, batches and rounds are left at their defaults
    names = {path.name for path in Path("results").iterdir()}
    assert names == {
        "trial.csv",
        "trial.json",
        "trial.png",
        "map.csv",
        "map_static.png",
    }
    cells = read_csv("results/map.csv")
    assert [(c["width"], c["batch"]) for c in cells] == [
        ("16", "1"),
        ("16", "2"),
        ("32", "1"),
        ("32", "2"),
    ]
    assert "map" in result.stderr or "%" in result.stderr  # the bar
    table = result.stdout[result.stdout.index("static: time / float") :]
    for cell in cells:
        same = cell["verdict"] == "no difference"
        assert ("=" if same else f"{float(cell['ratio']):.2f}") in table


# --- trial: the search -----------------------------------------------------------


def test_the_search_prints_its_front_and_writes_all():
    result = trial("--search", "--storage", "sqlite:///search.db", "--out", "results")
    assert result.exit_code == 0, result.stderr
    names = {path.name for path in Path("results").iterdir()}
    assert names >= {"trial.csv", "search.csv", "search.png"}
    rows = read_csv("results/search.csv")
    front = [row for row in rows if row["on_front"] == "True"]
    assert len(rows) == 12 * 2  # every setting, with no layer or one layer float
    title = f"the best of {len(rows)} settings"
    table = result.stdout[result.stdout.index(title) :].splitlines()
    printed = [line.split() for line in table if " per " in line]
    assert len(printed) == len(front) > 0
    for words, row in zip(printed, front, strict=True):
        assert words[-2:] == [
            f"{int(row['size_bytes']) / 1000:.1f}",
            f"{100 * float(row['error']):.2f}",
        ]
        assert ("reduced" in words) == (row["reduce_range"] == "True")


def test_a_stopped_search_says_so_and_goes_on(monkeypatch):
    options = ("--search", "--storage", "sqlite:///search.db")
    size_bytes, calls = measure.size_bytes, []

    def stopped(model):
        calls.append(model)
        if len(calls) == 20:  # 4 rows of the trial, 2 layers alone, and 13 settings
            raise KeyboardInterrupt
        return size_bytes(model)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "size_bytes", stopped)
        result = trial(*options)
    assert result.exit_code == 0, result.stderr
    assert "the search was stopped: 13 settings have finished of 24" in result.stderr
    assert "the best of 13 settings" in result.stdout
    monkeypatch.setattr(
        measure, "size_bytes", lambda m: calls.append(m) or size_bytes(m)
    )
    calls.clear()
    assert "the best of 24 settings" in trial(*options).stdout
    assert len(calls) == 4 + 2 + 11


def test_a_storage_of_another_model_is_refused():
    options = ("--search", "--storage", "sqlite:///search.db")
    assert trial(*options).exit_code == 0
    result = qtorch("trial", *with_own("other"), *options)
    assert result.exit_code == 2
    assert "holds a search with another model and data" in complaint(result)


# --- trial: what it refuses ------------------------------------------------------


def with_own(name, *more):
    return ("--model", f"own_models:{name}", "--shape", 6, *more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--form", "int4"),
            "unknown form 'int4'; known are float, dynamic, static, f",
        ),
        (("--batch", 0), r"--batch must be in 1\.\.512, got 0"),
        (("--batch", 513), r"--batch must be in 1\.\.512, got 513"),
        (("--batch", -1), r"--batch must be in 1\.\.512, got -1"),
        (("--epochs", 0), r"--epochs must be in 1\.\.1000, got 0"),
        (("--shape", 6), "--shape 6 belongs to --model, which is missing"),
        (
            ("--storage", "sqlite:///search.db"),
            "--storage sqlite:///search.db belongs to --search, which is missing",
        ),
        (
            ("--search", "--storage", "nonsense"),
            "the storage nonsense cannot be used: Could not parse",
        ),
        (
            ("--search", "--storage", "sqlite:////no/such/folder/search.db"),
            "search.db cannot be used: .*unable to open database file",
        ),
        (("--map", "--form", "float"), "--map compares float with other forms"),
        (("--model", "own_models:net"), "--model needs --shape, the number of its in"),
        (with_own("net", "--shape", 0), r"--shape must be in 1\.\.100000, got 0"),
        (with_own("net", "--shape", 7), r"does not take test_x of shape \(512, 7\)"),
        (
            ("--model", "own_models", "--shape", 6),
            "needs package.module:factory, got 'own_models'",
        ),
        (("--model", ":net", "--shape", 6), "package.module:factory, got ':net'"),
        (("--model", "no_such:net", "--shape", 6), "no_such:net failed: ModuleNotFou"),
        (("--model", "broken_models:net", "--shape", 6), "net failed: SyntaxError"),
        (with_own("missing"), "own_models:missing failed: AttributeError: .*'missing'"),
        (with_own("NO_FUNCTION"), "failed: TypeError: 'int' object is not callable"),
        (with_own("fails"), "own_models:fails failed: KeyError: 'no weights here'"),
        (with_own("nothing"), "own_models:nothing must give an nn.Module, got dict"),
        (with_own("no_linear"), "has no nn.Linear layer"),
        (with_own("converted"), "already quantized or prepared: '0' is"),
        (
            with_own("on_a_device"),
            "is on device meta; quantized kernels run on the CPU",
        ),
        (with_own("with_nan"), "'0.bias' holds a NaN or an infinity"),
        (with_own("picky"), "does not take test_x of shape .* not this one"),
        (with_own("flat"), "one finite tensor of shape"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_bad_input_gets_one_line_and_leaves_nothing(arguments, message, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = qtorch("trial", *arguments, "--out", tmp_path / "results")
    assert result.exit_code == 2, result.output
    line = complaint(result)
    assert line.startswith("qtorch trial: ")
    assert re.search(message, line)
    assert result.stdout == ""
    remains = [p for p in sorted(tmp_path.iterdir()) if p.name != "__pycache__"]
    assert remains == before


def test_bad_input_is_refused_before_anything_is_trained():
    assert "fit" not in qtorch("trial", "--batch", 0).stderr


@pytest.mark.parametrize("value", ["x", "1.5"])
def test_a_batch_that_is_no_integer_is_refused(value):
    result = qtorch("trial", "--batch", value)
    assert result.exit_code == 2
    assert "Invalid value for '--batch'" in result.stderr


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("own_models.py", "Not a directory"),
        ("own_models.py/below/it", "Not a directory"),
        ("/proc/qtorch", "No such file or directory"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_at_once(folder, reason):
    result = qtorch("trial", "--out", folder)
    assert result.exit_code == 1
    assert complaint(result) == f"qtorch trial: cannot write to {folder}: {reason}"
    assert result.stdout == ""


def test_the_installed_command_refuses_in_one_line_too(tmp_path):
    command = Path(sys.executable).parent / "qtorch"
    if not command.exists():
        pytest.skip("the package is on the path, but not installed")
    ran = subprocess.run(
        [command, "trial", "--form", "int4"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("qtorch trial: unknown form 'int4'; known are float")
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("old", [False, True], ids=["new", "there"])
@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=["disk-full", "ctrl-c"],
)
def test_an_interrupted_write_leaves_nothing(stop, code, old, tmp_path, monkeypatch):
    folder = tmp_path / "deep" / "results"
    if old:
        folder.mkdir(parents=True)
        (folder / "trial.csv").write_text("of another trial")

    def savefig(self, path):
        Path(path).write_bytes(b"half a figure")
        raise stop

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Figure, "savefig", savefig)
    result = trial("--out", folder)
    assert result.exit_code == code
    if code == 1:
        reason = "No space left on device"
        assert complaint(result) == f"qtorch trial: cannot write to {folder}: {reason}"
    remains = [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)]
    assert remains == before
    if old:
        assert (folder / "trial.csv").read_text() == "of another trial"


def test_an_earlier_trial_is_replaced():
    Path("results").mkdir()
    Path("results/trial.csv").write_text("of another trial")
    assert trial("--out", "results").exit_code == 0
    assert Path("results/trial.csv").read_text().startswith("form,module")
    assert {p.name for p in Path("results").iterdir()} == {
        "trial.csv",
        "trial.json",
        "trial.png",
    }


def test_an_engine_that_this_build_lacks_is_refused(monkeypatch):
    kind = type(torch.backends.quantized)
    monkeypatch.setattr(kind, "supported_engines", ["none"])
    result = trial()
    assert result.exit_code == 2
    assert "is not supported here; supported are none at all" in complaint(result)


def test_help_names_every_command_and_option():
    assert {"doctor", "trial"} <= set(qtorch("--help").stdout.split())
    shown = qtorch("trial", "--help").stdout
    for option in ("model", "shape", "form", "batch", "epochs", "out", "map", "search",
                   "storage"):  # fmt: skip
        assert f"--{option} " in shown
