"""Cure what sphinx-book-theme and its companions do to every page.

sphinx-thebe is part of Jupyter Book and cannot be switched off. It declares
``THEBE_JS_URL`` twice, which is a SyntaxError in the console of every page, and names
a host that we do not want to ask. This book runs no code in the page, so its scripts
are left out altogether. Whatever else is listed twice is listed once.
"""

from collections.abc import Iterable
from typing import Any

from sphinx.application import Sphinx


def script_key(script: Any) -> tuple[str, str]:
    """File name and inline body of a script of Sphinx; each may be empty."""
    attributes = getattr(script, "attributes", {})
    return str(getattr(script, "filename", script) or ""), attributes.get("body") or ""


def clean_scripts(scripts: Iterable[Any]) -> list[Any]:
    """Drop the scripts of thebe and every repetition; keep the order."""
    kept = {}
    for script in scripts:
        name, body = script_key(script)
        if "thebe" not in name and "THEBE_JS_URL" not in body:
            kept.setdefault((name, body), script)
    return list(kept.values())


def _clean_page(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Clean the scripts of one page right before it is written."""
    context["script_files"] = clean_scripts(context.get("script_files", ()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the cure; it runs after every other listener."""
    app.connect("html-page-context", _clean_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
