"""The book's laws that need no browser: its pages, its lists, its own extensions.

The extensions are tested on a small site that Sphinx builds in a second, so that a test
sees the pages a reader would see and the warnings that would fail the strict build.
"""

import doctest
import io
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from qtorch_tutorial import tale

pytest.importorskip("sphinx", reason="the extra `book` is not installed")
nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")
bs4 = pytest.importorskip("bs4", reason="the extra `book` is not installed")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "book" / "_ext"))  # as _config.yml does for Sphinx

import book_chapters  # noqa: E402
import book_environment  # noqa: E402
import book_glossary  # noqa: E402
import book_images  # noqa: E402
import book_ledger  # noqa: E402
import book_tables  # noqa: E402
import book_theme  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util.docutils import docutils_namespace, patch_docutils  # noqa: E402

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
URL = CONFIG["repository"]["url"]
BRANCH = CONFIG["repository"]["branch"]
NOTEBOOKS = sorted((ROOT / "chapters").glob("*.ipynb"))
CHAPTERS = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def pages_of(toc: dict) -> list[str]:
    """Every page of a _toc.yml, in reading order."""
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [toc["root"], *listed]


def title_of(notebook: Path) -> str:
    """The text of a notebook's first heading, without backticks."""
    first = nbformat.read(notebook, as_version=4).cells[0].source
    return re.search(r"^# (.+)$", first, re.MULTILINE)[1].replace("`", "")


# ---- the lists agree with the files ------------------------------------------


def test_the_contents_list_exactly_the_chapters_that_exist():
    listed = [page for page in pages_of(TOC) if page.startswith("chapters/")]
    assert listed == [f"chapters/{path.stem}" for path in NOTEBOOKS]


def test_the_contents_list_exactly_the_pages_that_exist():
    listed = [page for page in pages_of(TOC) if page.startswith("book/")]
    assert sorted(listed) == sorted(f"book/{p.stem}" for p in ROOT.glob("book/*.md"))


def test_no_page_is_listed_twice():
    assert len(set(pages_of(TOC))) == len(pages_of(TOC))


def test_the_landing_page_has_a_card_for_each_chapter_with_its_title():
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    cards = re.findall(
        r":::\{grid-item-card\} (\d+)\. (.+)\n:link: \.\./chapters/(\w+)\n", text
    )
    found = {name: (int(n), title.replace("`", "")) for n, title, name in cards}
    assert found == {p.stem: (int(p.stem[:2]), title_of(p)) for p in NOTEBOOKS}


@CHAPTERS
def test_a_chapter_holds_the_trials_of_its_claims_and_no_others(path: Path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
    anchors = re.findall(r'<a id="claim-(T\d\d)"></a>', text)
    number = book_chapters.chapter_number(f"chapters/{path.stem}")
    tried = [c.id for c in tale.CLAIMS.values() if c.chapter == number and c.verdict]
    assert sorted(anchors) == sorted(tried)


# ---- one repository, no other host -------------------------------------------


@CHAPTERS
def test_badge_and_setup_cell_of_a_chapter_name_the_repository(path: Path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
    where = f"{URL.removeprefix('https://github.com/')}/blob/{BRANCH}/chapters"
    assert f"https://colab.research.google.com/github/{where}/{path.name}" in text
    assert f"git+{URL}" in text


@pytest.mark.parametrize("name", ["README.md", "CITATION.cff", "pyproject.toml"])
def test_the_repository_is_the_same_everywhere(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    owner, repository = URL.removeprefix("https://github.com/").split("/")
    named = re.findall(rf"github\.com/([\w.-]+)/{re.escape(repository)}\b", text)
    assert named, f"{name} does not name the repository"
    assert set(named) == {owner}


def test_the_configuration_names_no_host_but_the_repository_and_colab():
    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts == {"github.com", "colab.research.google.com"}
    assert "sphinx.ext.intersphinx" not in text


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "book" / "_static").iterdir()) if p.suffix != ".json"],
    ids=lambda p: p.name,
)
def test_our_static_files_ask_no_host(path: Path):
    text = path.read_bytes().replace(b"http://www.w3.org/", b"")  # names, not addresses
    assert b"http:" not in text
    assert b"https:" not in text


def test_printing_does_not_open_the_solutions():
    assert CONFIG["sphinx"]["config"]["togglebutton_open_on_print"] is False


def test_no_static_folder_at_the_root():
    # Jupyter Book 1 would load every script below it on every page.
    assert not (ROOT / "_static").exists()


# ---- the glossary ------------------------------------------------------------

