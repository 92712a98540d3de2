"""The index of errors: every entry of the clinic, as its cells prove it, or none."""

import copy
import doctest
import io
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the extra `book` is not installed")
nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")
bs4 = pytest.importorskip("bs4", reason="the extra `book` is not installed")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "book" / "_ext"))  # as _config.yml does for Sphinx

import book_errors  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util.docutils import docutils_namespace, patch_docutils  # noqa: E402

CHAPTER = ROOT / "chapters" / "10_broken_lamps.ipynb"
METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


@pytest.fixture(scope="module")
def chapter():
    return nbformat.read(CHAPTER, as_version=4)


@pytest.fixture(scope="module")
def entries(chapter):
    return book_errors.read_errors(chapter)


# ---- the clinic itself ----------------------------------------------------------


def test_the_clinic_treats_at_least_twenty_faults_and_the_silent_ones_are_many(entries):
    assert len(entries) >= 25
    assert sum(entry.silent for entry in entries) >= 12


def test_every_heading_of_the_clinic_is_an_entry(chapter, entries):
    text = "\n".join(c.source for c in chapter.cells if c.cell_type == "markdown")
    assert re.findall(r"^### (E\d\d): ", text, re.MULTILINE) == [e.id for e in entries]
    assert re.findall(r'<a id="error-(E\d\d)">', text) == [e.id for e in entries]


def test_every_message_that_a_clinic_cell_demands_is_in_the_index(chapter, entries):
    listed = {m for e in entries for m in book_errors.messages_of(e)}
    for cell in chapter.cells:
        if cell.cell_type == "code" and "%pip" not in cell.source:
            for message in book_errors.demanded(cell.source):
                assert any(m.endswith(f": {message}") for m in listed), message


def test_a_loud_entry_is_named_by_its_message_with_the_type_of_the_error(entries):
    for entry in entries:
        if not entry.silent and not entry.told:
            (first,) = [m for m in entry.raised if m.endswith(entry.title)]
            assert re.fullmatch(r"[A-Z]\w+(Error|Warning)", first.partition(": ")[0])


def test_threads_have_names(entries):
    for entry in entries:
        assert all(book_errors.thread_name(url) for url in entry.links)


def test_a_stray_link_is_refused():
    with pytest.raises(ValueError, match="neither an issue nor a forum thread"):
        book_errors.thread_name("https://example.org/1")


def test_the_module_keeps_what_its_examples_say():
    assert doctest.testmod(book_errors).failed == 0


# ---- a broken entry is refused ----------------------------------------------------


def small(**changes):
    """A notebook of a loud and a silent entry, with changes to the loud one."""
    parts = {
        "anchor": '<a id="error-E01"></a>\n\n',
        "heading": "### E01: `division by zero`\n\n",
        "cause": "**Cause.** A zero, see [chapter 3](03_settings.ipynb).\n\n",
        "cure": "**Cure.** Look at `x` first.",
        "code": 'with raises("division by zero"):\n    1 / 0\nassert 1 / 1 == 1',
        "output": "ZeroDivisionError: division by zero\n",
        "error": {"id": "E01", "links": ["https://github.com/o/r/issues/7"]},
        "silent_heading": "### E02: `Nothing` is seen\n\n",
        "silent_code": "assert 1\nassert 2",
    } | changes
    text = "".join(parts[name] for name in ("anchor", "heading", "cause", "cure"))
    quiet = (
        f'<a id="error-E02"></a>\n\n{parts["silent_heading"]}'
        "**Cause.** It is dark.\n\n**Cure.** A lamp."
    )
    shown = nbformat.v4.new_output("stream", name="stdout", text=parts["output"])
    v4 = nbformat.v4
    meta = {"qtorch": {"error": parts["error"]}}
    if parts["error"] is None:
        meta = {}
    cells = [
        v4.new_markdown_cell("# Mending\n\n## The clinic"),
        v4.new_markdown_cell(text, metadata=meta),
        v4.new_code_cell(parts["code"], outputs=[shown]),
        v4.new_markdown_cell(
            quiet, metadata={"qtorch": {"error": {"id": "E02", "silent": True}}}
        ),
        v4.new_code_cell(parts["silent_code"]),
    ]
    return v4.new_notebook(cells=cells, metadata=METADATA)


def test_a_well_made_entry_is_read():
    loud, silent = book_errors.read_errors(small())
    assert loud.raised == ("ZeroDivisionError: division by zero",)
    assert (loud.cure, loud.silent) == ("Look at `x` first.", False)
    assert (silent.title, silent.silent) == ("`Nothing` is seen", True)


def test_messages_of_other_builds_and_of_what_is_told_lead_to_an_entry():
    told = {"id": "E01", "told": True, "links": ["https://github.com/o/r/issues/7"]}
    notebook = small(error=told | {"also": ["out of memory"]})
    del notebook.cells[2]  # what is told has no code
    entry = book_errors.read_errors(notebook)[0]
    assert book_errors.messages_of(entry) == ["division by zero", "out of memory"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor": ""}, "wants anchor, heading"),
        ({"anchor": '<a id="error-E07"></a>\n\n'}, "name different ids"),
        ({"heading": "### E07: `division by zero`\n\n"}, "name different ids"),
        ({"cause": ""}, "wants anchor, heading, **Cause.**"),
        ({"cure": ""}, "**Cure.**"),
        ({"cure": "**Cure.**"}, "**Cure.**"),
        ({"cure": "**Cure.** Look at this:"}, "**Cure.**"),
        ({"error": None}, "an entry without metadata"),
        ({"error": {"id": "E01", "link": []}}, "unknown metadata ['link']"),
        ({"error": {"id": "E02"}}, "name different ids"),
        ({"heading": "### E01: `another text`\n\n"}, "no cell demands the message"),
        ({"heading": "### E01: division by zero\n\n"}, "stands in backticks"),
        ({"silent_heading": "### E02: `None`\n\n"}, "stands in backticks"),
        ({"code": 'with raises("division by zero"):\n    1 / 0'}, "asserts the cure"),
        ({"code": "assert 1 / 1 == 1"}, "no cell demands the message"),
        ({"silent_code": "assert 1"}, "assert the symptom and the cure"),
        ({"output": "ZeroDivisionError: by zero\n"}, "no stored output shows"),
        ({"output": ""}, "no stored output shows"),
        ({"error": {"id": "E01", "told": True}}, "what is told has no code"),
    ],
)
def test_a_broken_entry_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        book_errors.read_errors(small(**changes))


