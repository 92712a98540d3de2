"""The chapters' own laws: what nbval cannot see.

A law is a function from a notebook to its faults. Every law is held to every chapter,
and every law is shown a notebook that breaks it: a guard that cannot fail is a defect.
"""

import copy
import re
import statistics
import sys
from pathlib import Path

import pytest

from qtorch_tutorial import tale

nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

import refresh  # noqa: E402

PATHS = sorted((ROOT / "chapters").glob("*.ipynb"))
LAWS = {}


def law(function):
    """Hold every chapter to ``function``, which lists the faults it finds."""
    LAWS[function.__name__] = function
    return function


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def code_lines(cell):
    """Lines of code: neither blank nor a comment."""
    stripped = (line.strip() for line in cell.source.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def printed(cell):
    """The text that a cell shows and nbval compares."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append(output.get("text", ""))
        parts.append(output.get("data", {}).get("text/plain", ""))
        parts.append(output.get("evalue", ""))
    return "\n".join(parts)


# ---- outputs are real and belong to the code ----------------------------------


@law
def execution_counts_run_from_1_to_n(notebook):
    # nbval never compares a cell whose count is null: stripped, it checks nothing.
    counts = [cell.execution_count for cell in code_cells(notebook)]
    expected = list(range(1, len(counts) + 1))
    return [] if counts == expected else [f"execution counts are {counts}"]


@law
def outputs_belong_to_the_present_code(notebook):
    stored = notebook.metadata.get("qtorch", {}).get("code_digest")
    fresh = refresh.code_digest(notebook)
    return [] if stored == fresh else ["the code has changed: run `make refresh`"]


@law
def the_notebook_is_normalized(notebook):
    before = copy.deepcopy(notebook)
    refresh.normalize(notebook)
    return [] if notebook == before else ["run `make refresh`"]


@law
def few_outputs_are_ignored(notebook):
    cells = code_cells(notebook)
    ignored = [c for c in cells if {"nbval-ignore-output", "nbval-skip"} & set(tags(c))]
    if len(ignored) > 0.2 * len(cells):
        return [f"{len(ignored)} of {len(cells)} outputs are ignored"]
    return [f"skipped: {c.source}" for c in ignored if "nbval-skip" in tags(c)]


@law
def outputs_are_compared(notebook):
    compared = [
        c for c in code_cells(notebook)
        if printed(c).strip() and "nbval-ignore-output" not in tags(c)
    ]  # fmt: skip
    return [] if len(compared) >= 10 else [f"only {len(compared)} outputs are compared"]


@law
def only_deliberate_errors_are_stored_and_each_is_asserted_next(notebook):
    faults = []
    cells = code_cells(notebook)
    for i, cell in enumerate(cells):
        failed = any(o.output_type == "error" for o in cell.outputs)
        deliberate = "raises-exception" in tags(cell)
        if failed != deliberate:
            faults.append(f"error: {failed}, deliberate: {deliberate}: {cell.source}")
        # nbval passes a tagged cell that raises nothing, so the next cell must look.
        if deliberate and "assert" not in cells[i + 1].source:
            faults.append(f"what was raised is not asserted: {cell.source}")
    if not any("raises-exception" in tags(cell) for cell in cells):
        faults.append("no cell fails on purpose")
    return faults


@law
def outputs_name_no_place_of_a_machine(notebook):
    text = "\n".join(map(str, (c.outputs for c in code_cells(notebook))))
    return re.findall(r"(?:/root|/home|/tmp|/work|/usr|[A-Z]:\\Users)[\w./-]*", text)


@law
def stderr_is_empty(notebook):
    return [
        o.text for c in code_cells(notebook) for o in c.outputs
        if o.get("name") == "stderr"
    ]  # fmt: skip


@law
def at_most_four_significant_digits_are_printed(notebook):
    faults = []
    for cell in code_cells(notebook):
        if "nbval-ignore-output" not in tags(cell):
            for number in re.findall(r"(?<![\w.])\d+\.\d+(?:e[+-]\d+)?", printed(cell)):
                digits = number.split("e")[0].replace(".", "").lstrip("0")
                if len(digits) > 4 and len(number.split("e")[0].split(".")[1]) > 2:
                    faults.append(f"{number} in the output of: {cell.source}")
    return faults


# ---- shape ------------------------------------------------------------------------


@law
def the_opening_says_what_the_reader_will_do_learn_and_need(notebook):
    opening = notebook.cells[0].source
    wanted = ("# ", "[![Open in Colab](", "**You will do:**", "**You will learn:**",
              "**You need:**")  # fmt: skip
    faults = [part for part in wanted if part not in opening]
    if not opening.startswith("# "):
        faults.append("the first line is no title")
    return faults


@law
def setup_imports_and_banner_come_first(notebook):
    setup, imports, banner = code_cells(notebook)[:3]
    faults = []
    if tags(setup) != ["setup", "hide-input"] or "google.colab" not in setup.source:
        faults.append("the first code cell is not the setup cell")
    if not imports.source.endswith("repro.silence_deprecations()"):
        faults.append("the imports do not end by silencing the deprecations")
    if banner.source != "repro.banner()" or tags(banner) != ["nbval-ignore-output"]:
        faults.append("the third code cell is not the banner")
    return faults


@law
def cells_are_short_enough_to_hold_one_idea(notebook):
    lengths = sorted(c.source.count("\n") + 1 for c in code_cells(notebook))
    faults = []
    if lengths[-1] > 20:
        faults.append(f"a cell has {lengths[-1]} lines")
    if statistics.median(lengths) > 4:
        faults.append(f"the median cell has {statistics.median(lengths)} lines")
    if lengths[int(0.9 * (len(lengths) - 1))] > 12:
        faults.append("more than a tenth of the cells are longer than 12 lines")
    return faults


@law
def prose_and_code_are_in_proportion(notebook):
    words = len(prose(notebook).split())
    shown = [
        c for c in code_cells(notebook) if not {"setup", "solution"} & set(tags(c))
    ]
    ratio = words / sum(len(code_lines(c)) for c in shown)
    faults = []
    # A clinic may be longer: its entries are looked up, and not read in a row.
    clinic = any("error" in c.metadata.get("qtorch", {}) for c in notebook.cells)
    if not 900 <= words <= (2100 if clinic else 1800):
        faults.append(f"{words} words of prose")
    if not 8 <= ratio <= 25:
        faults.append(f"{ratio:.1f} words for each line of code")
    return faults


@law
def a_scene_opens_and_a_summary_closes(notebook):
    text = prose(notebook)
    scene = re.search(r"^## The scene\n(.+?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    faults = []
    if not scene or not 80 <= len(scene[1].split()) <= 260:
        faults.append("the scene is missing, or not 100 to 250 words")
    closing = text.partition("## Summary")[2]
    wanted = ("**Use it when", "fun fact", "Further reading", "Previous: ", "Next: ")
    return faults + [part for part in wanted if part not in closing]


@law
def both_voices_speak(notebook):
    text = prose(notebook)
    box = '<div class="admonition {}">\n<p class="admonition-title">{}</p>\n\n'
    voices = {"prometheus": "Prometheus tries", "athena": "Athena counsels"}
    missing = [v for v, title in voices.items() if box.format(v, title) not in text]
    return [f"no box of {voice}" for voice in missing]


@law
def markdown_is_plain(notebook):
    # Colab and GitHub know no MyST and would show it raw.
    patterns = (r"```\{", r"^:::", r"\{[a-z:-]+\}`", r"^\(\w[\w-]*\)=$")
    text = prose(notebook)
    return [found for p in patterns for found in re.findall(p, text, re.MULTILINE)]


@law
def no_cell_relies_on_a_semicolon_to_hide_its_value(notebook):
    # nbval runs cells without history, and there IPython ignores the semicolon.
    cells = code_cells(notebook)
    return [c.source for c in cells if c.source.rstrip().endswith(";")]


@law
def every_figure_has_an_alternative_text(notebook):
    faults = []
    for cell in code_cells(notebook):
        if any("image/png" in o.get("data", {}) for o in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if len(alt.split()) < 6:
                faults.append(f"no alternative text: {cell.source}")
    return faults


@law
def links_between_chapters_lead_somewhere(notebook):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose(notebook))
    return [t for t in targets if not (ROOT / "chapters" / t).exists()]


@law
def a_chapter_that_uses_deprecated_modules_says_so(notebook):
    code = "\n".join(c.source for c in code_cells(notebook))
    if "torch.ao" in code and "deprecated" not in prose(notebook):
        return ["torch.ao is used, but nothing says that it is deprecated"]
    return []


# ---- exercises ----------------------------------------------------------------------


def exercises(notebook):
    """The cells of each exercise: text, stub, check and solution, by its id."""
    found, current = {}, None
    for cell in notebook.cells:
        for kind in ("exercise", "exercise-stub", "check", "solution"):
            if kind in tags(cell):
                if kind == "exercise":
                    current = cell.metadata.get("qtorch", {}).get("id")
                found.setdefault(current, []).append((kind, cell))
    return found


@law
def exercises_are_text_stub_check_solution(notebook):
    found, faults = exercises(notebook), []
    if len(found) < 3:
        faults.append(f"only {len(found)} exercises")
    for name, cells in found.items():
        kinds = [kind for kind, _ in cells]
        if kinds != ["exercise", "exercise-stub", "check", "solution"]:
            faults.append(f"{name} is made of {kinds}")
            continue
        (_, text), (_, stub), (_, check), (_, solution) = cells
        told = text.metadata.qtorch
        if not (isinstance(told.get("points"), int) and told.points > 0):
            faults.append(f"{name} has no points")
        if "..." not in stub.source:
            faults.append(f"{name} has nothing to complete")
        if not re.fullmatch(rf'check\("{name}", \w+\)', check.source):
            faults.append(f"{name} is not checked by a line check(id, answer)")
        if f"{name}: not yet" not in printed(check):
            faults.append(f"the untouched stub of {name} is not refused")
        strict = rf'(?s)# @title Solution\n.*\ncheck\("{name}", \w+, strict=True\)'
        if not re.fullmatch(strict, solution.source):
            faults.append(f"the solution of {name} is not proved by a strict check")
        form = solution.metadata.get("cellView") == "form"
        if not (form and "hide-cell" in tags(solution)):
            faults.append(f"the solution of {name} is not folded")
    return faults


# ---- the laws are held ------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", LAWS)
def test_a_chapter_keeps_the_law(path, name):
    assert LAWS[name](read(path)) == []


def test_there_are_chapters():
    assert len(PATHS) >= 13


def trials(notebooks):
    """Ids of the claims that code cells try, in order."""
    code = [c.source for notebook in notebooks for c in code_cells(notebook)]
    return re.findall(r'try_claim\(\s*"(T\d\d)"', "\n".join(code))


def untried(claims, notebooks):
    """Claims with a verdict that no cell tries, or that are tried more than once."""
    tried = trials(notebooks)
    return [c.id for c in claims if c.verdict and tried.count(c.id) != 1]


def test_every_claim_with_a_verdict_is_tried_once():
    assert untried(tale.CLAIMS.values(), map(read, PATHS)) == []


def test_every_claim_of_the_tale_is_tried():
    assert len(tale.CLAIMS) == 27
    assert set(trials(map(read, PATHS))) == set(tale.CLAIMS)


# ---- every guard catches its fault ------------------------------------------------


@pytest.fixture
def notebook():
    return read(ROOT / "chapters" / "04_the_tale.ipynb")


def strip(notebook):
    for cell in code_cells(notebook):
        cell.execution_count = None
        cell.outputs = []


def change_code(notebook):
    code_cells(notebook)[4].source += "\npass"


def add_time_stamp(notebook):
    code_cells(notebook)[0].metadata["execution"] = {"iopub.status.busy": "2026"}


def ignore_all(notebook):
    for cell in code_cells(notebook):
        cell.metadata["tags"] = [*tags(cell), "nbval-ignore-output"]


def add_error(notebook):
    error = nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])
    code_cells(notebook)[5].outputs.append(error)


def forget_assertion(notebook):
    for cell in code_cells(notebook):
        cell.source = cell.source.replace("assert", "print")


def add_text(text):
    def break_it(notebook):
        notebook.cells[0].source += text

    return break_it


def add_output(text, name="stdout"):
    def break_it(notebook):
        output = nbformat.v4.new_output("stream", name=name, text=text)
        code_cells(notebook)[4].outputs.append(output)

    return break_it


def drop(text):
    def break_it(notebook):
        for cell in notebook.cells:
            cell.source = cell.source.replace(text, "")

    return break_it


def drop_alternative_texts(notebook):
    for cell in notebook.cells:
        cell.metadata.pop("mystnb", None)


def drop_cells(tag):
    def break_it(notebook):
        notebook.cells = [c for c in notebook.cells if tag not in tags(c)]

    return break_it


def lengthen(notebook):
    code_cells(notebook)[6].source += "\nx" * 21


def end_in_semicolon(notebook):
    code_cells(notebook)[6].source += ";"


BREAKS = [
    (execution_counts_run_from_1_to_n, strip),
    (outputs_belong_to_the_present_code, change_code),
    (the_notebook_is_normalized, add_time_stamp),
    (few_outputs_are_ignored, ignore_all),
    (outputs_are_compared, strip),
    (only_deliberate_errors_are_stored_and_each_is_asserted_next, add_error),
    (only_deliberate_errors_are_stored_and_each_is_asserted_next, forget_assertion),
    (outputs_name_no_place_of_a_machine, add_output("/home/me/torch.py")),
    (stderr_is_empty, add_output("a warning", name="stderr")),
    (at_most_four_significant_digits_are_printed, add_output("loss 0.123456")),
    (the_opening_says_what_the_reader_will_do_learn_and_need, drop("**You need:**")),
    (setup_imports_and_banner_come_first, drop("repro.silence_deprecations()")),
    (cells_are_short_enough_to_hold_one_idea, lengthen),
    (prose_and_code_are_in_proportion, add_text(" word" * 2000)),
    (a_scene_opens_and_a_summary_closes, drop("## The scene")),
    (both_voices_speak, drop("Athena counsels")),
    (markdown_is_plain, add_text("\n\n```{note}\nno\n```")),
    (markdown_is_plain, add_text("\n\n:::{tip}\nno\n:::")),
    (markdown_is_plain, add_text(" {term}`scale`")),
    (no_cell_relies_on_a_semicolon_to_hide_its_value, end_in_semicolon),
    (every_figure_has_an_alternative_text, drop_alternative_texts),
    (links_between_chapters_lead_somewhere, add_text(" [x](99_none.ipynb)")),
    (a_chapter_that_uses_deprecated_modules_says_so, drop("deprecated")),
    (exercises_are_text_stub_check_solution, drop_cells("solution")),
    (exercises_are_text_stub_check_solution, drop_cells("exercise-stub")),
    (exercises_are_text_stub_check_solution, drop(", strict=True")),
    (exercises_are_text_stub_check_solution, strip),
]


def test_every_law_has_a_break():
    assert {guard.__name__ for guard, _ in BREAKS} == set(LAWS)


@pytest.mark.parametrize(
    ("guard", "break_it"),
    BREAKS,
    ids=[f"{i}-{guard.__name__}" for i, (guard, _) in enumerate(BREAKS)],
)
def test_a_guard_catches_its_fault(notebook, guard, break_it):
    assert guard(notebook) == []
    break_it(notebook)
    assert guard(notebook) != []


def test_a_claim_that_is_never_tried_is_found(notebook):
    tried = [tale.Claim(t, "says", 4, tale.UPHELD, "e") for t in trials([notebook])]
    assert tried
    assert untried(tried, [notebook]) == []
    never = tale.Claim("T99", "says", 4, tale.UPHELD, "e")
    assert untried([*tried, never], [notebook]) == ["T99"]
    assert untried(tried, [notebook, notebook]) == [c.id for c in tried]


# ---- normalizing ------------------------------------------------------------------


def test_normalizing_twice_changes_nothing(notebook):
    add_time_stamp(notebook)
    for cell in notebook.cells:
        cell.id = "again"
    refresh.normalize(notebook)
    once = copy.deepcopy(notebook)
    refresh.normalize(notebook)
    assert notebook == once
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_an_id_moves_with_its_cell(notebook):
    before = [cell.id for cell in notebook.cells]
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("something new"))
    refresh.normalize(notebook)
    after = [cell.id for cell in notebook.cells]
    assert after[:1] + after[2:] == before


def test_a_traceback_keeps_the_readers_own_frames_and_the_message():
    frames = [
        "\x1b[0;31m-----\x1b[0m",
        "Cell \x1b[0;32mIn[3], line 1\x1b[0m\n----> 1 f(x)",
        "File \x1b[0;32m/home/me/site-packages/torch/nn.py:3\x1b[0m, in f",
        "\x1b[0;31mRuntimeError\x1b[0m: no",
    ]
    kept = ["Cell In[3], line 1\n----> 1 f(x)", "RuntimeError: no"]
    assert refresh.short_traceback(frames) == kept


def test_a_long_message_is_cut_between_words_once():
    short = refresh.shortened("backend " * 100)
    assert short.endswith("backend ...")
    assert len(short) <= refresh.LONGEST_MESSAGE + 4
    assert refresh.shortened(short) == short
    assert refresh.shortened("no") == "no"
