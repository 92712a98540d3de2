"""Execute chapters in place and normalize them: ``make refresh``.

    python tools/refresh.py                    all chapters, and the provenance record
    python tools/refresh.py chapters/06_*.ipynb

A normalized notebook differs from run to run only where its results differ: cells keep
stable ids, there are no time stamps, tracebacks hold no path of a machine, and a digest
over the code cells tells whether the stored outputs belong to the present code.
"""

import hashlib
import json
import re
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
CHAPTERS = ROOT / "chapters"
PROVENANCE = ROOT / "book" / "_static" / "provenance.json"

LONGEST_MESSAGE = 240  # characters of an error that are stored

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def main(names: list[str]) -> None:
    """Execute and normalize the notebooks named, or all of them."""
    paths = [Path(name) for name in names] or sorted(CHAPTERS.glob("*.ipynb"))
    for path in (bar := tqdm(paths, unit="chapter")):
        bar.set_postfix_str(path.stem)
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook,
            timeout=120,
            resources={"metadata": {"path": str(path.parent)}},  # as a reader's starts
            coalesce_streams=True,  # a kernel may send one print in pieces
        ).execute()
        normalize(notebook)
        write(notebook, path)
    if not names:
        record_provenance()


def as_text(notebook: NotebookNode) -> str:
    """Give the text of a notebook's file as git likes it: a newline at the end."""
    return nbformat.writes(notebook) + "\n"


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook to its file."""
    path.write_text(as_text(notebook), encoding="utf-8")


def normalize(notebook: NotebookNode) -> None:
    """Make equal what does not matter; normalizing twice changes nothing."""
    taken: set[str] = set()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        cell.id = _stable_id(cell, taken)
        if cell.cell_type == "code":
            for output in cell.outputs:
                _normalize_output(output, cell.execution_count)
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        "qtorch": {"code_digest": code_digest(notebook)},
    }


def code_digest(notebook: NotebookNode) -> str:
    """SHA-256 over sources and tags of the code cells, in order."""
    code = [
        [cell.source, cell.metadata.get("tags", [])]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def _stable_id(cell: NotebookNode, taken: set[str]) -> str:
    """Name a cell after its source, so that an id moves along with its cell."""
    digest = hashlib.sha256(cell.source.encode()).hexdigest()[:10]
    name, again = f"{cell.cell_type}-{digest}", 1
    while name in taken:
        again += 1
        name = f"{cell.cell_type}-{digest}-{again}"
    taken.add(name)
    return name


def _normalize_output(output: NotebookNode, count: int | None) -> None:
    """Give a result its cell's count; keep of a traceback what a reader can use."""
    if output.output_type == "execute_result":
        output.execution_count = count
    if output.output_type == "error":
        output.evalue = shortened(output.evalue)
        output.traceback = short_traceback(output.traceback)


def short_traceback(frames: list[str]) -> list[str]:
    """Keep the frames of the notebook itself and the message, without colors."""
    *plain, message = (_ANSI.sub("", frame) for frame in frames)
    own = [frame for frame in plain if frame.startswith("Cell In[")]
    return [*own, shortened(message)]


def shortened(message: str) -> str:
    """Cut a message that lists all backends of torch; the rest of it differs by build.

    Examples
    --------
    >>> shortened("too large")
    'too large'
    """
    if len(message) <= LONGEST_MESSAGE or message.endswith(" ..."):
        return message
    return message[:LONGEST_MESSAGE].rsplit(maxsplit=1)[0] + " ..."


def record_provenance() -> None:
    """Write what machine and what versions made the stored outputs."""
    from qtorch_tutorial import repro  # late: torch takes seconds to load

    facts = {"date": date.today().isoformat()} | asdict(repro.probe())
    PROVENANCE.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