TERMS = """accumulator, activation, adapter, affine, batch normalization, break-even,
    calibration, clamp, dequantize, dynamic quantization, engine, fake quantization,
    FBGEMM, folding, freezing, fused module, granularity, interval, latency, linear
    module, median, observer, oneDNN, packed weight, paired test, Pareto front, per
    channel, per group, per tensor, qconfig, qint32, qint8, QNNPACK, quint8, reduced
    range, requantization, roofline, round half to even, saturation, scale,
    sensitivity, SQNR, standard error, static quantization, step, straight-through
    estimator, stub, symmetric, VNNI, weight-only quantization, zero point"""


def glossary() -> dict[str, str]:
    """Each term of the glossary page with its definition, from the source."""
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    body = re.search(r"```\{glossary\}\n:sorted:\n\n(.+?)```", text, re.DOTALL)[1]
    entries = {}
    for block in body.strip().split("\n\n"):
        lines = block.splitlines()
        names = [line for line in lines if not line.startswith(" ")]
        definition = " ".join(line.strip() for line in lines if line.startswith(" "))
        for name in names:
            assert name.lower() not in map(str.lower, entries), f"{name} is twice there"
            entries[name] = definition
    return entries


def test_the_glossary_has_every_field_term_once():
    wanted = {" ".join(term.split()) for term in TERMS.split(",")}
    assert wanted <= glossary().keys()


@pytest.mark.parametrize("term", glossary())
def test_a_definition_starts_with_a_sentence_fit_for_hovering(term: str):
    hover = book_glossary.first_sentence(glossary()[term])
    assert hover.endswith(".")
    assert len(hover) <= 180
    assert not re.search(r"[$`{}]", hover), "no math, code or role shows in a tooltip"


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("zero point", "the zero points are"),
        ("zero point", "a zero-point here"),
        ("zero point", "the zero\npoint"),
        ("latency", "both latencies"),
        ("accumulator", "Accumulators hold"),
        ("per channel", "(per-channel)"),
    ],
)
def test_a_term_is_found_in_plural_and_with_a_hyphen(term: str, text: str):
    pieces = list(
        book_glossary.split_text(text, book_glossary.make_matcher([term]), set())
    )
    assert [index for _, index in pieces if index is not None] == [0]
    assert "".join(piece for piece, _ in pieces) == text


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("scale", "rescaled"),
        ("scale", "scale-free"),
        ("scale", "qparams.scale"),
        ("scale", "a/scale"),
        ("scale", "s_scale"),
        ("observer", "observers_of"),
        ("median", "medians-of-means"),
    ],
)
def test_a_term_inside_another_word_is_left_alone(term: str, text: str):
    pieces = list(
        book_glossary.split_text(text, book_glossary.make_matcher([term]), set())
    )
    assert pieces == [(text, None)]


def test_the_longer_of_two_terms_wins():
    matcher = book_glossary.make_matcher(["quantization", "fake quantization"])
    pieces = list(book_glossary.split_text("by fake quantization", matcher, set()))
    assert pieces == [("by ", None), ("fake quantization", 1)]


def test_a_term_is_linked_once():
    seen = set()
    matcher = book_glossary.make_matcher(["scale"])
    text = "a scale and a scale"
    assert list(book_glossary.split_text(text, matcher, seen)) == [
        ("a ", None),
        ("scale", 0),
        (" and a scale", None),
    ]
    assert list(book_glossary.split_text(text, matcher, seen)) == [(text, None)]


# ---- small parts of the extensions -------------------------------------------


@pytest.mark.parametrize(
    ("page", "number"),
    [("chapters/04_the_tale", 4), ("chapters/13_fusing", 13), ("book/index", None)],
)
def test_the_number_of_a_chapter_is_that_of_its_file(page: str, number: int | None):
    assert book_chapters.chapter_number(page) == number


def test_a_chapter_is_found_by_its_number():
    pages = {"book/index", "chapters/05_linear", "chapters/06_quantized_linear"}
    assert book_chapters.find_chapter(pages, 6) == "chapters/06_quantized_linear"
    assert book_chapters.find_chapter(pages, 7) is None


class Script:
    """As much of a script of Sphinx as the cure looks at."""

    def __init__(self, filename: str | None, body: str = ""):
        self.filename = filename
        self.attributes = {"body": body}


def test_scripts_of_thebe_and_repetitions_are_dropped():
    own, math = Script(None, "let x"), Script("mathjax.js")
    scripts = [own, Script("sphinx-thebe.js"), Script(None, 'THEBE_JS_URL = ""')]
    again = [math, Script("mathjax.js"), Script(None, "let x")]
    assert book_theme.clean_scripts([*scripts, *again]) == [own, math]


def test_the_images_module_keeps_what_its_examples_say():
    assert doctest.testmod(book_images).failed == 0
    assert book_images.local_uri("//example.org/figure.png") is None


