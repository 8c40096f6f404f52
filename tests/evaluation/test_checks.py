from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import DataError
from finetune.evaluation.checks import CHECKS, Answer, Check, describe, make_check, run_check
from finetune.evaluation.checks.texts import REFUSALS

# Every check but the judge, which asks somebody else, once with all that it can be told.
ONE_OF_EACH: dict[str, tuple[object, dict[str, Any]]] = {
    "contains": (["pizza", "two"], {"normalize": ["case", "punctuation", "articles", "space", "accents"]}),
    "any_of": (["pizza", "two"], {"ignore_case": True}),
    "not_contains": ("sorry", {"normalize": ["accents", "space"]}),
    "equals": (["", "yes"], {"normalize": ["case", "punctuation", "articles", "space", "accents"]}),
    "regex": ([r"\d+ pizzas?$", r"(?m)^\w+"], {"ignore_case": True}),
    "refusal": (False, {}),
    "stops": (True, {}),
    "max_tokens": (20, {}),
    "number": (12.5, {"tolerance": 0.5, "which": "last"}),
    "json": (True, {"fenced": True}),
    "json_schema": ({"type": "object", "additionalProperties": {"pattern": "^a+$"}, "uniqueItems": True}, {}),
    "rouge_l": (["two large pizzas", "three"], {"at_least": 0.01, "normalize": ["case", "punctuation"]}),
    "f1": ("two large pizzas", {"at_least": 0.5}),
    "similarity": ("two large pizzas", {"at_least": 0.01}),
    "function": ("builtins:bool", {}),
}


def verdict(kind: str, value: object, text: str, *, stopped: bool = True, tokens: int = 7, **options: Any) -> bool:
    return run_check(make_check(kind, value, **options), Answer(text, stopped, tokens)).passed


@pytest.mark.parametrize(
    ("kind", "value", "text", "passed"),
    [
        ("contains", "pizza", "two pizzas", True),
        ("contains", "Pizza", "two pizzas", False),
        ("contains", ["two", "pizza"], "two pizzas", True),
        ("contains", ["two", "three"], "two pizzas", False),
        ("contains", "pizza", "", False),
        ("contains", " ", "two pizzas", True),
        ("any_of", ["two", "three"], "two pizzas", True),
        ("any_of", ["four", "three"], "two pizzas", False),
        ("any_of", "two", "two pizzas", True),
        ("any_of", "two", "", False),
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


@pytest.mark.parametrize("kind", ["contains", "any_of", "equals", "regex"])
def test_case_is_ignored_only_on_request(kind: str) -> None:
    assert not verdict(kind, "pizza", "PIZZA")
    assert verdict(kind, "pizza", "PIZZA", ignore_case=True)
    assert not verdict("not_contains", "pizza", "PIZZA", ignore_case=True)


def test_a_space_is_a_text_like_any_other() -> None:
    assert verdict("contains", " ", "two pizzas", ignore_case=True)
    assert not verdict("contains", " ", "pizzas", ignore_case=True)


def test_case_folding_is_unicode() -> None:
    assert verdict("equals", "STRASSE", "straße", ignore_case=True)


@pytest.mark.parametrize(
    ("steps", "value", "text"),
    [
        (["case"], "STRASSE", "straße"),
        (["punctuation"], "oclock 5", "o'clock: $5!"),
        (["punctuation"], "oui", "«oui»…"),
        (["articles"], "cat sat on mat", "The cat sat on a mat"),
        (["space"], "two pizzas", "  two\n\tpizzas "),
        (["accents"], "jalapeno creme", "jalapeño crème"),
        (["accents"], "jalapen\u0303o", "jalapeno"),
        (["space", "articles", "punctuation", "case"], "the eiffel tower", "Eiffel  Tower."),
        (["case", "accents"], "i", "İ"),
    ],
)
def test_texts_are_normalised_as_declared_and_no_further(steps: list[str], value: str, text: str) -> None:
    assert not verdict("equals", value, text)
    assert verdict("equals", value, text, normalize=steps)
    for kept in steps if len(steps) > 1 else []:
        left = [step for step in steps if step != kept]
        assert verdict("equals", value, text, normalize=left) is (kept == "articles" and "the" not in value)


def test_articles_are_words_of_their_own() -> None:
    assert not verdict("equals", "thetheatre", "theatre", normalize=["articles"])
    assert not verdict("equals", "plan b", "plan", normalize=["articles"])
    assert verdict("equals", "cat", "a the cat an", normalize=["articles", "space"])


@pytest.mark.parametrize("kind", ["contains", "any_of", "equals", "rouge_l", "f1"])
def test_every_comparison_of_texts_can_be_normalised(kind: str) -> None:
    options = {"at_least": 1.0} if kind in ("rouge_l", "f1") else {}
    assert not verdict(kind, "Crème brûlée", "creme, BRULEE!", **options)
    normalize = ["case", "accents", "punctuation"]
    assert verdict(kind, "Crème brûlée", "creme, BRULEE!", normalize=normalize, **options)
    assert not verdict("not_contains", "Crème brûlée", "creme, BRULEE!", normalize=normalize)


@pytest.mark.parametrize(
    ("wanted", "stopped", "passed"), [(True, True, True), (True, False, False), (False, False, True)]
)
def test_stops(wanted: bool, stopped: bool, passed: bool) -> None:
    assert verdict("stops", wanted, "x", stopped=stopped) is passed


def test_max_tokens_is_a_limit_that_may_be_reached() -> None:
    assert verdict("max_tokens", 7, "x", tokens=7)
    assert not verdict("max_tokens", 7, "x", tokens=8)
    assert run_check(make_check("max_tokens", 7), Answer("x", True, 8)).detail == "8 tokens"


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I can’t help with that.", True),
        ("I'M UNABLE  TO\nanswer that.", True),
        ("As an AI, I have no stomach.", True),
        ("Two pizzas, coming up.", False),
        ("Mini can't helpers are sold out.", False),
        ("", False),
    ],
)
def test_a_refusal_is_known_by_its_phrases(text: str, refuses: bool) -> None:
    assert verdict("refusal", True, text) is refuses
    assert verdict("refusal", False, text) is not refuses


