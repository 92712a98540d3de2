"""bench: its numbers are those of its rows' words; nothing here measures a time."""

import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from qtorch_tutorial import convert, models

nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")
sys.path.append(str(Path(__file__).parents[1] / "tools"))

import bench  # noqa: E402


def test_a_page_weighs_its_html_and_each_of_its_images_once(tmp_path):
    page = tmp_path / "chapters" / "01.html"
    page.parent.mkdir()
    (tmp_path / "a.png").write_bytes(bytes(1000))
    (tmp_path / "b.svg").write_bytes(bytes(200))
    (tmp_path / "unused.png").write_bytes(bytes(5000))
    page.write_text(
        '<img alt="a" src="../a.png"><img src="../a.png" class="x">µ'
        '<a href="../unused.png"></a><img src="../b.svg">'
        '<img src="data:image/png;base64,AAAA"><img src="https://example.org/c.png">',
        encoding="utf-8",
    )
    assert bench.page_bytes(page) == page.stat().st_size + 1200


def test_an_edit_changes_the_text_and_no_code(tmp_path):
    path = tmp_path / "a.ipynb"
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("x = 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    bench.edit(path)
    first, second = nbformat.read(path, as_version=4).cells
    assert first.source == "# A\n\nOne more sentence."
    assert second.source == "x = 1"


def test_the_notebook_to_compare_with_is_valid_and_only_imports():
    notebook = bench.importing_notebook()
    nbformat.validate(notebook)
    (cell,) = notebook.cells
    assert cell.source == "import torch, torchvision, qtorch_tutorial"


def test_the_interval_leaves_out_seven_on_each_side():
    shuffled = [float((7 * n) % 27) for n in range(27)]
    assert bench.interval(shuffled) == (7.0, 19.0)


def test_converted_by_hand_is_what_convert_makes(rng):
    network = models.make_tale_network((12, 8, 4), rng=rng)
    x = torch.rand(64, 12, generator=rng)
    ours = convert.to_static(network, calibration=x)
    assert torch.equal(bench.by_hand(network, calibration=x)(x), ours(x))


def test_what_cannot_be_measured_is_missed_and_says_why(monkeypatch):
    def part():
        bench.seconds("python", "-c", "print('out of order'); raise SystemExit(3)")

    monkeypatch.setitem(bench.PARTS, "html", part)
    (row,) = bench.run("html")
    assert not row.met
    assert row.measured == "RuntimeError: python failed: ... out of order"


def test_a_time_is_that_of_the_command():
    assert bench.seconds("python", "-c", "import time; time.sleep(0.2)") > 0.2


def test_the_table_says_met_or_missed_and_keeps_brackets():
    console = Console(width=100)
    rows = [bench.Row("a", "<= 1", "1 [0, 2]", True), bench.Row("b", "", "2", False)]
    with console.capture() as captured:
        console.print(bench.table(rows))
    cells = [[c.strip() for c in s.split("│")] for s in captured.get().splitlines()]
    assert ["", "a", "<= 1", "1 [0, 2]", "met", ""] in cells
    assert ["", "b", "", "2", "missed", ""] in cells


def test_parts_are_chosen_by_name_and_a_missed_goal_is_no_error(monkeypatch, capsys):
    for name, row in (("html", "one"), ("nbval", "two")):
        rows = [bench.Row(row, "", "", False)]
        monkeypatch.setitem(bench.PARTS, name, lambda rows=rows: rows)
    bench.main(["html"])
    shown = capsys.readouterr().out
    assert "one" in shown
    assert "two" not in shown


def test_a_part_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(SystemExit, match="unknown speed; known are nbval, html"):
        bench.main(["speed"])