def test_the_summary_counts_every_claim_of_the_tale_once():
    counts = dict(book_ledger.summary(tale.CLAIMS.values()))
    assert sum(counts.values()) == len(tale.CLAIMS)
    recorded = {c.verdict for c in tale.CLAIMS.values()} - {None}
    assert recorded <= counts.keys()


def test_a_table_row_with_a_missing_cell_is_refused():
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        book_tables.make_table(("a", "b"), [("only",)], widths=(1, 1))


FACTS = {
    "date": "2026-11-23",
    "python": "3.11.9",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "numpy": "2.1.3",
    "platform": "Linux x86_64",
    "cpu": "a processor",
    "instructions": ["AVX2", "VNNI"],
    "engine": "x86",
    "threads": 2,
}


def test_the_provenance_shows_every_field_in_words():
    rows = dict(book_environment.provenance_rows(FACTS))
    assert rows["Instruction sets for int8"] == "AVX2, VNNI"
    assert rows["Threads of torch"] == "2"
    assert len(rows) == len(FACTS)
    nothing = {**FACTS, "instructions": []}
    assert (
        dict(book_environment.provenance_rows(nothing))["Instruction sets for int8"]
        == "none"
    )


def test_a_provenance_that_is_not_written_yet_is_none(tmp_path: Path):
    assert book_environment.read_provenance(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object, got list"),
        (
            json.dumps({k: v for k, v in FACTS.items() if k != "cpu"}),
            r"lacks \['cpu'\]",
        ),
        (json.dumps({**FACTS, "gpu": "one"}), r"unknown \['gpu'\]"),
        (json.dumps({**FACTS, "date": "yesterday"}), "yesterday"),
    ],
    ids=["broken", "list", "missing", "unknown", "date"],
)
def test_a_faulty_provenance_is_refused_with_its_fault(
    tmp_path: Path, text: str, message: str
):
    path = tmp_path / "provenance.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        book_environment.read_provenance(path)


def test_the_committed_provenance_can_be_shown():
    path = ROOT / "book" / "_static" / "provenance.json"
    assert book_environment.read_provenance(path), "run `make refresh`"


# ---- a small site ------------------------------------------------------------

CLAIMS = {
    "T01": tale.Claim("T01", "It is so.", 4, tale.OVERTURNED, "It is not."),
    "T02": tale.Claim("T02", "It may be.", 12),
}
GLOSSARY = """# Glossary

```{glossary}
scale
  The distance. More on it.

zero point
  The integer. More on it.
```
"""
ENVIRONMENT = "# Environment\n\n```{provenance} _static/provenance.json\n```\n"
CHAPTER = """# Of a scale

[![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/x)

The `scale`, <a href="x">a scale</a>, $scale$, [the scale](#claim-T01), a scale, scale.

<div class="admonition athena">
<p class="admonition-title">Athena counsels</p>

Two **zero points**.

</div>

## Claim

<a id="claim-T01"></a>
"""


METADATA = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}


def notebook(text: str) -> str:
    """A chapter of ``text`` and a hidden cell whose output holds a glossary term."""
    output = nbformat.v4.new_output("stream", name="stdout", text="a zero point\n")
    tags = {"tags": ["setup", "hide-input"]}
    cells = [
        nbformat.v4.new_markdown_cell(text),
        nbformat.v4.new_code_cell("import scale", metadata=tags, outputs=[output]),
    ]
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=METADATA))


def build(
    folder: Path, *, chapter: str = CHAPTER, claims: dict | None = None, **files: str
) -> tuple[Path, str]:
    """Build a small book; return where its HTML lies and its warnings."""
    badge = ROOT / book_images.BADGE.removeprefix("/")
    pages = {
        "index.md": "# Top\n\n```{toctree}\n:glob:\nbook/*\nchapters/*\n```\n",
        "book/glossary.md": GLOSSARY,
        "book/ledger.md": "# Ledger\n\n```{ledger-summary}\n```\n\n```{ledger}\n```\n",
        "book/_static/badge_colab.svg": badge.read_text(encoding="utf-8"),
        "chapters/04_tale.ipynb": notebook(chapter),
        **files,
    }
    for name, text in pages.items():
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / name).write_text(text, encoding="utf-8")
    config = {
        "extensions": ["myst_nb", *CONFIG["sphinx"]["local_extensions"]],
        "nb_execution_mode": "off",
        "myst_enable_extensions": CONFIG["parse"]["myst_enable_extensions"],
        "myst_heading_anchors": 3,
        "nitpicky": True,
    }
    warnings, out = io.StringIO(), folder / "html"
    where = (folder / "src", None, out, folder / "doctrees", "html")
    with pytest.MonkeyPatch.context() as patch, patch_docutils(), docutils_namespace():
        patch.setattr(tale, "CLAIMS", CLAIMS if claims is None else claims)
        Sphinx(*where, config, None, warnings).build()
    return out, warnings.getvalue()