def swap(cells):
    cells[1:3], cells[3:5] = cells[3:5], cells[1:3]


def repeat(cells):
    cells += copy.deepcopy(cells[1:3])


def leave_out_the_first(cells):
    del cells[1:3]


@pytest.mark.parametrize("break_it", [swap, repeat, leave_out_the_first])
def test_ids_that_are_not_in_order_are_refused(break_it):
    notebook = small()
    break_it(notebook.cells)
    with pytest.raises(ValueError, match="the ids are"):
        book_errors.read_errors(notebook)


# ---- the page -----------------------------------------------------------------------

PAGE = "# Errors\n\n```{error-index} loud\n```\n\n```{error-index} silent\n```\n"


def build(folder, notebook, page=PAGE):
    """Build a book of this page and two chapters; return the page and the warnings."""
    title = [nbformat.v4.new_markdown_cell("# Settings")]
    other = nbformat.v4.new_notebook(cells=title, metadata=METADATA)
    pages = {
        "index.md": "# Top\n\n```{toctree}\n:glob:\nbook/*\nchapters/*\n```\n",
        "book/errors.md": page,
        "chapters/03_settings.ipynb": nbformat.writes(other),
        "chapters/10_broken_lamps.ipynb": nbformat.writes(notebook),
    }
    for name, text in pages.items():
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / name).write_text(text, encoding="utf-8")
    config = {
        "extensions": ["myst_nb", "book_chapters", "book_errors"],
        "nb_execution_mode": "off",
        "nitpicky": True,
    }
    warnings = io.StringIO()
    where = (folder / "src", None, folder / "html", folder / "doctrees", "html")
    with patch_docutils(), docutils_namespace():
        Sphinx(*where, config, None, warnings).build()
    html = (folder / "html" / "book" / "errors.html").read_text(encoding="utf-8")
    return bs4.BeautifulSoup(html, "html.parser"), warnings.getvalue()


def test_the_page_shows_message_cause_cure_and_thread_and_leads_to_the_cell(tmp_path):
    page, warnings = build(tmp_path, small())
    assert warnings == ""
    loud, silent = page.select("dl.error-index dt")
    assert loud.a["href"] == "../chapters/10_broken_lamps.html#error-E01"
    assert loud.code.get_text() == "ZeroDivisionError: division by zero"
    assert silent.get_text().split() == ["E02", "Nothing", "is", "seen"]
    body = loud.find_next_sibling("dd")
    cause, cure, threads = body.find_all("p")
    assert cause.a["href"] == "../chapters/03_settings.html"
    assert cure.get_text() == "Cure. Look at x first."
    assert cure.code.get_text() == "x"
    assert threads.a["href"] == "https://github.com/o/r/issues/7"
    assert threads.a.get_text() == "o/r#7"


def test_a_broken_notebook_fails_the_strict_build(tmp_path):
    _, warnings = build(tmp_path, small(cure=""))
    assert "wants anchor, heading" in warnings


def test_an_index_of_another_kind_is_refused(tmp_path):
    _, warnings = build(tmp_path, small(), "# Errors\n\n```{error-index} all\n```\n")
    assert "expected loud or silent, got 'all'" in warnings


def test_the_books_page_lists_every_entry(tmp_path, chapter, entries):
    text = (ROOT / "book" / "errors.md").read_text(encoding="utf-8")
    assert re.findall(r"```\{error-index\} (\w+)", text) == ["loud", "silent"]
    page, _ = build(tmp_path, chapter)
    shown = [term.a.get_text() for term in page.select(".error-index dt")]
    assert sorted(shown) == [entry.id for entry in entries]
    codes = {code.get_text() for code in page.select(".error-index dt code")}
    assert {m for e in entries for m in book_errors.messages_of(e)} <= codes


def wrong_references(text, ids):
    """References to entries that lead elsewhere than they say, or nowhere."""
    links = re.findall(r"\[([^\[\]]*)\]\(10_broken_lamps\.ipynb#error-(\w+)\)", text)
    return [name for name, anchor in links if name != anchor or anchor not in ids]


def test_other_chapters_refer_to_entries_that_exist(entries):
    ids = {entry.id for entry in entries}
    for path in sorted(CHAPTER.parent.glob("*.ipynb")):
        assert wrong_references(path.read_text(encoding="utf-8"), ids) == [], path.name


@pytest.mark.parametrize("link", ["[E02](%sE03)", "[E99](%sE99)", "[here](%sE02)"])
def test_a_reference_that_misleads_is_seen(link):
    text = link % "10_broken_lamps.ipynb#error-"
    assert len(wrong_references(text, {"E02", "E03"})) == 1
