"""The package's floor plan: imports only go down, and importing has no effect.

Each law is a function from source text to what breaks it, so that the tests below can
also feed it a faulty source and see it refuse.
"""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qtorch_tutorial"
NAME = "qtorch_tutorial"

FLOORS = (
    ("affine", "tale", "repro"),
    ("data", "models", "layers", "measure"),
    ("train", "convert"),
    ("compare", "search"),
    ("plot", "checks"),
    ("teach",),
    ("cli",),
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
SHARED_LINES = 1950
"""Lines of code on floors 0 to 4, the checks left out: about 1,500, the search and
fine-tuning."""

SOURCES = {
    str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
EACH = pytest.mark.parametrize("name", SOURCES)


# --- imports ---------------------------------------------------------------------


def place(name: str) -> str:
    """The module of the plan that a file belongs to: ``checks/ch04.py`` to checks."""
    return name.removesuffix(".py").split("/")[0]


def imports(source: str) -> list[tuple[int, str]]:
    """Line and full name of every import, late ones too; a relative one is refused."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full"
            if node.module == NAME:
                names = [f"{NAME}.{alias.name}" for alias in node.names]
            else:
                names = [node.module]
            found += [(node.lineno, name) for name in names]
    return found


def wrong_ways(name: str, source: str) -> list[str]:
    """Imports of the package's modules that do not go down, in any spelling."""
    wrong = []
    for line, imported in imports(source):
        if imported.split(".")[0] == NAME:
            assert "." in imported, f"{name} line {line}: name the module"
            lower = imported.split(".")[1]
            inside = place(name) == lower == "checks"
            if not (inside or FLOOR[lower] < FLOOR[place(name)]):
                wrong.append(f"{name} line {line} -> {lower}")
    return wrong


@EACH
def test_imports_only_go_down(name):
    if name == "__init__.py":
        assert imports(SOURCES[name]) == []
    else:
        assert wrong_ways(name, SOURCES[name]) == []


@pytest.mark.parametrize(
    "source",
    [
        "import qtorch_tutorial.plot",
        "import qtorch_tutorial.plot as p",
        "from qtorch_tutorial import plot",
        "from qtorch_tutorial.plot import bars",
        "from qtorch_tutorial.checks.ch04 import ex1",
        "def f():\n    from qtorch_tutorial import plot  # late",
        "import os, qtorch_tutorial.cli",
        "from qtorch_tutorial import measure",  # its own floor
    ],
)
def test_an_import_that_goes_up_is_seen_in_every_spelling(source):
    assert len(wrong_ways("layers.py", source)) == 1
    assert wrong_ways("cli.py", source) == [] or "cli" in source


@pytest.mark.parametrize("source", ["from . import affine", "from .affine import QT"])
def test_a_relative_import_is_refused(source):
    with pytest.raises(AssertionError, match="in full"):
        wrong_ways("layers.py", source)


def test_the_package_as_a_whole_is_no_import():
    with pytest.raises(AssertionError, match="name the module"):
        wrong_ways("layers.py", "import qtorch_tutorial")


def test_a_module_without_a_place_is_refused():
    with pytest.raises(KeyError, match="novel"):
        wrong_ways("novel.py", "from qtorch_tutorial import affine")
    with pytest.raises(KeyError, match="novel"):
        wrong_ways("cli.py", "from qtorch_tutorial import novel")


def test_every_module_has_a_place():
    assert {place(name) for name in SOURCES} - {"__init__"} <= set(FLOOR)
    for name, levels in (("a.py", "a"), ("checks/ch04.py", "checks")):
        assert place(name) == levels


def late_without_reason(source: str) -> list[int]:
    """Lines of imports inside functions that have no comment on the line or above."""
    lines = source.splitlines()
    late = {
        node.lineno
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return sorted(
        n
        for n in late
        if "  # " not in lines[n - 1] and not lines[n - 2].lstrip().startswith("# ")
    )


@EACH
def test_a_late_import_says_why(name):
    assert late_without_reason(SOURCES[name]) == []


def test_a_late_import_without_a_reason_is_seen():
    source = "import os\ndef f():\n    x = 1\n    import sys\n"
    assert late_without_reason(source) == [4]
    assert late_without_reason(source.replace("sys", "sys  # slow")) == []
    assert late_without_reason(source.replace("x = 1", "# slow:")) == []


def test_only_plot_imports_matplotlib():
    users = {
        name
        for name, source in SOURCES.items()
        if any(module.split(".")[0] == "matplotlib" for _, module in imports(source))
    }
    assert users == {"plot.py"}


# --- effects of an import --------------------------------------------------------


def python(code: str) -> str:
    """Standard output of a fresh process."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == ""
    return ran.stdout


def test_importing_the_package_does_nothing_and_loads_nothing():
    code = (
        "import sys, warnings; before = set(sys.modules), list(warnings.filters)\n"
        "import qtorch_tutorial\n"
        "assert list(warnings.filters) == before[1]\n"
        "print(sorted(set(sys.modules) - before[0]))"
    )
    assert python(code) == "['qtorch_tutorial']\n"


def test_importing_its_modules_changes_no_state_and_says_nothing():
    modules = [name.removesuffix(".py") for name in SOURCES if "/" not in name]
    modules = [m for m in modules if m not in ("__init__", "plot")]
    # What they import themselves comes first: its effects are not ours.
    code = (
        "import os, random, sys, warnings, numpy, torch, torch.ao.quantization\n"
        "import pandas, rich.console, rich.table, torch.profiler, tqdm, typer\n"
        "def state():\n"
        "    return (torch.get_rng_state().tolist(), random.getstate(),\n"
        "            numpy.random.get_state()[1].tolist(), torch.get_num_threads(),\n"
        "            torch.backends.quantized.engine, torch.is_grad_enabled(),\n"
        "            torch.get_default_dtype(), dict(os.environ),\n"
        "            list(warnings.filters), os.getcwd())\n"
        "before = state()\n"
        f"import {', '.join(f'{NAME}.{module}' for module in modules)}\n"
        "assert state() == before\n"
        "print('matplotlib' in sys.modules)"
    )
    assert python(code) == "False\n"


def test_the_floors_below_compare_do_not_load_pandas():
    modules = [module for names in FLOORS[:3] for module in names]
    code = f"import sys, {', '.join(f'{NAME}.{module}' for module in modules)}\n"
    code += "print([m for m in ('pandas', 'matplotlib') if m in sys.modules])"
    assert python(code) == "[]\n"


# --- what a reader can ask of each piece -----------------------------------------


def undocumented(source: str) -> list[str]:
    """Public functions, classes and methods without a docstring."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    scopes = [("", tree)]
    for prefix, scope in scopes:
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_") and node.name != "__call__":
                continue
            if ast.get_docstring(node) is None:
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                scopes.append((f"{prefix}{node.name}.", node))
    return missing


@EACH
def test_everything_public_has_a_docstring(name):
    assert undocumented(SOURCES[name]) == []


def test_a_missing_docstring_is_seen():
    source = (
        '"""Doc."""\ndef f(): pass\ndef _g(): pass\n'
        'class A:\n    """Doc."""\n    def h(self): pass\n'
    )
    assert undocumented(source) == ["f", "A.h"]
    assert undocumented("x = 1") == ["the module"]


# --- size ------------------------------------------------------------------------


def code_lines(source: str) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    strings = set()
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone: a docstring, or the text below a constant.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            strings.update(range(node.lineno, node.end_lineno + 1))
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    silent = (*layout, tokenize.COMMENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - strings)


def test_a_line_of_code_is_neither_comment_nor_docstring_nor_blank():
    source = (
        '"""Doc\n\nmore."""\n\n# note\nX = 1  # one\n"""Of X."""\n'
        'def f(\n    a,\n):\n    """Doc."""\n\n    return """two\n    lines"""\n'
    )
    assert code_lines(source) == 1 + 3 + 2


def test_the_package_stays_small():
    lines = {
        name: code_lines(source)
        for name, source in SOURCES.items()
        if name != "__init__.py" and FLOOR[place(name)] <= 4
    }
    shared = sum(n for name, n in lines.items() if place(name) != "checks")
    assert shared <= SHARED_LINES, lines


def long_functions(source: str, limit: int = 40) -> list[str]:
    """Functions with more than ``limit`` lines of code."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and code_lines(ast.unparse(node)) > limit
    ]


@EACH
def test_a_function_is_read_at_a_glance(name):
    assert long_functions(SOURCES[name]) == []


def test_a_long_function_is_seen():
    assert long_functions("def f():\n" + "    x = 1\n" * 40) == ["f"]
    assert long_functions("def f():\n" + "    x = 1\n" * 39) == []
