"""Chapters carry the number of their file; folds and anchors do what they promise.

Sphinx would number the chapters 1, 2, 3 of those that exist. The files are called
``04_the_tale`` and so on, and claims and exercises are named after them, so the number
in the file name is the number a reader sees: in the page, the contents, the search.

A notebook may not hold MyST, so two more things are done here for it: the fold of a
hidden cell says what is inside, and a raw ``<a id="claim-T05"></a>`` is a target that
Markdown links of any page can name and the build checks.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOG = logging.getLogger(__name__)

_CHAPTER = re.compile(r"chapters/(\d\d)_")
_ANCHOR = re.compile(r"""<a\s+id=["']([^"']+)["']""")

# Tag of a hidden cell, what its fold says when closed, and when open.
FOLDS = {
    "setup": ("Show the setup cell", "Hide the setup cell"),
    "solution": ("Show the solution", "Hide the solution"),
}


def chapter_number(docname: str) -> int | None:
    """Return 4 for "chapters/04_the_tale", None for a page that is no chapter."""
    found = _CHAPTER.match(docname)
    return int(found[1]) if found else None


def find_chapter(docnames: set[str], number: int) -> str | None:
    """Return the page of chapter ``number``, None if the book does not have it yet."""
    return next((d for d in sorted(docnames) if chapter_number(d) == number), None)


class NumberChapters(SphinxTransform):
    """Put the chapter's number in front of its title."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        """Change the first title of a chapter, unless it has a number already."""
        number = chapter_number(self.env.docname)
        title = next(self.document.findall(nodes.title), None)
        if number is None or title is None or title.astext()[:1].isdigit():
            return
        title.insert(0, nodes.Text(f"{number}. "))


class NameFolds(SphinxTransform):
    """Let the fold of a hidden cell say what is inside, by the cell's tag."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        """Set the two prompts of every hidden cell that has a known tag."""
        for cell in self.document.findall(nodes.container):
            for tag, (show, hide) in FOLDS.items():
                if f"tag_{tag}" in cell["classes"] and "prompt_show" in cell:
                    cell["prompt_show"], cell["prompt_hide"] = show, hide


class NoteAnchors(SphinxTransform):
    """Make raw HTML anchors known to MyST, which resolves Markdown links."""

    default_priority = 400  # before MyST resolves the links of a page

    def apply(self, **kwargs) -> None:
        """Add each anchor beside the headings; one that repeats is a warning."""
        slugs = getattr(self.document, "myst_slugs", {})
        for raw in self.document.findall(nodes.raw):
            for anchor in _ANCHOR.findall(raw.astext()):
                if anchor in slugs:
                    LOG.warning("anchor %s is there already", anchor, location=raw)
                slugs[anchor] = (raw.line, anchor, "")
        self.document.myst_slugs = slugs
        self.env.metadata[self.env.docname]["myst_slugs"] = slugs


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transforms."""
    app.add_transform(NumberChapters)
    app.add_transform(NameFolds)
    app.add_transform(NoteAnchors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
