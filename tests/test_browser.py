"""The built pages in a real browser: what a reader sees, hears and clicks.

Needs the built book and Debian's chromium, so it runs when asked to::

    make book && QTORCH_BROWSER=1 pytest tests/test_browser.py
"""

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.skipif(
    os.environ.get("QTORCH_BROWSER") != "1", reason="asked for with QTORCH_BROWSER=1"
)
playwright = pytest.importorskip("playwright.sync_api", reason="extra `test` missing")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"], *(c["file"] for p in TOC["parts"] for c in p["chapters"])]
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]
PAGE = pytest.mark.parametrize("page", PAGES)
SCHEME = pytest.mark.parametrize("scheme", ["light", "dark"])

# Chromium must not look for its own hosts.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Faults that lie in what Sphinx and its theme write, by the rule that axe-core reports.
KNOWN = {
    "region",  # the logo and the contents lie outside landmarks
    "label-content-name-mismatch",  # the search button
    "landmark-unique",
    "landmark-no-duplicate-banner",
}
KNOWN_ON = {
    "book/api": {"definition-list"},  # an attribute's type stands in its list
    "book/references": {"aria-required-children"},  # the entries of a bibliography
}


@pytest.fixture(scope="module")
def site():
    """Address of the built book, served on loopback."""
    assert (HTML / "index.html").exists(), "build the book first: make book"
    handler = functools.partial(Quiet, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files and keep silent."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "no chromium: apt-get install chromium"
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=found, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def open_page(site, browser):
    """Open a page of the book; collects what it asks for and complains about."""
    contexts = []

    def open_it(name, *, scheme="light", width=1300):
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}
        )
        contexts.append(context)
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on(
            "console",
            lambda m: page.complaints.append(m.text) if m.type == "error" else None,
        )
        page.goto(f"{site}/{name}.html", wait_until="networkidle")
        return page

    yield open_it
    for context in contexts:
        context.close()


def violations(page, *, ignore=KNOWN):
    """What axe-core finds, except the theme's known faults, in one line each."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{v['id']} ({v['impact']}): {[n['target'] for n in v['nodes']][:3]}"
        for v in found
        if v["id"] not in ignore and v["impact"] in ("serious", "critical")
    ]


@PAGE
@SCHEME
def test_a_page_is_readable_and_asks_no_other_host(open_page, site, page, scheme):
    shown = open_page(page, scheme=scheme)
    assert shown.locator("html").get_attribute("data-theme") == scheme
    assert [url for url in shown.asked if not url.startswith((site, "data:"))] == []
    assert shown.complaints == []
    known = KNOWN | KNOWN_ON.get(page, set())
    assert violations(shown, ignore=known) == []


@PAGE
def test_formulas_are_set_and_images_have_an_alternative_text(open_page, page):
    shown = open_page(page)
    text = shown.locator("article").inner_text()
    prose = shown.evaluate(
        """() => {
            const copy = document.querySelector("article").cloneNode(true);
            copy.querySelectorAll("pre, code, mjx-container").forEach(e => e.remove());
            return copy.textContent;
        }"""
    )
    assert len(text) > 100
    assert not re.search(r"\\\(|\\\[|\$\$|\\frac|\\mathrm", prose)
    images = shown.locator("article img").all()
    assert all((image.get_attribute("alt") or "").strip() for image in images)
    assert shown.locator("html").get_attribute("lang") == "en"


@PAGE
@pytest.mark.parametrize("width", [360, 768, 1600])
def test_no_page_is_wider_than_its_window(open_page, page, width):
    shown = open_page(page, width=width)
    wide = shown.evaluate("document.documentElement.scrollWidth")
    assert wide <= width


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_folds_its_solutions_and_opens_them(open_page, page):
    shown = open_page(page)
    folds = shown.locator(".cell.tag_solution details.hide")
    assert folds.count() >= 3
    assert not folds.first.evaluate("fold => fold.open")
    folds.first.locator("summary").click()
    assert shown.locator(".cell.tag_solution pre").first.is_visible()


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_has_boxes_terms_copy_buttons_and_its_colab_button(open_page, page):
    shown = open_page(page)
    for box in ("prometheus", "athena"):
        assert shown.locator(f"div.admonition.{box}").count() >= 1
    term = shown.locator("a.glossary-link").first
    assert term.get_attribute("title").endswith(".")
    assert shown.locator("button.copybtn").count() >= 5
    badge = shown.locator("a:has(img.colab-badge)").first.get_attribute("href")
    assert badge.endswith(f"{page}.ipynb")


def test_the_ledger_leads_to_every_trial(open_page):
    shown = open_page("book/ledger")
    links = shown.locator("table.ledger tbody a").all()
    targets = [link.get_attribute("href") for link in links]
    assert len(targets) >= 16
    for target in targets:
        path, _, anchor = target.removeprefix("../").partition("#")
        text = (HTML / path).read_text(encoding="utf-8")
        assert f'id="{anchor}"' in text, target


def test_the_search_finds_a_page(open_page):
    shown = open_page("search")
    assert shown.locator("input[type=search]:visible").count() == 1
    shown.locator("input[type=search]:visible").fill("requantization")
    shown.keyboard.press("Enter")
    shown.wait_for_selector("#search-results li")
    assert "requantization" in shown.locator("#search-results").inner_text().lower()


@pytest.mark.parametrize(
    "message",
    [
        "Could not run 'quantized::linear' with arguments from the 'CPU' backend",
        "quantized engine NoQEngine is not supported",
        "must run observer before calling calculate_qparams",
    ],
)
def test_a_pasted_message_finds_the_index_of_errors(open_page, message):
    shown = open_page("search")
    shown.locator("input[type=search]:visible").fill(message)
    shown.keyboard.press("Enter")
    shown.wait_for_selector("#search-results li a[href*='book/errors.html']")


def test_the_reader_can_change_light_and_dark(open_page):
    shown = open_page("book/index")
    seen = set()
    for _ in range(3):
        shown.locator(".theme-switch-button:visible").first.click()
        seen.add(shown.locator("html").get_attribute("data-theme"))
    assert seen == {"light", "dark"}


# ---- the checks themselves can fail -------------------------------------------------


def test_an_unreadable_page_is_found(browser):
    page = browser.new_page()
    page.set_content(
        "<html lang=en><title>t</title><main><p style='color:#ccc;background:#fff'>pale"
        "</p><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='></main></html>"
    )
    found = " ".join(violations(page))
    page.close()
    assert "color-contrast" in found
    assert "image-alt" in found


def test_a_request_to_another_host_is_seen(open_page, site):
    shown = open_page("book/index")
    shown.evaluate("fetch('http://127.0.0.2:9/x').catch(() => 0)")
    shown.wait_for_timeout(200)
    assert any(not url.startswith(site) for url in shown.asked)