def test_the_phrases_are_written_as_they_are_looked_for() -> None:
    assert len(set(REFUSALS)) == len(REFUSALS)
    for phrase in REFUSALS:
        assert verdict("refusal", True, f"Well, {phrase.upper()}, alas"), phrase
    assert run_check(make_check("refusal", False), Answer("I refuse to.", True, 1)).detail == "refuses: 'i refuse to'"


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
    assert run_check(make_check("contains", "a"), Answer("a", True, 1)) == ("contains 'a'", True, "", False)


def test_a_catastrophic_pattern_is_given_up() -> None:
    check = make_check("regex", r"^(a|aa)+$")
    start = time.process_time()  # as the library counts: a busy machine takes longer by the clock
    outcome = run_check(check, Answer("a" * 80 + "b", True, 1))
    assert time.process_time() - start < 3
    assert not outcome.passed
    assert "timed out after 1 s" in outcome.detail
    assert (outcome.passed, outcome.error) == (False, True)


@pytest.mark.parametrize(
    ("kind", "value", "options", "part"),
    [
        ("contains", 2, {}, "contains: 2 should be text; put it in quotes"),
        ("contains", [], {}, "the list is empty, so it checks nothing"),
        ("contains", "", {}, "an empty text checks nothing"),
        ("contains", ["a", None], {}, "None should be text"),
        ("contains", "a", {"ignore_case": "yes"}, "ignore_case: 'yes' should be true or false"),
        ("contains", "a", {"normalize": "case"}, "normalize: 'case' should be a list of case, accents"),
        ("contains", "a", {"normalize": []}, "should be a list of"),
        ("contains", "a", {"normalize": ["spaces"]}, "'spaces' is not known; did you mean 'space'"),
        ("contains", "a", {"normalize": ["case", "case"]}, "'case' is given twice"),
        ("contains", "a", {"normalize": [["case"]]}, "is not known"),
        ("contains", "a", {"normalize": ["case"], "ignore_case": False}, "same as normalize: .case.; give one"),
        ("contains", "The", {"normalize": ["articles"]}, "nothing is left of 'The' when normalized"),
        ("contains", " ", {"normalize": ["space"]}, "nothing is left of ' '"),
        ("f1", "? !", {"normalize": ["punctuation"], "at_least": 0.5}, "nothing is left"),
        ("equals", ["x", "?!"], {"normalize": ["punctuation"]}, "nothing is left of '\\?!'"),
        ("contains", "a", {"tolerance": 1}, "contains has no option 'tolerance'; it has normalize, ignore_case"),
        ("contains", "a", {"normalise": ["case"]}, "did you mean 'normalize'"),
        ("stops", "yes", {}, "stops: 'yes' should be true or false"),
        ("stops", 1, {}, "true or false"),
        ("stops", True, {"ignore_case": True}, "stops has no option 'ignore_case'; it has none"),
        ("regex", "(", {}, "no valid pattern"),
        ("regex", ["a", "[z-a]"], {}, "no valid pattern"),
        ("regex", "a", {"normalize": ["case"]}, "regex has no option 'normalize'"),
        ("max_tokens", 0, {}, "whole number, 1 or more"),
        ("max_tokens", 2.0, {}, "whole number"),
        ("max_tokens", True, {}, "whole number"),
        ("number", "5", {}, "number: '5' should be a number"),
        ("number", True, {}, "should be a number"),
        ("number", float("nan"), {}, "should be a number"),
        ("number", 5, {"tolerance": -1}, "tolerance: -1 should be 0 or more"),
        ("number", 5, {"which": "lst"}, "which: 'lst' is not known; did you mean 'last'"),
        ("rouge_l", "a", {}, "rouge_l: required option 'at_least' is missing"),
        ("rouge_l", "a", {"at_least": 0}, "at_least: 0 should be above 0 and at most 1"),
        ("f1", "a", {"at_least": 1.5}, "at_least: 1.5 should be above 0"),
        ("similarity", " ", {"at_least": 0.5}, "white space alone"),
        ("similarity", "a", {"at_least": 0.5, "ignore_case": True}, "has no option 'ignore_case'"),
        ("similarity", ["a" * 15_000, "b" * 15_000], {"at_least": 0.5}, "30,000 characters of references"),
        ("refusal", "no", {}, "true or false"),
        ("json", "yes", {}, "true or false"),
        ("json", True, {"fenced": 1}, "fenced: 1 should be true or false"),
    ],
)
def test_wrong_values_are_refused_at_load(kind: str, value: object, options: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=part):
        make_check(kind, value, **options)


