"""Every exercise: the right answer passes, the stub and each named mistake do not."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

from qtorch_tutorial import checks
from qtorch_tutorial.checks import Wrong, answer_of, check

nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

CHAPTERS = [m.name for m in pkgutil.iter_modules(checks.__path__)]
ANSWERS = {
    name: answers
    for chapter in CHAPTERS
    for name, answers in importlib.import_module(f"answers.{chapter}").ANSWERS.items()
}
WRONG = [
    pytest.param(name, answer, message, id=f"{name}-{mistake.replace(' ', '-')}")
    for name, answers in ANSWERS.items()
    for mistake, (answer, message) in answers["wrong"].items()
]


def exercises_of_the_notebooks():
    """Source of the stub of each exercise, by the exercise's id."""
    stubs = {}
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        name = None
        for cell in nbformat.read(path, as_version=4).cells:
            tags = cell.metadata.get("tags", [])
            if "exercise" in tags:
                name = cell.metadata.qtorch.id
            elif "exercise-stub" in tags:
                stubs[name] = cell.source
    return stubs


STUBS = exercises_of_the_notebooks()


def exercises_of_the_checks():
    """Id of every public function of a module of checks, ``chNN.exK``."""
    found = []
    for chapter in CHAPTERS:
        names = vars(importlib.import_module(f"qtorch_tutorial.checks.{chapter}"))
        found += [f"{chapter}.{n}" for n in names if re.fullmatch(r"ex\d+", n)]
    return found


def test_notebooks_checks_and_answers_know_the_same_exercises():
    assert sorted(STUBS) == sorted(ANSWERS) == sorted(exercises_of_the_checks())


def poor(answers):
    """Exercises with fewer than three named mistakes, or the same message for all."""
    return [
        name
        for name, entry in answers.items()
        if len(entry["wrong"]) < 3
        or len({message for _, message in entry["wrong"].values()}) < 2
    ]


def test_every_exercise_has_at_least_three_named_mistakes():
    assert poor(ANSWERS) == []


def test_an_exercise_without_named_mistakes_is_found():
    name, entry = next(iter(ANSWERS.items()))
    assert poor({name: {**entry, "wrong": {}}}) == [name]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_right_answer_is_accepted(name, capsys):
    check(name, ANSWERS[name]["right"], strict=True)
    assert capsys.readouterr().out == f"{name}: correct\n"


@pytest.mark.parametrize("name", STUBS)
def test_the_untouched_stub_is_refused(name, capsys):
    space = {"torch": importlib.import_module("torch")}
    exec("from torch import Tensor, nn", space)
    exec("from __future__ import annotations\n" + STUBS[name], space)
    answer = space[re.search(r"(?m)^(?:def )?(\w+)", STUBS[name])[1]]
    check(name, answer)
    assert f"{name}: not yet. " in capsys.readouterr().out
    with pytest.raises(Wrong):
        check(name, answer, strict=True)


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_a_mistake_is_refused_by_its_name(name, answer, message):
    with pytest.raises(Wrong, match=re.escape(message)):
        check(name, answer, strict=True)


def test_an_unknown_exercise_is_an_error():
    with pytest.raises(ValueError, match=r"there is no exercise 'ch99\.ex1'"):
        check("ch99.ex1", None)


def test_a_check_prints_and_does_not_raise_unless_strict(capsys):
    def broken(*args, **kwargs):
        raise KeyError("lost")

    name = next(iter(ANSWERS))
    check(name, broken)
    assert "not yet. Your code raised KeyError: 'lost'" in capsys.readouterr().out
    with pytest.raises(KeyError):
        check(name, broken, strict=True)


@pytest.mark.parametrize("answer", [5, None, "text"])
def test_only_a_function_can_be_called(answer):
    with pytest.raises(Wrong, match="expected a function, got"):
        answer_of(answer)


@pytest.mark.parametrize("nothing", [None, ...])
def test_a_function_that_returns_nothing_is_no_answer(nothing):
    with pytest.raises(Wrong, match="returns nothing"):
        answer_of(lambda: nothing)
