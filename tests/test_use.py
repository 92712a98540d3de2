"""The package holds nothing that neither a chapter nor the command line uses.

A name is used if code that is used mentions it. That starts from the code cells of all
chapters and from the command line, and follows the package's own code from there.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")

ROOT = Path(__file__).parents[1]
NAME = "qtorch_tutorial"

ALLOWED = {
    "data.fashion_mnist": "optional: for readers with a network; no chapter needs it",
    "checks.Wrong": "raised by every check, caught by tests and by instructors' code",
}
"""Names that may be unused, each with its reason."""

CALLED_BY_TORCH = ("forward", "backward", "extra_repr")
"""Methods of modules and autograd functions."""

EXERCISE = re.compile(r"ch\d\d\.\w+")
"""check("ch04.ex1", ...) reaches an exercise by its name."""

Use = tuple[str, str]  # a module ("measure", "checks.ch04") and a name in it


def package_sources() -> dict[str, str]:
    """Source of each module by its name inside the package."""
    folder = ROOT / NAME
    sources = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").rstrip(".")
        if name:
            sources[name] = path.read_text(encoding="utf-8")
    return sources


def chapter_source(path: Path) -> str:
    """All code cells of a notebook as one module, without IPython's commands."""
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", code)


def meanings(tree: ast.Module) -> dict[str, str]:
    """What a local name means: ``measure`` or ``measure.latency``, by the imports."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{NAME}."):
                    inside = alias.name.removeprefix(f"{NAME}.")
                    found[alias.asname or alias.name] = inside
        elif isinstance(node, ast.ImportFrom) and node.module:
            package, _, inside = node.module.partition(".")
            if package == NAME:
                for alias in node.names:
                    full = f"{inside}.{alias.name}" if inside else alias.name
                    found[alias.asname or alias.name] = full
    return found


def mentions(node: ast.AST, known: dict[str, str], own: set[Use]) -> Iterator[Use]:
    """Names of the package that a piece of code mentions."""
    here = {name: f"{module}.{name}" for module, name in own}
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield split(known.get(part.id) or here.get(part.id, ""))
        elif isinstance(part, ast.Attribute):
            yield split(f"{known.get(ast.unparse(part.value), '')}.{part.attr}")
        elif isinstance(part, ast.Constant) and EXERCISE.fullmatch(str(part.value)):
            yield split(f"checks.{part.value}")


def split(full: str) -> Use:
    module, _, name = full.rpartition(".")
    return module, name


def definitions(module: str, tree: ast.Module) -> dict[Use, list[ast.AST]]:
    """Top-level functions, classes and constants, each with the code that makes it."""
    found: dict[Use, list[ast.AST]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [t.id for t in targets if isinstance(t, ast.Name)]
        else:
            continue
        for name in names:
            found.setdefault((module, name), []).append(node)
    return found


def used(package: dict[str, str], roots: list[str]) -> set[Use]:
    """All names of ``package`` that code of ``roots`` reaches, straight or through."""
    trees = {module: ast.parse(source) for module, source in package.items()}
    made = {m: definitions(m, tree) for m, tree in trees.items()}
    known = {m: meanings(tree) for m, tree in trees.items()}
    waiting: list[Use] = []
    for source in roots:
        tree = ast.parse(source)
        waiting += mentions(tree, meanings(tree), set())
    reached: set[Use] = set()
    while waiting:
        use = waiting.pop()
        module, _ = use
        if use in reached or use not in made.get(module, {}):
            continue
        reached.add(use)
        for node in made[module][use]:
            waiting += mentions(node, known[module], set(made[module]))
    return reached


def public(package: dict[str, str]) -> set[Use]:
    """Every name of ``package`` without an underscore in front."""
    return {
        use
        for module, source in package.items()
        for use in definitions(module, ast.parse(source))
        if not use[1].startswith("_")
    }


def unused(package: dict[str, str], roots: list[str]) -> set[str]:
    """Public names that nothing reaches, in full."""
    return {".".join(use) for use in public(package) - used(package, roots)}


def unused_methods(package: dict[str, str], roots: list[str]) -> set[str]:
    """Public methods and properties whose name no code mentions after a dot."""
    everything = [ast.parse(source) for source in (*package.values(), *roots)]
    spoken = {
        node.attr
        for tree in everything
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    }
    return {
        f"{module}.{kind.name}.{method.name}"
        for module, source in package.items()
        for kind in ast.parse(source).body
        if isinstance(kind, ast.ClassDef)
        for method in kind.body
        if isinstance(method, ast.FunctionDef)
        and not method.name.startswith("_")
        and method.name not in (*CALLED_BY_TORCH, *spoken)
    }


def everything() -> tuple[dict[str, str], list[str]]:
    """The package without the command line, and what may use it."""
    package = package_sources()
    chapters = sorted((ROOT / "chapters").glob("*.ipynb"))
    return package, [package.pop("cli"), *map(chapter_source, chapters)]


def test_every_name_is_used_by_a_chapter_or_the_command_line():
    assert unused(*everything()) - set(ALLOWED) == set()


def test_every_method_is_used():
    assert unused_methods(*everything()) == set()


def test_what_may_be_unused_exists():
    package, _ = everything()
    assert set(ALLOWED) <= {".".join(use) for use in public(package)}


# --- the law sees its fault ------------------------------------------------------

PACKAGE = {
    "low": "LIMIT = 3\nSPARE = 4\n"
    "def f():\n    return _g()\ndef _g():\n    return LIMIT",
    "mid": "from qtorch_tutorial import low\ndef h():\n    return low.f()",
    "checks.ch04": "def ex1(answer):\n    pass",
}


@pytest.mark.parametrize(
    ("root", "left"),
    [
        ("", {"low.f", "low.LIMIT", "low.SPARE", "mid.h", "checks.ch04.ex1"}),
        ("from qtorch_tutorial.low import f", {"f", "LIMIT", "SPARE", "h", "ex1"}),
        ("from qtorch_tutorial.low import f\nf()", {"SPARE", "h", "ex1"}),
        ("from qtorch_tutorial import low as l\nl.f()", {"SPARE", "h", "ex1"}),
        ("import qtorch_tutorial.low\nqtorch_tutorial.low.f()", {"SPARE", "h", "ex1"}),
        ("from qtorch_tutorial import mid\nmid.h()", {"SPARE", "ex1"}),
        ("check('ch04.ex1', f)", {"f", "LIMIT", "SPARE", "h"}),
        ("f()", {"f", "LIMIT", "SPARE", "h", "ex1"}),  # another f
    ],
)
def test_a_name_that_nothing_reaches_is_seen(root, left):
    found = unused(PACKAGE, [root])
    assert {name.split(".")[-1] for name in found} == {n.split(".")[-1] for n in left}


def test_a_method_that_nothing_names_is_seen():
    package = {"low": "class A:\n    def f(self): ...\n    def g(self): ..."}
    assert unused_methods(package, ["A().f()"]) == {"low.A.g"}


def test_a_magic_command_in_a_cell_is_passed_over(tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("if colab:\n    %pip install x"),
        nbformat.v4.new_markdown_cell("no code"),
        nbformat.v4.new_code_cell("!ls\ny = 5 % 3"),
    ]
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook, path)
    assert chapter_source(path) == "if colab:\n    pass\npass\ny = 5 % 3"
