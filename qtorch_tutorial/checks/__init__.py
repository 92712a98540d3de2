"""The checks of the exercises, one module for each chapter.

A check is written from the exercise's text, not from its solution, and it says what is
wrong. In a chapter::

    check("ch06.ex1", my_function)

prints one friendly line and never raises, so that an unfinished notebook still runs;
``strict=True`` raises, so that CI proves every solution.
"""

import importlib

__all__ = ["Wrong", "answer_of", "check"]


class Wrong(AssertionError):
    """The answer is wrong; the message names the mistake."""


def check(exercise: str, answer: object, *, strict: bool = False) -> None:
    """Check an answer and print one line.

    Parameters
    ----------
    exercise : str
        "chNN.exK".
    answer : object
        What the exercise asks for, usually a function.
    strict : bool
        Raise if the answer is wrong.

    Raises
    ------
    ValueError
        If there is no such exercise.
    Wrong
        If ``strict`` and the answer is wrong.
    """
    chapter, _, name = exercise.partition(".")
    try:
        module = importlib.import_module(f"qtorch_tutorial.checks.{chapter}")
        examine = getattr(module, name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"there is no exercise {exercise!r}") from error
    try:
        if answer is ...:
            raise Wrong("no answer yet: replace the three dots")
        examine(answer)
    except Wrong as wrong:
        if strict:
            raise
        print(f"{exercise}: not yet. {wrong}")
    except Exception as error:
        if strict:
            raise
        print(f"{exercise}: not yet. Your code raised {type(error).__name__}: {error}")
    else:
        print(f"{exercise}: correct")


def answer_of(function: object, *args: object, **kwargs: object) -> object:
    """Call the learner's function; an empty one is an answer that is missing.

    Raises
    ------
    Wrong
        If it is no function, or returns nothing or the three dots of the stub.
    """
    if not callable(function):
        raise Wrong(f"expected a function, got {type(function).__name__}")
    result = function(*args, **kwargs)
    if result is None or result is ...:
        raise Wrong("no answer yet: your function returns nothing")
    return result
