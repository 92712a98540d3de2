"""The project's laws around the code: one environment, one address, lists that agree.

A list that is kept twice is compared both ways, and every comparison is shown a copy
that differs: a guard that cannot fail is a defect.
"""

import copy
import doctest
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from qtorch_tutorial import cli

nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

import refresh  # noqa: E402
import set_repository  # noqa: E402


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(text_of("pyproject.toml"))["project"]
ENVIRONMENT = yaml.safe_load(text_of("environment.yml"))
README = text_of("README.md")


# ---- one environment, written down three times --------------------------------------

EXTRAS = ("lab", "book", "test")


def of_project(project):
    """What pyproject.toml asks for, with the extras of the conda environment."""
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(r for e in EXTRAS for r in extras[e])]


def of_conda(environment):
    """The pip section of environment.yml, without the package itself."""
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    return [line for line in pip if line != "-e ."]


def bounds(lines):
    """Each package with its bounds, in one spelling."""
    parsed = map(Requirement, lines)
    return {(canonicalize_name(r.name), str(r.specifier)) for r in parsed}


def differences(project, environment):
    return sorted(bounds(of_project(project)) ^ bounds(of_conda(environment)))


def test_conda_environment_and_pyproject_ask_for_the_same():
    assert differences(PROJECT, ENVIRONMENT) == []


def forget_in_conda(project, environment):
    environment["dependencies"][-1]["pip"].remove("torch>=2.11")


def add_in_conda(project, environment):
    environment["dependencies"][-1]["pip"].append("scipy>=1.10")


def add_in_pyproject(project, environment):
    project["optional-dependencies"]["test"].append("scipy>=1.10")


def raise_a_bound(project, environment):
    project["dependencies"][0] = "torch>=2.12"


def add_a_cap(project, environment):
    project["dependencies"][0] += ",<3"


@pytest.mark.parametrize(
    "change",
    [forget_in_conda, add_in_conda, add_in_pyproject, raise_a_bound, add_a_cap],
)
def test_a_difference_of_the_two_is_found(change):
    project, environment = copy.deepcopy((PROJECT, ENVIRONMENT))
    change(project, environment)
    assert differences(project, environment)


def test_the_conda_environment_installs_the_package_on_an_allowed_python():
    *conda, pip = ENVIRONMENT["dependencies"]
    (python,) = (d for d in conda if d.startswith("python="))
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])
    assert "-e ." in pip["pip"]


def pins(constraints):
    """Name and version of every line; an error for a line that pins nothing."""
    lines = [ln for ln in constraints.splitlines() if ln and not ln.startswith("#")]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.*+]+)", line).groups() for line in lines]
    assert len(dict(pairs)) == len(pairs), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_package_we_ask_for_is_pinned_within_its_bounds():
    pinned = pins(text_of("constraints.txt"))
    for line in of_project(PROJECT):
        wanted = Requirement(line)
        assert pinned[canonicalize_name(wanted.name)] in wanted.specifier


def test_no_package_of_one_platform_is_pinned():
    pinned = pins(text_of("constraints.txt"))
    platform = ("nvidia-", "cuda-", "triton", "qtorch")
    assert [name for name in pinned if name.startswith(platform)] == []


# ---- commands that the documentation and the workflows name -------------------------

PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("book/*.md"),
    *ROOT.glob("docs/**/*.md"),
]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
}
STEPS = [
    pytest.param(step, id=f"{name}-{job}-{number}")
    for name, workflow in WORKFLOWS.items()
    for job, content in workflow["jobs"].items()
    for number, step in enumerate(content["steps"])
]
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def commands(text, program):
    """Commands of ``program`` that stand in code or at a prompt of ``text``."""
    return set(re.findall(rf"(?:`|\$ ){program} ([a-z]+)", text))


def targets():
    return set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))


def runs(workflow):
    """What each job of a workflow runs, by the job's name."""
    return {
        name: [step["run"] for step in job["steps"] if "run" in step]
        for name, job in WORKFLOWS[workflow]["jobs"].items()
    }


def script(workflow, name):
    """The script of the step called ``name``."""
    steps = [s for job in WORKFLOWS[workflow]["jobs"].values() for s in job["steps"]]
    (step,) = (step for step in steps if step.get("name") == name)
    return step["run"]


def bash(text, folder, **environment):
    return subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_readme_gives_the_two_commands():
    assert {"book", "test"} <= commands(README, "make")


@page
def test_every_command_in_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    known = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    assert commands(text, "make") <= targets()
    assert commands(text, "qtorch") <= known


