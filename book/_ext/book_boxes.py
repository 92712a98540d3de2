"""Turn the boxes of a notebook into real admonitions.

A box is written so that Colab and GitHub, too, read the Markdown inside::

    <div class="admonition athena">
    <p class="admonition-title">Athena counsels</p>

    Text with `code` and $math$, between blank lines.

    </div>

Markdown sees three things there: raw HTML that opens, blocks of text, raw HTML that
closes. (MyST's ``html_admonition`` wants one piece of HTML without blank lines, inside
which Colab and GitHub would read no Markdown.) This transform joins the three. It
warns of a box that does not close, since that would swallow the rest of the page.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOG = logging.getLogger(__name__)

_OPEN = re.compile(r'\s*<div class="admonition( [\w -]+)?">')
_HEAD = re.compile(
    r'\s*<div class="admonition(?P<classes> [\w -]+)?">'
    r'\s*<p class="admonition-title">(?P<title>[^<]+)</p>\s*'
)
_CLOSE = re.compile(r"\s*</div>\s*")


def wrong_box(opening: nodes.raw) -> str | None:
    """Say what is wrong with a box that ``opening`` starts; None if it is well made."""
    if not _HEAD.fullmatch(opening.astext()):
        return "a box starts with its div and its title, then a blank line"
    if closing_of(opening) is None:
        return "a box ends with </div> between blank lines, before the next heading"
    return None


def closing_of(opening: nodes.raw) -> nodes.raw | None:
    """Return the raw ``</div>`` beside ``opening`` that closes it, or None."""
    beside = opening.parent.children
    for node in beside[opening.parent.index(opening) + 1 :]:
        if isinstance(node, nodes.raw) and _CLOSE.fullmatch(node.astext()):
            return node
        if isinstance(node, nodes.raw) and _OPEN.match(node.astext()):
            return None
    return None


def make_box(opening: nodes.raw) -> nodes.admonition:
    """Move all from ``opening`` to its closing into an admonition in their place."""
    parent, head = opening.parent, _HEAD.fullmatch(opening.astext())
    first, last = parent.index(opening), parent.index(closing_of(opening))
    body = parent.children[first + 1 : last]
    classes = (head["classes"] or "").split()
    box = nodes.admonition("", nodes.title("", head["title"]), classes=classes)
    box.source, box.line = opening.source, opening.line
    del parent[first : last + 1]
    box += body
    parent.insert(first, box)
    return box


class MakeBoxes(SphinxTransform):
    """Make every box of a page an admonition."""

    default_priority = 300  # before anything looks at the text inside

    def apply(self, **kwargs) -> None:
        """Replace the well made boxes; warn of the others."""
        for raw in list(self.document.findall(nodes.raw)):
            if not _OPEN.match(raw.astext()):
                continue
            if wrong := wrong_box(raw):
                LOG.warning(wrong, location=raw)
            else:
                make_box(raw)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(MakeBoxes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