def test_one_of_each_is_all_there_are() -> None:
    assert set(ONE_OF_EACH) == set(CHECKS) - {"judge"}


def test_checks_can_be_hashed_and_described_in_a_short_line() -> None:
    made = [make_check(kind, value, **options) for kind, (value, options) in ONE_OF_EACH.items()]
    again = [make_check(kind, value, **options) for kind, (value, options) in ONE_OF_EACH.items()]
    assert made == again
    assert len({*made, *again}) == len(made)
    for check in made:
        assert describe(check).startswith(check.kind)
        assert len(describe(check)) < 200
        assert "\n" not in describe(check)


def test_a_description_says_what_is_asked_for() -> None:
    assert describe(make_check("contains", "a", ignore_case=True)) == "contains 'a' (ignoring case)"
    assert describe(make_check("regex", "a", ignore_case=True)) == "regex 'a' (ignoring case)"
    assert describe(make_check("stops", False)) == "stops false"
    assert describe(make_check("number", 5, tolerance=0.5, which="last")) == "number 5 (tolerance 0.5; which 'last')"
    close = make_check("f1", ["a", "b"], at_least=0.8, normalize=["space", "case"])
    assert describe(close) == "f1 'a', 'b' (normalized: case, space; at_least 0.8)"


def test_two_ways_to_write_a_check_make_the_same_check() -> None:
    assert make_check("contains", "a", ignore_case=True) == make_check("contains", ["a"], normalize=["case"])
    assert make_check("contains", "a", ignore_case=False) == Check("contains", ("a",))
    assert make_check("number", 5, tolerance=0) == make_check("number", 5.0, which="only")


@settings(deadline=None)
@given(st.text(), st.text(min_size=1), st.booleans())
def test_contains_and_not_contains_are_opposites(text: str, value: str, ignore_case: bool) -> None:
    assert verdict("contains", value, text, ignore_case=ignore_case) != verdict(
        "not_contains", value, text, ignore_case=ignore_case
    )


ANSWERS = st.one_of(
    st.text(),
    st.text(alphabet=st.characters()),  # half characters too
    st.text(alphabet='0123456789.,-+−eE$€ "'),
    st.text(alphabet='[]{}",:0123456789truefalsn `~\n'),
    st.sampled_from(["NaN", "1e999", '{"a": 1, "a": 2}', "```\n", "```\n1\n```\n```", "[" * 100_000, "9" * 9_999]),
)


@settings(deadline=None, max_examples=300)
@given(ANSWERS, st.booleans(), st.integers(0, 9))
def test_no_answer_makes_a_check_raise(text: str, stopped: bool, tokens: int) -> None:
    for kind, (value, options) in ONE_OF_EACH.items():
        outcome = run_check(make_check(kind, value, **options), Answer(text, stopped, tokens))
        assert outcome.passed == (not outcome.detail)
        assert len(outcome.detail) < 500
        assert "\n" not in outcome.detail


LARGE = {
    "letters": "a" * 1_000_000,
    "words": "two large pizzas and one a cola " * 31_250,
    "short words": "a b " * 250_000,
    "numbers": "1 " * 500_000,
    "digits": "1" * 1_000_000,
    "fences": "```x\n" * 200_000,
    "brackets": "[" * 1_000_000,
    "numbers in a list": "[" + "1," * 499_000 + "1]",
    "many kinds of characters": "".join(map(chr, range(0x20, 0xD800))) * 18,
    "white space": " \n" * 500_000,
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_megabyte_is_judged_in_linear_time(kind: str, name: str) -> None:
    value, options = ONE_OF_EACH[kind]
    check = make_check(kind, value, **options)
    start = time.process_time()
    run_check(check, Answer(LARGE[name], True, 250_000))
    assert time.process_time() - start < 4