def soup(path: Path):
    return bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def chapter(site):
    return soup(site[0] / "chapters" / "04_tale.html")


def test_the_small_site_builds_without_a_warning(site):
    assert site[1] == ""


def test_a_chapter_shows_the_number_of_its_file(chapter):
    assert chapter.h1.get_text().startswith("4. Of a scale")


def test_only_the_first_use_in_prose_is_linked_to_the_glossary(chapter):
    links = chapter.select("a.glossary-link")
    assert [link.get_text() for link in links] == ["scale", "zero points"]
    assert links[0].previous_sibling.endswith(", a ")
    assert links[0]["href"] == "../book/glossary.html#term-scale"
    assert links[0]["title"] == "The distance."


def test_a_box_becomes_an_admonition_with_its_markdown_read(chapter):
    (box,) = chapter.select("div.admonition.athena")
    assert box.select_one("p.admonition-title").get_text() == "Athena counsels"
    assert box.strong.get_text() == "zero points"
    assert not box.select(".admonition")


def test_a_raw_anchor_is_a_target_that_links_reach(chapter):
    assert len(chapter.select("#claim-T01")) == 1
    assert chapter.find("a", string="the scale")["href"] == "#claim-T01"


def test_the_badge_is_shown_from_our_own_pages(chapter):
    (image,) = chapter.select("img.colab-badge")
    assert image["src"] == "../_images/badge_colab.svg"


def test_the_fold_of_the_setup_cell_says_so(chapter):
    assert (
        "Show the setup cell" in chapter.select_one("details.hide summary").get_text()
    )


def test_the_ledger_lists_every_claim_with_verdict_evidence_and_trial(site):
    page = soup(site[0] / "book" / "ledger.html")
    rows = [row.find_all("td") for row in page.select("table.ledger tbody tr")]
    texts = [[cell.get_text().strip() for cell in row] for row in rows]
    assert texts == [
        ["T01", "It is so.", "overturned", "It is not."],
        ["T02", "It may be.", "not yet tried", "Chapter 12 will try it."],
    ]
    assert rows[0][0].a["href"] == "../chapters/04_tale.html#claim-T01"
    assert rows[1][0].a is None
    assert page.select_one(".ledger-summary").get_text().split()[:4] == [
        *("0", "upheld", "1", "overturned")
    ]


def test_the_environment_page_shows_the_file(tmp_path: Path):
    files = {
        "book/environment.md": ENVIRONMENT,
        "book/_static/provenance.json": json.dumps(FACTS),
    }
    out, warnings = build(tmp_path, **files)
    assert warnings == ""
    assert "AVX2, VNNI" in soup(out / "book" / "environment.html").table.get_text()


def test_the_environment_page_builds_before_the_first_refresh(tmp_path: Path):
    out, warnings = build(tmp_path, **{"book/environment.md": ENVIRONMENT})
    assert warnings == ""
    assert (
        "No outputs have been recorded"
        in soup(out / "book" / "environment.html").get_text()
    )


@pytest.mark.parametrize(
    ("fault", "warning"),
    [
        (("\n\n</div>", ""), "a box ends with </div>"),
        (("Athena counsels</p>\n", "Athena counsels</p>"), "a box starts with its div"),
        (("colab-badge.svg", "other.svg"), "remote image"),
        (('id="claim-T01"', 'id="claim"'), "anchor claim is there already"),
        (('id="claim-T01"', 'id="claim-T99"'), "'#claim-T01'|claim-T01"),
    ],
    ids=["open box", "no blank line", "remote image", "anchor twice", "dead link"],
)
def test_a_faulty_chapter_warns_and_so_fails_the_strict_build(
    tmp_path: Path, fault: tuple[str, str], warning: str
):
    assert fault[0] in CHAPTER
    _, warnings = build(tmp_path, chapter=CHAPTER.replace(*fault))
    assert re.search(warning, warnings)


def test_a_verdict_without_a_chapter_warns(tmp_path: Path):
    claims = {"T03": tale.Claim("T03", "It was.", 11, tale.UPHELD, "It was.")}
    _, warnings = build(tmp_path, claims=claims)
    assert "claim T03 has a verdict, but chapter 11 is not in the book" in warnings


def test_a_faulty_provenance_fails_the_strict_build(tmp_path: Path):
    files = {"book/environment.md": ENVIRONMENT, "book/_static/provenance.json": "{}"}
    _, warnings = build(tmp_path, **files)
    assert "lacks ['cpu', 'date'" in warnings