def test_a_command_in_code_or_at_a_prompt_is_seen_and_prose_is_not():
    assert commands("We make sure: `make book`\n$ make test  #", "make") == {
        "book",
        "test",
    }


@page
def test_every_relative_link_of_a_page_leads_to_a_file(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target


def test_workflows_run_the_commands_of_the_readme():
    assert all("make test" in ran for ran in runs("test").values())
    assert "make test" in runs("weekly")["newest"]
    assert "make book" in runs("book")["build"]
    for workflow in WORKFLOWS:
        ran = {run for job in runs(workflow).values() for run in job}
        made = {run.removeprefix("make ") for run in ran if run.startswith("make ")}
        assert made <= commands(README, "make")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_runs_one_thing_and_names_a_version_of_what_it_uses(step):
    assert len({"run", "uses"} & step.keys()) == 1
    assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/own@v1"))


def test_every_job_ends_by_itself():
    for workflow in WORKFLOWS.values():
        for job in workflow["jobs"].values():
            assert 0 < job["timeout-minutes"] <= 60


def test_workflows_test_the_python_of_the_outputs_and_that_of_colab():
    matrix = WORKFLOWS["test"]["jobs"]["test"]["strategy"]["matrix"]
    assert {"3.11", "3.13"} <= set(matrix["python"])


def constraints_of(workflow, step, folder):
    """Run a set-up step as far as the file of constraints that it makes."""
    made, _, _ = script(workflow, step).partition("python -m venv")
    result = bash(made, ROOT, RUNNER_TEMP=str(folder))
    assert result.returncode == 0, result.stderr
    (file,) = folder.iterdir()
    return pins(file.read_text())


def test_the_job_lowest_takes_the_lower_bounds_of_torch_and_nothing_else(tmp_path):
    lowered = constraints_of("test", "Set up with the lowest torch", tmp_path)
    bound = {
        Requirement(d).name: str(Requirement(d).specifier)
        for d in PROJECT["dependencies"]
    }
    for name in ("torch", "torchvision"):
        assert lowered.pop(name) == bound[name].replace(">=", "") + ".*"
    others = pins(text_of("constraints.txt"))
    assert lowered == {
        n: v for n, v in others.items() if n not in ("torch", "torchvision")
    }


def test_the_job_weekly_leaves_torch_free_and_nothing_else(tmp_path):
    free = constraints_of("weekly", "Set up with the newest torch", tmp_path)
    others = pins(text_of("constraints.txt"))
    assert others.keys() - free.keys() == {"torch", "torchvision"}
    assert free.items() <= others.items()


def test_the_week_looks_for_the_modules_before_it_tests():
    ran = runs("weekly")["newest"]
    assert ran.index(".venv/bin/qtorch doctor") < ran.index("make test")


@pytest.mark.parametrize(
    ("owner", "code"), [("OWNER", 1), ("you", 0)], ids=["placeholder", "real"]
)
def test_only_a_real_address_is_published(tmp_path, owner, code):
    config = text_of("_config.yml").replace(
        f"https://github.com/{URL_OWNER}/", f"https://github.com/{owner}/"
    )
    (tmp_path / "_config.yml").write_text(config)
    result = bash(script("book", "Refuse the placeholder"), tmp_path)
    assert result.returncode == code
    assert ("make repository" in result.stdout) == bool(code)


def test_publishing_needs_the_strict_build_and_the_main_branch():
    publish = WORKFLOWS["book"]["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["if"] == "github.ref == 'refs/heads/main'"
    names = [step.get("name") for step in publish["steps"]]
    assert names.index("Refuse the placeholder") < len(names) - 1


def test_no_hook_strips_outputs_and_hooks_use_the_ruff_of_the_tests():
    hooks = [
        hook
        for repo in yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
        for hook in repo["hooks"]
    ]
    assert not [hook["id"] for hook in hooks if "strip" in hook["id"]]
    entries = {h["id"]: h["entry"] for h in hooks if h["id"].startswith("ruff")}
    assert entries.keys() == {"ruff", "ruff-format"}
    assert all(entry.startswith(".venv/bin/ruff ") for entry in entries.values())


# ---- lists that say the same --------------------------------------------------------


def test_the_readme_lists_the_chapters_of_the_landing_page():
    card = r":::\{grid-item-card\} (\d+)\. (.+)\n:link: \.\./chapters/(\w+)\n"
    row = (
        r"^\| (\d+) \| \[(.+?)\]\(chapters/(\w+)\.ipynb\) \| \[Colab\]\(.+/\3\.ipynb\)"
    )
    rows = re.findall(row, README, re.MULTILINE)
    assert rows == re.findall(card, text_of("book/index.md"))
    assert len(rows) >= 6


def test_the_citation_gives_the_version_and_the_licenses_of_the_project():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == [PROJECT["license"], "CC-BY-4.0"]
    assert PROJECT["version"] in text_of("CHANGELOG.md")


def test_the_license_of_the_text_holds_the_legal_code_unchanged():
    notice, found, code = text_of("LICENSE-text").partition(
        "Attribution 4.0 International\n\n="
    )
    # SHA-256 of the plain text that Creative Commons publishes.
    expected = "fd3a263fe19ed8faa9068b43abaebafc02c77897b0c6fc09abc04bb592e5f16e"
    assert hashlib.sha256((found + code).encode()).hexdigest() == expected
    assert "digits.npz" in notice


def test_the_index_of_decisions_lists_every_record_with_its_title():
    folder = ROOT / "docs" / "decisions"
    rows = re.findall(
        r"^\| (\d+) \| \[(.+)\]\((.+)\) \|",
        text_of("docs/decisions/README.md"),
        re.MULTILINE,
    )
    records = sorted(folder.glob("[0-9]*.md"))
    assert [file for _, _, file in rows] == [path.name for path in records]
    for (number, title, _), path in zip(rows, records, strict=True):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert path.name.startswith(f"{int(number):04d}-")
        assert lines[0] == f"# {number}. {title}"
        headings = [line for line in lines if line.startswith("## ")]
        assert headings == ["## Context", "## Decision", "## Consequences"]


# ---- references ---------------------------------------------------------------------


def faults(bibliography):
    """Entries of a BibTeX file that lack what a reader needs to find them."""
    database = pytest.importorskip("pybtex.database")
    entries = database.parse_string(bibliography, "bibtex").entries
    return [
        key
        for key, entry in entries.items()
        if not {"title", "year"} <= entry.fields.keys()
        or not entry.persons.get("author")
        or not {"doi", "eprint", "url"} & entry.fields.keys()
        or not re.search(rf"{entry.fields['year']}[a-z]*$", key)
    ]


def test_every_source_can_be_found():
    assert faults(text_of("book/references.bib")) == []


@pytest.mark.parametrize(
    "lost",
    [
        "  doi     = {10.1145/1498765.1498785},\n",
        "  year    = {2009},\n",
        "  author  = {Williams, Samuel and Waterman, Andrew and Patterson, David},\n",
    ],
    ids=["address", "year", "author"],
)
def test_a_source_that_lacks_something_is_found(lost):
    bibliography = text_of("book/references.bib")
    assert bibliography.count(lost) == 1
    assert faults(bibliography.replace(lost, "")) == ["williams2009"]


# ---- the address --------------------------------------------------------------------

CONFIG = yaml.safe_load(text_of("_config.yml"))
URL = CONFIG["repository"]["url"]
URL_OWNER, URL_NAME = URL.removeprefix("https://github.com/").split("/")
NEW = "https://github.com/some-one/lamps.and-torches"


NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".*_cache", ".hypothesis", ".ipynb_checkpoints", "__pycache__"),
    *("_build", "build", "dist", "*.egg-info", ".coverage*", "*.npz"),
)


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository, with one more chapter that has stored outputs."""
    copied = tmp_path / "copy"
    shutil.copytree(ROOT, copied, ignore=NOT_COPIED)
    refresh.write(made_chapter(), copied / "chapters" / "99_made.ipynb")
    for path in copied.glob("chapters/*.ipynb"):  # one that is being edited may not be
        notebook = nbformat.read(path, as_version=4)
        refresh.normalize(notebook)
        refresh.write(notebook, path)
    return copied


def made_chapter():
    v4 = nbformat.v4
    where = f"{URL.removeprefix('https://')}/blob/main/chapters/99_made.ipynb"
    badge = f"[Colab](https://colab.research.google.com/{where.replace('.com', '')})"
    output = v4.new_output("stream", name="stdout", text="2\n")
    setup = f'if 0:\n    %pip install -q "git+{URL}@main"'
    cells = [
        v4.new_markdown_cell(f"# Made\n\n{badge}"),
        v4.new_code_cell(setup, execution_count=1, metadata={"tags": ["setup"]}),
        v4.new_code_cell("print(1 + 1)", execution_count=2, outputs=[output]),
    ]
    notebook = v4.new_notebook(cells=cells)
    refresh.normalize(notebook)
    return notebook


def contents(tree):
    return {p: p.read_bytes() for p in sorted(tree.rglob("*")) if p.is_file()}


def test_the_address_is_set_everywhere(tree):
    before = contents(tree)
    set_repository.main([NEW], root=tree)
    for path, content in contents(tree).items():
        text = content.decode()
        assert f"{URL_OWNER}/{URL_NAME}" not in text, path.name
        assert f"{URL_OWNER}.github.io/{URL_NAME}" not in text, path.name
        assert (URL in before[path].decode()) <= (NEW in text), path.name
    readme = (tree / "README.md").read_text()
    assert "https://some-one.github.io/lamps.and-torches/" in readme
    assert f'"git+{NEW}@main"' in readme


def test_a_chapter_keeps_its_outputs_and_gets_the_digest_of_its_new_code(tree):
    path = tree / "chapters" / "99_made.ipynb"
    before = nbformat.read(path, as_version=4)
    set_repository.main([NEW], root=tree)
    after = nbformat.read(path, as_version=4)
    assert f"git+{NEW}@main" in after.cells[1].source
    assert "colab.research.google.com/github/some-one/lamps" in after.cells[0].source
    assert after.cells[1:] != before.cells[1:]
    assert after.cells[2] == before.cells[2]
    digests = [n.metadata.qtorch.code_digest for n in (before, after)]
    assert digests == [refresh.code_digest(before), refresh.code_digest(after)]
    assert digests[0] != digests[1]
    again = copy.deepcopy(after)
    refresh.normalize(again)
    assert again == after


def test_setting_it_back_gives_the_same_files(tree):
    before = contents(tree)
    set_repository.main([NEW], root=tree)
    assert contents(tree) != before
    set_repository.main([URL], root=tree)
    assert contents(tree) == before


def test_setting_the_same_address_changes_nothing(tree):
    assert set_repository.prepare(URL, root=tree) == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "you/torch",
        "http://github.com/you/torch",
        "https://gitlab.com/you/torch",
        "https://github.com/you",
        "https://github.com/you/torch/",
        "https://github.com/you/torch.git",
        "https://github.com/you/torch/tree/main",
        "https://github.com/-you/torch",
        "https://github.com/you/torch?tab=readme",
        "https://github.com/you/..",
        "https://github.com/you/torch\n",
    ],
)
def test_an_address_of_another_shape_is_refused_and_nothing_changes(tree, url):
    before = contents(tree)
    with pytest.raises(SystemExit, match=r"nothing was changed: .* is not an address"):
        set_repository.main([url], root=tree)
    assert contents(tree) == before


@pytest.mark.parametrize(
    "name",
    ["README.md", "CITATION.cff", "pyproject.toml", "chapters/99_made.ipynb"],
)
def test_a_file_that_names_another_address_stops_it_and_nothing_changes(tree, name):
    path = tree / name
    path.write_text(path.read_text().replace(URL_OWNER, "else"))
    before = contents(tree)
    with pytest.raises(SystemExit, match=f"nothing was changed: {name} does not name"):
        set_repository.main([NEW], root=tree)
    assert contents(tree) == before


@pytest.mark.parametrize("successes", [0, 1, 3])
def test_a_failure_half_way_leaves_every_file_as_it_was(tree, monkeypatch, successes):
    before, replace, done = contents(tree), Path.replace, []

    def fail_later(self, target):
        if len(done) == successes:
            raise OSError("the disk is full")
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_later)
    with pytest.raises(OSError, match="the disk is full"):
        set_repository.main([NEW], root=tree)
    assert len(done) == successes
    assert contents(tree) == before


def test_other_addresses_are_left_alone():
    old, new = ("OWNER", "torch"), ("you", "lamp")
    for other in (
        "https://github.com/pytorch/torch",
        "https://github.com/OWNER/torch-vision",
        "https://github.com/my-OWNER/torch",
        "https://my-OWNER.github.io/torch",
        "https://example.org/OWNER/torch",
    ):
        assert set_repository.replace(other, old, new) == other
    dotted = ("OWNER", "a.b")
    assert set_repository.replace("github.com/OWNER/a-b", dotted, new).endswith("a-b")


def test_the_examples_of_the_tool_are_true():
    result = doctest.testmod(set_repository)
    assert result.attempted >= 3
    assert result.failed == 0


def test_the_tool_says_how_it_is_called():
    with pytest.raises(SystemExit, match="usage: make repository URL="):
        set_repository.main([])


def test_make_repository_calls_the_tool():
    dry = ["make", "--dry-run", "--silent", "repository", f"URL={NEW}"]
    result = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"tools/set_repository.py {NEW}" in result.stdout
