"""Link the first use of each glossary term in a chapter to the glossary.

Notebooks hold plain Markdown, so that they read well in Colab and on GitHub; a chapter
cannot say ``{term}`` itself. This extension does it when a page is written: the first
use of a term becomes a link whose hover text is the first sentence of the definition.
Headings, links, code, math, outputs and raw HTML links are left alone.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from book_chapters import chapter_number
from docutils import nodes
from sphinx.addnodes import glossary
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PAGE = "book/glossary"

# Terms that are plain English more often than not: a link would explain the wrong word.
UNLINKED = frozenset({"step", "form"})

_CLOSED = (
    nodes.reference,
    nodes.title,
    nodes.rubric,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.caption,
    nodes.image,
    nodes.Invisible,
)


@dataclass(frozen=True)
class Entry:
    """One term of the glossary: how it is written, its anchor, its hover text."""

    term: str
    anchor: str
    hover: str


def first_sentence(text: str) -> str:
    """Return the text up to the first full stop that ends a sentence, on one line."""
    flat = " ".join(text.split())
    return re.split(r"(?<=\.) (?=[A-Z`])", flat, maxsplit=1)[0]


def term_regex(term: str) -> str:
    """Return a pattern for ``term``: hyphen or blank between words, plural or not."""
    *head, last = term.split()
    plural = f"{last[:-1]}(?:y|ies)" if re.search(r"[^aeiou]y$", last) else f"{last}s?"
    if re.search(r"(?:s|x|ch|sh)$", last):
        plural = f"{last}(?:es)?"
    return r"[\s-]+".join([*map(re.escape, head), plural])


def make_matcher(terms: Iterable[str]) -> re.Pattern[str]:
    """Compile one pattern for all terms; a longer term wins over one inside it.

    Group ``t0``, ``t1``, ... is the term of that position in the order given.
    """
    listed = list(enumerate(terms))
    longest_first = sorted(listed, key=lambda item: -len(item[1]))
    choices = (f"(?P<t{i}>{term_regex(term)})" for i, term in longest_first)
    edges = r"(?<![\w.`/-])(?:{})(?![\w`])(?!-\w)".format("|".join(choices))
    return re.compile(edges, re.IGNORECASE)


def split_text(
    text: str, matcher: re.Pattern[str], seen: set[int]
) -> Iterator[tuple[str, int | None]]:
    """Cut ``text`` into pieces; a first use comes with the index of its term.

    Adds what it yields to ``seen``. The pieces joined give ``text`` again.
    """
    start = 0
    for found in matcher.finditer(text):
        index = int(found.lastgroup[1:])
        if index in seen:
            continue
        seen.add(index)
        if found.start() > start:
            yield text[start : found.start()], None
        yield found[0], index
        start = found.end()
    if start < len(text):
        yield text[start:], None


def read_entries(env: BuildEnvironment) -> list[Entry]:
    """Read terms, anchors and hover texts from the parsed glossary page."""
    page = env.get_doctree(PAGE)
    entries = []
    for item in page.findall(nodes.definition_list_item):
        if not isinstance(item.parent.parent, glossary):
            continue
        hover = first_sentence(item[-1].astext())
        for term in item.findall(nodes.term):
            entries.append(Entry(term.astext(), term["ids"][0], hover))
    return entries


def is_open(text: nodes.Text) -> bool:
    """Tell whether a link may be put into this text: it is prose and in no link."""
    node = text
    while node.parent is not None:
        if _after_open_link(node):
            return False
        node = node.parent
        if isinstance(node, _CLOSED) or "nb_element" in getattr(node, "attributes", {}):
            return False
        if "admonition-title" in getattr(node, "attributes", {}).get("classes", ()):
            return False
    return True


def _after_open_link(node: nodes.Node) -> bool:
    """Whether raw ``<a ...>`` before ``node`` in the same parent is still open."""
    before = node.parent.children[: node.parent.index(node)]
    raw = "".join(n.astext() for n in before if isinstance(n, nodes.raw))
    return len(re.findall(r"<a[\s>]", raw)) > raw.count("</a>")


def link_terms(document: nodes.Node, entries: list[Entry], page_uri: str) -> int:
    """Link the first use of each entry in ``document``; return how many were linked."""
    entries = [e for e in entries if e.term.lower() not in UNLINKED]
    if not entries:
        return 0
    matcher = make_matcher(e.term for e in entries)
    seen: set[int] = set()
    for text in list(document.findall(nodes.Text)):
        if not is_open(text):
            continue
        pieces = list(split_text(str(text), matcher, seen))
        if any(index is not None for _, index in pieces):
            new = [_node(piece, index, entries, page_uri) for piece, index in pieces]
            text.parent.replace(text, new)
    return len(seen)


def _node(
    piece: str, index: int | None, entries: list[Entry], page_uri: str
) -> nodes.Node:
    """Make a link for a piece that is a term, plain text for another."""
    if index is None:
        return nodes.Text(piece)
    entry = entries[index]
    return nodes.reference(
        "",
        piece,
        refuri=f"{page_uri}#{entry.anchor}",
        reftitle=entry.hover,
        internal=True,
        classes=["glossary-link"],
    )


def _depend(app: Sphinx, docname: str, source: list[str]) -> None:
    """Read a chapter again when the glossary changes, or its links would be old."""
    if chapter_number(docname) is not None:
        app.env.note_dependency(f"{PAGE}.md")


def _link_page(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link the terms of one chapter; other pages are left as they are."""
    if chapter_number(docname) is None or PAGE not in app.env.found_docs:
        return
    uri = app.builder.get_relative_uri(docname, PAGE)
    link_terms(doctree, read_entries(app.env), uri)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the listeners."""
    app.connect("source-read", _depend)
    app.connect("doctree-resolved", _link_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
