from __future__ import annotations

import time
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.checks import Answer, make_check, run_check
from finetune.evaluation.checks.measures import chrf, rouge_l, token_f1

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "ee", "f"]), max_size=9)
LETTERS = st.text(alphabet="abc ß", max_size=12)


def test_rouge_l_by_hand() -> None:
    # Lin 2004, section 3.1: S1 is the reference; S2 has 3 words of 4 in order, S3 has 2.
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == 0.75
    assert rouge_l("the gunman kill police", reference) == 0.5
    assert rouge_l("the gunman police killed", reference) == 0.5
    assert rouge_l("the gunman", reference) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert rouge_l("", reference) == 0.0
    assert rouge_l(reference, reference) == 1.0


def test_token_f1_by_hand() -> None:
    assert token_f1("a b c", "b c d") == pytest.approx(2 / 3)
    assert token_f1("b b b", "b c") == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert token_f1("c b a", "a b c") == 1.0
    assert token_f1("x", "a b c") == token_f1("", "a") == 0.0


def test_chrf_by_hand() -> None:
    # "abd" and "abc": 2 of 3 letters, 1 of 2 pairs, 0 of 1 triple; as many of each, so P = R = F.
    assert chrf("abd", "abc") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # "ab" has 2 of 2 letters and 1 of 1 pair, no triple; of "abc" that is 2 of 3, 1 of 2, 0 of 1.
    p, r = (1 + 1 + 0) / 3, (2 / 3 + 1 / 2 + 0) / 3
    assert chrf("ab", "abc") == pytest.approx(5 * p * r / (4 * p + r))
    assert chrf("a b\nc", "ab c") == 1.0
    assert chrf("", "abc") == chrf("xyz", "abc") == 0.0


def test_chrf_counts_a_repetition_once() -> None:
    p, r = 1 / 4, 1.0
    assert chrf("aaaa", "a") == pytest.approx(5 * p * r / (4 * p + r))


def common_subsequence(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    @cache
    def longest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


@settings(deadline=None, max_examples=500)
@given(WORDS, WORDS)
def test_rouge_l_equals_the_textbook_recursion(a: list[str], b: list[str]) -> None:
    common = common_subsequence(tuple(a), tuple(b))
    expected = 0.0
    if common:
        precision, recall = common / len(a), common / len(b)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)


@settings(deadline=None, max_examples=500)
@given(WORDS, WORDS)
def test_token_f1_equals_crossing_out_words(a: list[str], b: list[str]) -> None:
    left, common = list(b), 0
    for word in a:
        if word in left:
            left.remove(word)
            common += 1
    expected = 2 * (common / len(a)) * (common / len(b)) / (common / len(a) + common / len(b)) if common else 0.0
    assert token_f1(" ".join(a), " ".join(b)) == pytest.approx(expected)


def slow_chrf(answer: str, reference: str) -> float:
    a, b = ("".join(c for c in text if not c.isspace()) for text in (answer, reference))
    precisions, recalls = [], []
    for n in range(1, 7):
        if n > len(b):
            break
        ours = Counter(a[i : i + n] for i in range(len(a)) if i + n <= len(a))
        theirs = Counter(b[i : i + n] for i in range(len(b)) if i + n <= len(b))
        common = sum(min(count, theirs[gram]) for gram, count in ours.items())
        precisions.append(common / sum(ours.values()) if ours else 0.0)
        recalls.append(common / sum(theirs.values()))
    if not sum(precisions):
        return 0.0
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * p * r / (4 * p + r)


@settings(deadline=None, max_examples=500)
@given(LETTERS, LETTERS.filter(str.strip))
def test_chrf_equals_a_plain_count(answer: str, reference: str) -> None:
    assert chrf(answer, reference) == pytest.approx(slow_chrf(answer, reference))


@given(st.text(), st.text().filter(str.strip))
def test_scores_are_shares_and_a_text_is_nearest_to_itself(answer: str, reference: str) -> None:
    for measure in (rouge_l, token_f1, chrf):
        assert 0.0 <= measure(answer, reference) <= 1.0
        assert measure(reference, reference) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["rouge_l", "f1", "similarity"])
def test_the_nearest_reference_counts_and_the_bound_may_be_reached(kind: str) -> None:
    def outcome(text: str, references: list[str], at_least: float) -> tuple[bool, str]:
        _, passed, detail, _ = run_check(make_check(kind, references, at_least=at_least), Answer(text, True, 1))
        return passed, detail

    assert outcome("two pizzas", ["no", "two pizzas", "four"], 1.0) == (True, "")
    assert outcome("two pizzas", ["no", "fork"], 0.5)[0] is False
    assert outcome("", ["two pizzas"], 0.01) == (False, "scored 0.000")


def test_a_score_below_the_bound_is_never_shown_as_the_bound() -> None:
    text, reference = " ".join("ab" * 1000), " ".join("ab" * 1000) + " c"
    outcome = run_check(make_check("rouge_l", reference, at_least=1), Answer(text, True, 1))
    assert (outcome.passed, outcome.detail) == (False, "scored 0.999")
    exact = make_check("rouge_l", "a b c d e", at_least=0.8)
    assert run_check(exact, Answer("a b c d x", True, 1)).passed


def test_words_keep_their_commas_unless_declared_otherwise() -> None:
    answer = Answer("Two pizzas, please", True, 1)
    assert not run_check(make_check("rouge_l", "two pizzas please", at_least=1), answer).passed
    near = make_check("rouge_l", "two pizzas please", at_least=1, normalize=["case", "punctuation"])
    assert run_check(near, answer).passed


@pytest.mark.parametrize("kind", ["rouge_l", "f1", "similarity"])
def test_the_longest_references_and_a_megabyte_take_seconds_at_most(kind: str) -> None:
    check = make_check(kind, "a b c d " * 2_500, at_least=0.5)
    start = time.process_time()
    run_check(check, Answer("d c b a " * 125_000, True, 1))
    assert time.process_time() - start < 9
