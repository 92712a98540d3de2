"""The index of errors: every entry of the clinic in chapter 10, from the notebook.

An entry is a Markdown cell with ``{"qtorch": {"error": {...}}}`` in its metadata and
the code cells up to the next Markdown::

    <a id="error-E07"></a>

    ### E07: `the message`        (loud: in backticks; silent: the symptom in words)

    **Cause.** One paragraph.

    **Cure.** One paragraph.

Its code provokes the message with ``raises("...")`` and asserts the cure. nbval
compares what that prints, so the index cannot name a message that torch does not give.
Metadata: ``id``; ``silent`` for a fault without an error; ``told`` for one that is not
run, since it would end the process; ``also``, messages of other builds; ``links``.

``{error-index} loud`` and ``{error-index} silent`` list the entries.
"""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nbformat
from book_chapters import find_chapter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CHAPTER = 10

_ENTRY = re.compile(
    r'<a id="error-(?P<anchor>E\d\d)"></a>\n\n'
    r"### (?P<id>E\d\d): (?P<title>[^\n]+)\n\n"
    r"\*\*Cause\.\*\* (?P<cause>[^\n]+[.)])\n\n"
    r"\*\*Cure\.\*\* (?P<cure>[^\n]+[.)])\n?"
)
_HEADING = re.compile(r"^### E\d\d:|^<a id=.error-", re.MULTILINE)
_DEMANDS = ("raises", "warns")  # of qtorch_tutorial.tale
_KEYS = {"id", "silent", "told", "also", "links"}
_THREAD = re.compile(r"https://github\.com/([^/]+/[^/]+)/(?:issues|pull)/(\d+)$")


@dataclass(frozen=True)
class Entry:
    """One entry of the clinic.

    Attributes
    ----------
    id : str
        "E01" and so on, in the order of the chapter.
    title : str
        The message of a loud entry, the symptom of a silent one.
    cause, cure : str
        Markdown, one paragraph each.
    silent, told : bool
        Whether no error comes; whether nothing is run.
    raised : tuple of str
        What its cells demand and print, such as "ValueError: optimizer got ...".
    also, links : tuple of str
        Messages of other builds; addresses of threads.
    """

    id: str
    title: str
    cause: str
    cure: str
    silent: bool = False
    told: bool = False
    raised: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


def read_errors(notebook: nbformat.NotebookNode) -> list[Entry]:
    """Read all entries of a notebook.

    Raises
    ------
    ValueError
        If an entry lacks an anchor, a cause, a cure, the cells that prove it or the
        output that shows its message, or if the ids are not E01, E02, ... in order.
    """
    entries = []
    for index, cell in enumerate(notebook.cells):
        told = cell.metadata.get("qtorch", {}).get("error")
        if told is not None:
            entries.append(_read_entry(cell, told, _code_after(notebook, index)))
        elif cell.cell_type == "markdown" and _HEADING.search(cell.source):
            raise ValueError(f"an entry without metadata: {_first(cell.source)}")
    expected = [f"E{n:02d}" for n in range(1, len(entries) + 1)]
    if [entry.id for entry in entries] != expected:
        raise ValueError(f"the ids are {[e.id for e in entries]}, not {expected}")
    return entries


def _code_after(notebook: nbformat.NotebookNode, index: int) -> list:
    """Return the code cells between cell ``index`` and the next Markdown."""
    found = []
    for cell in notebook.cells[index + 1 :]:
        if cell.cell_type != "code":
            break
        found.append(cell)
    return found


def _read_entry(cell: nbformat.NotebookNode, told: dict[str, Any], code: list) -> Entry:
    """Read one entry and hold it to its form."""
    parts = _ENTRY.fullmatch(cell.source.strip() + "\n")
    if not parts:
        raise ValueError(
            f"entry {told.get('id')} wants anchor, heading, **Cause.** and **Cure.**, "
            f"a blank line between them: {_first(cell.source)}"
        )
    name, title = parts["id"], parts["title"]
    if not parts["anchor"] == name == told.get("id"):
        raise ValueError(f"{name}: anchor, heading and metadata name different ids")
    message = re.fullmatch("`([^`]+)`", title)
    if unknown := told.keys() - _KEYS:
        raise ValueError(f"{name}: unknown metadata {sorted(unknown)}")
    entry = Entry(
        id=name,
        title=message[1] if message else title,
        cause=parts["cause"],
        cure=parts["cure"],
        silent=told.get("silent", False),
        told=told.get("told", False),
        raised=_shown(name, code),
        also=tuple(told.get("also", ())),
        links=tuple(told.get("links", ())),
    )
    if entry.silent == bool(message):
        raise ValueError(f"{name}: a message stands in backticks, a symptom does not")
    _check_proof(entry, "\n\n".join(c.source for c in code))
    return entry


def demanded(code: str) -> list[str]:
    """Return the messages that ``raises`` and ``warns`` demand in ``code``, in order.

    Examples
    --------
    >>> demanded('with raises("no"), warns("old"):' + chr(10) + "    f(x)")
    ['no', 'old']
    """
    calls = [
        (node.lineno, node.col_offset, node.args[0].value)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _DEMANDS
    ]
    return [message for _, _, message in sorted(calls)]


