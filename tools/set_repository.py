"""Set the repository's address everywhere it stands: ``make repository URL=...``.

    python tools/set_repository.py https://github.com/you/quantized-torch

The address that is replaced is the one in ``_config.yml``. It stands in the files below
as a link, in pip's address and in that of the published pages, and in every notebook as
badge and setup cell. All files are prepared before the first is written, and a file
that does not name the old address is an error, so that nothing is left half-way.
"""

import re
import shutil
import sys
from pathlib import Path

import nbformat
import refresh
import yaml

ROOT = Path(__file__).parents[1]

NAMED_IN = ("_config.yml", "README.md", "CITATION.cff", "pyproject.toml")
"""Files that must name the address; so must every chapter."""

MAY_NAME = ("*.md", "book/*.md", "docs/**/*.md")
"""Files that are changed too if they name it."""

_ADDRESS = re.compile(
    r"https://github\.com"
    r"/(?P<owner>[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38})"
    r"/(?P<name>(?!.*\.git$)[A-Za-z0-9_][A-Za-z0-9._-]{0,99})"
)


def main(arguments: list[str], *, root: Path = ROOT) -> None:
    """Set the address given, in all files or in none."""
    if len(arguments) != 1:
        sys.exit("usage: make repository URL=https://github.com/you/quantized-torch")
    try:
        texts = prepare(arguments[0], root=root)
    except ValueError as error:
        sys.exit(f"nothing was changed: {error}")
    write_all(texts)
    for path in sorted(texts):
        print(path.relative_to(root))


def prepare(url: str, *, root: Path = ROOT) -> dict[Path, str]:
    """Return the new text of every file that has to change.

    Raises
    ------
    ValueError
        If ``url`` has another shape, or a file does not name the present address.
    """
    new = split_address(url)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    old = split_address(config["repository"]["url"])
    chapters = sorted(root.glob("chapters/*.ipynb"))
    named_in = [*(root / name for name in NAMED_IN), *chapters]
    may_name = {path for pattern in MAY_NAME for path in root.glob(pattern)}
    texts = {}
    for path in (*named_in, *sorted(may_name.difference(named_in))):
        before = path.read_text(encoding="utf-8")
        after = replace(before, old, new)
        if after == before and old != new and path in named_in:
            raise ValueError(
                f"{path.relative_to(root)} does not name https://github.com/"
                f"{'/'.join(old)}, the address in _config.yml; make them agree first"
            )
        if after != before:
            texts[path] = normalized(after) if path in chapters else after
    return texts


def split_address(url: str) -> tuple[str, str]:
    """Return owner and name of ``https://github.com/owner/name``.

    Raises
    ------
    ValueError
        If ``url`` has another shape.

    Examples
    --------
    >>> split_address("https://github.com/you/quantized-torch")
    ('you', 'quantized-torch')
    """
    found = _ADDRESS.fullmatch(url)
    if not found:
        raise ValueError(
            f"{url!r} is not an address of the shape "
            "https://github.com/you/quantized-torch (no slash or .git at the end)"
        )
    return found["owner"], found["name"]


def replace(text: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    """Replace the address in ``text``: on github.com, in Colab, of the pages.

    Examples
    --------
    >>> old, new = ("OWNER", "book"), ("you", "torch")
    >>> replace("git+https://github.com/OWNER/book@v1", old, new)
    'git+https://github.com/you/torch@v1'
    >>> replace("https://OWNER.github.io/book/, github.com/OWNER/bookshop", old, new)
    'https://you.github.io/torch/, github.com/OWNER/bookshop'
    >>> replace("https://colab.research.google.com/github/OWNER/book", old, new)
    'https://colab.research.google.com/github/you/torch'
    """
    for form in ("github.com/{}/{}", "github/{}/{}", "{}.github.io/{}"):
        whole = rf"(?<![\w-]){re.escape(form.format(*old))}(?![\w-])"
        text = re.sub(whole, form.format(*new), text)
    return text


def normalized(text: str) -> str:
    """Give a notebook the digest and the cell ids that belong to its new code."""
    notebook = nbformat.reads(text, as_version=4)
    refresh.normalize(notebook)
    return refresh.as_text(notebook)


def write_all(texts: dict[Path, str]) -> None:
    """Write every file, or leave every file as it was."""
    before = {path: path.read_bytes() for path in texts}
    fresh = {path: path.with_name(f"{path.name}.new") for path in texts}
    try:
        for path, text in texts.items():
            fresh[path].write_text(text, encoding="utf-8")
            shutil.copymode(path, fresh[path])
        for path in texts:
            fresh[path].replace(path)
    except BaseException:
        for path, content in before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
        raise
    finally:
        for path in fresh.values():
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
