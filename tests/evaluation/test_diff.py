"""Marked words: nothing is lost, as little as possible is marked, and long texts cost no time."""

from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.diff import MAX_EDITS, Span, compare


def words(spans: tuple[Span, ...], kind: str) -> int:
    return sum(len(span.text.split()) for span in spans if span.kind == kind)


def in_common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, by the table that everybody knows."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_words_that_differ_are_marked_on_both_sides() -> None:
    assert compare("I have noted two large pizzas.", "I have noted three thin pizzas, sir.") == (
        (Span("same", "I have noted "), Span("changed", "two large"), Span("same", " pizzas.")),
        (
            Span("same", "I have noted "),
            Span("changed", "three thin"),
            Span("same", " pizzas"),
            Span("changed", ", sir"),
            Span("same", "."),
        ),
    )


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab ,\n\té_"), max_size=30), st.text(st.sampled_from("ab ,\n\té_"), max_size=30))
def test_the_spans_are_the_text(before: str, after: str) -> None:
    found = compare(before, after)
    if found is not None:
        assert ["".join(span.text for span in side) for side in found] == [before, after]


def test_no_fewer_words_could_be_marked() -> None:
    chance = random.Random(0)
    found = 0
    for _ in range(1000):
        first, second = ([chance.choice("abc") for _ in range(chance.randint(1, 14))] for _ in range(2))
        spans = compare(" ".join(first), " ".join(second))
        if spans is not None:
            found += 1
            assert words(spans[0], "same") == words(spans[1], "same") == in_common(first, second)
    assert found > 500


def test_texts_far_apart_are_not_marked() -> None:
    assert compare("one two three four five", "six seven eight nine five ten") is None
    assert compare("a " * 1000, "b " * 1000) is None
    near = " ".join(map(str, range(1000)))
    assert compare(near, near + " x" * MAX_EDITS) is not None
    assert compare(near, near + " x" * (MAX_EDITS + 1)) is None


def test_the_worst_texts_take_bounded_time() -> None:
    chance = random.Random(1)
    first, second = (" ".join(chance.choice("ab") for _ in range(20_000)) for _ in range(2))
    start = time.process_time()
    compare(first, second)
    assert time.process_time() - start < 5  # without the bound: minutes, and gigabytes