def _shown(name: str, code: list) -> tuple[str, ...]:
    """Return each demanded message as its cell prints it, with the error's type."""
    found = []
    for cell in code:
        lines = "".join(o.get("text", "") for o in cell.outputs).splitlines()
        for message in demanded(cell.source):
            shown = [line for line in lines if line.partition(": ")[2] == message]
            if not shown:
                raise ValueError(f"{name}: no stored output shows {message!r}")
            found.append(shown[0])
    return tuple(found)


def _check_proof(entry: Entry, code: str) -> None:
    """Refuse an entry whose cells do not provoke its fault and assert its cure."""
    checks = [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Assert)
        or getattr(getattr(node, "func", None), "id", "").startswith("check_")
    ]
    messages = demanded(code)
    if entry.told:
        if code or not entry.links:
            raise ValueError(f"{entry.id}: what is told has no code, but a link")
    elif entry.silent:
        if len(checks) + len(messages) < 2:
            raise ValueError(f"{entry.id}: assert the symptom and the cure")
    elif entry.title not in messages:
        raise ValueError(f"{entry.id}: no cell demands the message of the title")
    elif not checks:
        raise ValueError(f"{entry.id}: no cell asserts the cure")


def _first(source: str) -> str:
    """Return the heading of a cell, or what stands for it."""
    lines = [line for line in source.splitlines() if line.startswith("#")]
    return lines[0] if lines else source[:60]


def thread_name(url: str) -> str:
    """Name a thread for a reader.

    Examples
    --------
    >>> thread_name("https://github.com/pytorch/pytorch/issues/128578")
    'pytorch/pytorch#128578'
    >>> thread_name("https://discuss.pytorch.org/t/a-question/1")
    'PyTorch forum'

    Raises
    ------
    ValueError
        If it is neither.
    """
    if found := _THREAD.match(url):
        return "#".join(found.groups())
    if url.startswith("https://discuss.pytorch.org/t/"):
        return "PyTorch forum"
    raise ValueError(f"neither an issue nor a forum thread: {url}")


def messages_of(entry: Entry) -> list[str]:
    """Return every message that leads to an entry."""
    told = [entry.title] if entry.told else []
    return [*told, *entry.raised, *entry.also]


class ErrorIndex(SphinxDirective):
    """``{error-index} loud`` or ``{error-index} silent``: a list of entries."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Build the list from the notebook of chapter 10."""
        kind = self.arguments[0]
        if kind not in ("loud", "silent"):
            raise self.error(f"expected loud or silent, got {kind!r}")
        chapter = find_chapter(self.env.found_docs, CHAPTER)
        if chapter is None:
            raise self.error(f"chapter {CHAPTER} is not in the book")
        path = self.env.doc2path(chapter)
        self.env.note_dependency(path)
        try:
            entries = read_errors(nbformat.read(path, as_version=4))
        except ValueError as error:
            raise self.error(str(error)) from error
        items = [
            self._item(entry, chapter)
            for entry in entries
            if entry.silent == (kind == "silent")
        ]
        return [nodes.definition_list("", *items, classes=["error-index"])]

    def _item(self, entry: Entry, chapter: str) -> nodes.definition_list_item:
        """Build one entry: link and message, then cause, cure and threads."""
        uri = self.env.app.builder.get_relative_uri(self.env.docname, chapter)
        link = nodes.reference(
            "",
            entry.id,
            refuri=f"{uri}#error-{entry.id}",
            internal=True,
            reftitle=f"{entry.id} in chapter {CHAPTER}: provoked and cured",
        )
        symptom = self._markdown(entry.title) if entry.silent else []
        messages = _spaced(nodes.literal("", text) for text in messages_of(entry))
        term = nodes.term("", "", link, nodes.Text(" "), *symptom, *messages)
        lines = [("Cause.", self._markdown(entry.cause))]
        lines += [("Cure.", self._markdown(entry.cure))]
        if entry.told:
            lines[0][1].append(nodes.Text(" (Told, not run.)"))
        if entry.links:
            threads = [
                nodes.reference("", thread_name(url), refuri=url) for url in entry.links
            ]
            lines += [("Threads.", _spaced(threads))]
        body = [
            nodes.paragraph("", "", nodes.strong("", label), nodes.Text(" "), *text)
            for label, text in lines
        ]
        return nodes.definition_list_item("", term, nodes.definition("", *body))

    def _markdown(self, text: str) -> list[nodes.Node]:
        """Read one paragraph of the chapter's Markdown; its links start elsewhere."""
        text = re.sub(r"\]\((\d\d_\w+\.ipynb)", r"](../chapters/\1", text)
        found, _ = self.state.inline_text(text, self.lineno)
        return found


def _spaced(items: Iterable[nodes.Node]) -> list[nodes.Node]:
    """Put a blank before each node."""
    return [node for item in items for node in (nodes.Text(" "), item)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("error-index", ErrorIndex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
