"""tale: a verdict follows from its cases, and a false sentence raises."""

import warnings

import pytest

from qtorch_tutorial import tale
from qtorch_tutorial.tale import (
    CLAIMS,
    ClaimError,
    check_between,
    check_close,
    raises,
    try_claim,
    warns,
)


def test_the_tale_makes_27_claims():
    assert list(CLAIMS) == [f"T{n:02d}" for n in range(1, 28)]
    assert all(claim.id == key for key, claim in CLAIMS.items())


def test_a_verdict_comes_with_its_evidence_and_only_then():
    for claim in CLAIMS.values():
        assert claim.verdict in (None, tale.UPHELD, tale.OVERTURNED, tale.DEPENDS)
        assert bool(claim.evidence) == (claim.verdict is not None), claim.id


@pytest.mark.parametrize(
    ("claim_id", "cases"),
    [
        ("T02", {"a": True, "b": True}),
        ("T01", {"a": False, "b": False}),
        ("T05", {"a": True, "b": False}),
    ],
    ids=["upheld", "overturned", "it depends"],
)
def test_the_verdict_follows_from_the_cases(claim_id, cases, capsys):
    try_claim(claim_id, cases)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{claim_id} {CLAIMS[claim_id].verdict}: {CLAIMS[claim_id].says}"
    words = {True: "holds", False: "fails"}
    assert [r.strip() for r in rest] == [f"{words[v]}  {k}" for k, v in cases.items()]


@pytest.mark.parametrize(
    ("claim_id", "cases"),
    [
        ("T02", {"a": True, "b": False}),
        ("T02", {"a": False}),
        ("T01", {"a": True}),
        ("T05", {"a": True, "b": True}),
    ],
)
def test_another_verdict_than_the_recorded_one_raises(claim_id, cases, capsys):
    with pytest.raises(ClaimError, match="recorded is"):
        try_claim(claim_id, cases)
    assert capsys.readouterr().out == ""


def test_a_claim_without_a_recorded_verdict_raises(monkeypatch):
    untried = tale.Claim("T02", "says", 5)
    monkeypatch.setitem(CLAIMS, "T02", untried)
    with pytest.raises(ClaimError, match="recorded is None"):
        try_claim("T02", {"a": True})


@pytest.mark.parametrize(
    ("claim_id", "cases", "message"),
    [
        ("T28", {"a": True}, "no claim 'T28'"),
        ("T02", {}, "on no case"),
        ("T02", {"a": 1}, "must be True or False, got 1"),
    ],
)
def test_a_trial_that_tries_nothing_is_refused(claim_id, cases, message):
    with pytest.raises(ValueError, match=message):
        try_claim(claim_id, cases)


@pytest.mark.parametrize("measured", [0.98999, 1.01001, float("nan"), -1.0])
def test_a_number_that_is_not_close_raises_and_says_both(measured):
    with pytest.raises(ClaimError, match="one: expected 1 within 1 %, measured"):
        check_close("one", measured, 1.0, rel=0.01)


@pytest.mark.parametrize("measured", [-2.01, -1.99])
def test_closeness_is_relative_to_the_size_of_the_expected(measured, capsys):
    check_close("minus two", measured, -2.0, rel=0.01)
    assert capsys.readouterr().out == "ok  minus two: -2 within 1 %\n"


def test_a_tolerance_below_zero_is_refused():
    with pytest.raises(ValueError, match="rel must be positive"):
        check_close("x", 1.0, 1.0, rel=0.0)


@pytest.mark.parametrize("measured", [0.999, 2.001, float("nan")])
def test_a_number_outside_its_bounds_raises(measured):
    with pytest.raises(ClaimError, match="x: expected between 1 and 2, measured"):
        check_between("x", measured, 1, 2)


@pytest.mark.parametrize("measured", [1, 1.5, 2])
def test_bounds_are_inclusive(measured, capsys):
    check_between("x", measured, 1, 2)
    assert capsys.readouterr().out == "ok  x: between 1 and 2\n"


def test_an_error_is_named_by_its_type_and_the_words_asked_for(capsys):
    with raises("only two"):
        raise ValueError("there are only two of them")
    assert capsys.readouterr().out == "ValueError: only two\n"


def test_an_error_with_other_words_is_a_false_sentence():
    wrong = pytest.raises(ClaimError, match="expected 'only two', but got: three")
    with wrong, raises("only two"):
        raise ValueError("three")


def test_no_error_is_a_false_sentence(capsys):
    with pytest.raises(ClaimError, match="nothing was raised"), raises("only two"):
        pass
    assert capsys.readouterr().out == ""


def test_a_warning_is_named_and_goes_no_further(capsys):
    with warns("only two"):
        warnings.warn("another", RuntimeWarning, stacklevel=2)
        warnings.warn("there are only two", FutureWarning, stacklevel=2)
    assert capsys.readouterr().out == "FutureWarning: only two\n"


def test_a_warning_that_does_not_come_is_a_false_sentence():
    wrong = pytest.raises(ClaimError, match=r"expected .* but heard: \['another'\]")
    with wrong, warns("only two"):
        warnings.warn("another", RuntimeWarning, stacklevel=2)


def test_an_error_passes_through_a_demand_for_a_warning():
    with pytest.raises(KeyError), warns("only two"):
        raise KeyError("lost")
