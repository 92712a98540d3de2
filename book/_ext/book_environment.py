"""``{provenance}``: the machine and the versions that made the stored outputs.

``make refresh`` writes them to a JSON file when it executes the chapters, and this
directive shows that file, so the page tells what was and not what the builder has.
"""

import json
from datetime import date
from pathlib import Path
from typing import Any

from book_tables import make_table
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

# Key in the file, and what the page calls it. Other keys are refused: a misspelled one
# would silently vanish from the page.
FIELDS = {
    "date": "Outputs made on",
    "python": "Python",
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "platform": "Operating system",
    "cpu": "Processor",
    "instructions": "Instruction sets for int8",
    "engines": "Quantized engines",
    "engine": "Engine in use",
    "threads": "Threads of torch",
}
OPTIONAL = {"engines"}


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Read the file; None if ``make refresh`` has not written it yet.

    Raises
    ------
    ValueError
        If the file is not a JSON object with the known fields.
    """
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path.name} must hold an object, got {type(facts).__name__}")
    missing = FIELDS.keys() - OPTIONAL - facts.keys()
    unknown = facts.keys() - FIELDS.keys()
    if missing or unknown:
        raise ValueError(
            f"{path.name} lacks {sorted(missing)} and has unknown {sorted(unknown)}"
        )
    date.fromisoformat(facts["date"])
    return facts


def provenance_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return label and text of every field, in the order of ``FIELDS``."""
    return [(label, _text(facts[k])) for k, label in FIELDS.items() if k in facts]


def _text(value: Any) -> str:
    """Join a list with commas; an empty one reads "none"."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


class Provenance(SphinxDirective):
    """``{provenance} path``: a table of the file at ``path``, relative to the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Build the table, or a sentence while there is no file."""
        relative, absolute = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        try:
            facts = read_provenance(Path(absolute))
        except ValueError as error:
            raise self.error(str(error)) from error
        if facts is None:
            return [nodes.paragraph("", "No outputs have been recorded yet.")]
        rows = provenance_rows(facts)
        return [make_table(("What", "Value"), rows, widths=(35, 65))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("provenance", Provenance)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
