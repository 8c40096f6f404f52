from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import DataError
from finetune.evaluation.checks import BOOLEAN_CHECKS, CHECKS, Answer, Check, describe, make_check, run_check


def verdict(kind: str, value: object, text: str, *, ignore_case: bool = False, stopped: bool = True) -> bool:
    return run_check(make_check(kind, value, ignore_case), Answer(text, stopped, 7)).passed


@pytest.mark.parametrize(
    ("kind", "value", "text", "passed"),
    [
        ("contains", "pizza", "two pizzas", True),
        ("contains", "Pizza", "two pizzas", False),
        ("contains", ["two", "pizza"], "two pizzas", True),
        ("contains", ["two", "three"], "two pizzas", False),
        ("not_contains", "sorry", "two pizzas", True),
        ("not_contains", ["sorry", "two"], "two pizzas", False),
        ("equals", "yes", "yes", True),
        ("equals", "yes", "yes ", False),
        ("equals", "yes", "Yes", False),
        ("equals", ["yes", "no"], "no", True),
        ("equals", "", "", True),
        ("regex", r"\d+ pizzas?$", "that is 2 pizzas", True),
        ("regex", r"^\d+ pizzas?$", "that is 2 pizzas", False),
        ("regex", [r"two", r"three"], "two", False),
    ],
)
def test_kinds(kind: str, value: object, text: str, passed: bool) -> None:
    assert verdict(kind, value, text) is passed


@pytest.mark.parametrize("kind", ["contains", "equals", "regex"])
def test_case_is_ignored_only_on_request(kind: str) -> None:
    assert not verdict(kind, "pizza", "PIZZA")
    assert verdict(kind, "pizza", "PIZZA", ignore_case=True)
    assert not verdict("not_contains", "pizza", "PIZZA", ignore_case=True)


def test_case_folding_is_unicode() -> None:
    assert verdict("equals", "STRASSE", "straße", ignore_case=True)


@pytest.mark.parametrize(
    ("wanted", "stopped", "passed"), [(True, True, True), (True, False, False), (False, False, True)]
)
def test_stops(wanted: bool, stopped: bool, passed: bool) -> None:
    assert verdict("stops", wanted, "x", stopped=stopped) is passed


def test_details_say_what_is_wrong_and_stay_short() -> None:
    outcome = run_check(make_check("contains", ["two", "three", "x" * 500]), Answer("two", True, 1))
    assert "'three'" in outcome.detail
    assert "'two'" not in outcome.detail
    assert len(outcome.detail) < 200
    many = run_check(make_check("contains", [f"word {i}" for i in range(1000)]), Answer("", True, 1))
    assert len(many.detail) < 200 > len(many.check)
    assert "995 more" in many.detail
    assert "cut at 128" in run_check(make_check("stops", True), Answer("x", False, 128)).detail


def test_passed_outcome_has_no_detail() -> None:
    assert run_check(make_check("contains", "a"), Answer("a", True, 1)) == ("contains 'a'", True, "")


def test_catastrophic_pattern_fails_within_two_seconds() -> None:
    check = make_check("regex", r"^(a|aa)+$")
    start = time.process_time()  # as the library counts: a busy machine takes longer by the clock
    outcome = run_check(check, Answer("a" * 80 + "b", True, 1))
    assert time.process_time() - start < 2
    assert not outcome.passed
    assert "timed out after 1 s" in outcome.detail


@pytest.mark.parametrize(
    ("kind", "value", "ignore_case", "part"),
    [
        ("contains", 2, False, "put it in quotes"),
        ("contains", [], False, "empty"),
        ("contains", "", False, "checks nothing"),
        ("contains", ["a", None], False, "should be text"),
        ("contains", "a", "yes", "true or false"),
        ("stops", "yes", False, "true or false"),
        ("stops", 1, False, "true or false"),
        ("stops", True, True, "no option"),
        ("regex", "(", False, "no valid pattern"),
        ("regex", ["a", "[z-a]"], False, "no valid pattern"),
    ],
)
def test_wrong_values_are_refused_at_load(kind: str, value: object, ignore_case: object, part: str) -> None:
    with pytest.raises(DataError, match=part):
        make_check(kind, value, ignore_case)


def test_every_kind_is_documented_and_describable() -> None:
    for kind, judge in CHECKS.items():
        assert judge.__doc__
        check = make_check(kind, True if kind in BOOLEAN_CHECKS else "a")
        assert describe(check).startswith(kind)
    assert describe(Check("contains", ("a",), True)) == "contains 'a' (ignoring case)"


@settings(deadline=None)
@given(st.text(), st.text(min_size=1), st.booleans())
def test_contains_and_not_contains_are_opposites(text: str, value: str, ignore_case: bool) -> None:
    assert verdict("contains", value, text, ignore_case=ignore_case) != verdict(
        "not_contains", value, text, ignore_case=ignore_case
    )
