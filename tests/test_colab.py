"""Every chapter runs in Colab: alone in an empty folder, the package from its wheel.

Colab is simulated by a fresh environment that has torch and the rest, but not the
package, and in which ``google.colab`` is imported at the start. The setup cell's
``%pip install`` runs as it stands; git is told to take the repository from a folder
here, and pip asks no index.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

nbclient = pytest.importorskip("nbclient", reason="the extra `test` is not installed")
nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")
pytest.importorskip("setuptools", reason="a wheel is built without the network")
if shutil.which("git") is None:
    pytest.skip("git is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
URL, BRANCH = CONFIG["repository"]["url"], CONFIG["repository"]["branch"]
# All that pip needs of the repository.
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "LICENSE-text", "qtorch_tutorial")


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    ran = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A git repository with what a wheel is made of, and nothing else."""
    folder = tmp_path_factory.mktemp("repository")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    run("git", "init", "--quiet", f"--initial-branch={BRANCH}", folder=folder)
    run("git", "add", ".", folder=folder)
    run("git", *who, "commit", "--quiet", "--message", "x", folder=folder)
    return folder


@pytest.fixture(scope="module")
def colab(tmp_path_factory, repository) -> Path:
    """The folder of an environment like Colab's, with a kernel named ``colab``."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "env", symlinks=True)
    inside = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=inside))
    # What is installed here, but for the package itself.
    (folder / "installed").mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "qtorch" not in path.name and path.suffix != ".pth":
            (folder / "installed" / path.name).symlink_to(path)
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    start = f"{folder / 'installed'}\nimport google.colab\n"
    (packages / "colab.pth").write_text(start)
    kernel = folder / "kernels" / "colab"
    kernel.mkdir(parents=True)
    python = str(folder / "env" / "bin" / "python")
    spec = {
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Colab",
        "language": "python",
        "env": {
            "PYTHONPATH": "",
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as: no isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
            "GIT_CONFIG_VALUE_0": URL,
        },
    }
    (kernel / "kernel.json").write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        yield folder


def setup_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return next(c for c in notebook.cells if c.cell_type == "code")


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook in Colab, alone in an empty folder."""
    folder.mkdir()
    nbclient.NotebookClient(
        notebook,
        kernel_name="colab",
        timeout=120,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def text_of(cell: nbformat.NotebookNode) -> str:
    return "".join(o.get("text", "") for o in cell.outputs)


@pytest.fixture(scope="module")
def installed(colab) -> str:
    """Run the setup cell as it stands; where is the package then?"""
    notebook = nbformat.read(CHAPTERS[0], as_version=4)
    look = "import qtorch_tutorial; print(qtorch_tutorial.__file__)"
    notebook.cells = [setup_cell(notebook), nbformat.v4.new_code_cell(look)]
    execute(notebook, colab / "setup")
    return text_of(notebook.cells[1]).strip()


@pytest.fixture(scope="module")
def executed(colab, installed) -> dict[str, Future]:
    """Run all chapters, two at a time, but for the setup cell, which all share."""

    def run_chapter(path: Path) -> list[str]:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.remove(setup_cell(notebook))
        asked = nbformat.v4.new_code_cell(
            "import sys; assert 'google.colab' in sys.modules\n"
            "import os; print(sorted(os.listdir()))\n"
            "import qtorch_tutorial; print(qtorch_tutorial.__file__)"
        )
        notebook.cells.append(asked)
        execute(notebook, colab / path.stem)
        return text_of(asked).splitlines()

    with ThreadPoolExecutor(2) as pool:
        return {path.stem: pool.submit(run_chapter, path) for path in CHAPTERS}


def test_the_setup_cell_is_the_same_in_every_chapter():
    cells = {setup_cell(nbformat.read(path, as_version=4)).source for path in CHAPTERS}
    (cell,) = cells
    assert f"git+{URL}@{BRANCH}" in cell


def test_the_setup_cell_installs_the_package_and_nothing_else(colab, installed):
    assert Path(installed).is_relative_to(colab / "env")
    packages = Path(installed).parents[1]
    added = {path.name for path in packages.iterdir()}
    added = {re.sub(r"-[\d.]+\.dist-info", ".dist-info", name) for name in added}
    package = {"qtorch_tutorial", "qtorch_tutorial.dist-info"}
    assert added == {"colab.pth", "google"} | package


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_alone_in_colab(path, executed, installed):
    left, package = executed[path.stem].result()
    assert left == "[]"  # it needs no file and leaves none
    assert package == installed


def test_a_chapter_that_needs_the_repository_would_fail(colab, installed):
    cell = nbformat.v4.new_code_cell("open('../tests/conftest.py')")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="No such file"):
        execute(notebook, colab / "needy")


def test_without_colab_the_setup_cell_does_nothing(tmp_path):
    source = setup_cell(nbformat.read(CHAPTERS[0], as_version=4)).source
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(
        notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert notebook.cells[0].outputs == []


def test_the_wheel_holds_the_package_and_nothing_else(repository, tmp_path):
    pytest.importorskip("build", reason="the extra `test` is not installed")
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    run(*command, "--outdir", tmp_path, folder=repository)
    (wheel,) = tmp_path.glob("*.whl")
    with contextlib.closing(zipfile.ZipFile(wheel)) as archive:
        names = {name for name in archive.namelist() if "dist-info" not in name}
        metadata = next(n for n in archive.namelist() if n.endswith("METADATA"))
        about = archive.read(metadata).decode()
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "qtorch_tutorial").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == ours
    assert {f"qtorch_tutorial/{n}" for n in ("py.typed", "assets/digits.npz")} <= names
    assert "qtorch_tutorial/checks/ch04.py" in names
    # Lower bounds only: Colab's torch and numpy stay as they are.
    wanted = [s for s in about.splitlines() if s.startswith("Requires-Dist")]
    wanted = [s for s in wanted if "extra ==" not in s]
    assert len(wanted) > 5
    assert all(re.fullmatch(r"Requires-Dist: [\w-]+>=[\d.]+", s) for s in wanted), (
        wanted
    )
