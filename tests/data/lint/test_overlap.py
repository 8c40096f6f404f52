"""Overlap with held-out rows: what was pasted and changed is found, unrelated rows are not."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.data.lint.overlap import GRAM, Overlap

DATA = Path(__file__).parents[3] / "data"
RANDOM = random.Random(9)
WORDS = ["".join(RANDOM.choices(string.ascii_lowercase, k=RANDOM.randrange(2, 9))) for _ in range(2000)]
ROWS = 400


def some_text(low: int, high: int) -> str:
    return " ".join(RANDOM.choices(WORDS, k=RANDOM.randrange(low, high)))


def reshaped(text: str) -> str:
    signs = (" ", ", ", ";  ", " — ", "\n\n", " (", "! ")
    return "".join(RANDOM.choice((w.upper(), w.title(), w)) + RANDOM.choice(signs) for w in text.split(" "))


def one_word_changed(text: str) -> str:
    words = text.split(" ")
    words[RANDOM.randrange(len(words))] = "changed"
    return " ".join(words)


CHANGES: dict[str, Callable[[str], str]] = {
    "pasted into a longer text": lambda text: f"{some_text(0, 80)} {text} {some_text(0, 80)}",
    "case, punctuation and white space": reshaped,
    "one word": one_word_changed,
    "a sentence in front": lambda text: f"{some_text(5, 15).capitalize()}. {text}",
    "cut in half": lambda text: text[: len(text) // 2],
    "nothing": lambda text: text,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_heldout_row_is_found(change: str) -> None:
    heldout = [some_text(30, 60) for _ in range(ROWS)]
    texts = [CHANGES[change](row) for row in heldout]
    matches = Overlap(heldout).match([some_text(30, 120), *texts, some_text(30, 120)])
    assert set(matches) <= {(index + 1, index) for index in range(ROWS)}
    assert len(matches) >= 0.95 * ROWS


@pytest.mark.parametrize("words", range(5, GRAM))
def test_a_short_row_is_found_where_it_is_nearly_the_whole_text(words: int) -> None:
    heldout = [some_text(words, words + 1) for _ in range(ROWS)]
    overlap = Overlap(heldout)
    assert overlap.match([reshaped(row) for row in heldout]) == [(index, index) for index in range(ROWS)]
    assert overlap.match([f"{some_text(10, 20)} {row}" for row in heldout]) == []
    longer = overlap.match([f"{row} again" for row in heldout])  # similarity (words - 2) / (words - 1)
    assert len(longer) >= (0.95 * ROWS if words > 9 else 0)
    assert set(longer) <= {(index, index) for index in range(ROWS)}


def test_a_row_of_few_words_counts_only_where_it_is_equal() -> None:
    overlap = Overlap(["Yes, please.", "No", "Four small cheese pizzas", "...", ""])
    texts = [
        "yes please",
        "Yes, please do",
        "no!",
        "four small cheese pizza",
        "FOUR (small) cheese\npizzas!",
        "",
        "...",
    ]
    assert overlap.match(texts) == [(0, 0), (2, 1), (4, 2)]


def test_the_row_that_shares_most_is_named() -> None:
    whole, part = some_text(60, 61), some_text(20, 21)
    overlap = Overlap([f"{part} {some_text(30, 31)}", f"{part} {whole}", whole])
    assert overlap.match([f"{some_text(9, 10)} {part} {whole} {some_text(9, 10)}"]) == [(0, 1)]
    assert overlap.match([whole.upper()]) == [(0, 2)]  # equal comes before shared


def test_unrelated_rows_are_left_alone() -> None:
    overlap = Overlap([some_text(3, 60) for _ in range(2000)])
    assert overlap.match([some_text(3, 120) for _ in range(5000)]) == []


@pytest.mark.parametrize(
    ("rows", "repeats", "counts"), [(50, 3, True), (50, 4, False), (600, 6, True), (600, 7, False)]
)
def test_a_gram_of_many_heldout_rows_is_boilerplate(rows: int, repeats: int, counts: bool) -> None:
    common = some_text(20, 21)
    heldout = [f"{common} {some_text(20, 30)}" for _ in range(repeats)]
    heldout += [some_text(20, 30) for _ in range(rows - repeats)]
    overlap = Overlap(heldout)
    found = overlap.match([f"{some_text(20, 30)} {common} {some_text(20, 30)}"])
    assert found == ([(0, 0)] if counts else [])
    assert overlap.match([heldout[1]]) == [(0, 1)]


def test_a_gram_twice_in_one_row_is_no_boilerplate() -> None:
    common = some_text(20, 21)
    overlap = Overlap([" ".join([common, some_text(2, 3)] * 9), *(some_text(20, 30) for _ in range(50))])
    assert overlap.match([f"{common} {some_text(20, 30)}"]) == [(0, 0)]


def test_nothing_held_out_and_nothing_to_match() -> None:
    assert Overlap([]).match(["", "a b", some_text(40, 50)]) == []
    assert Overlap([some_text(40, 50)]).match([]) == []


def test_rows_are_numbered_over_all_batches() -> None:
    heldout = [some_text(300, 400) for _ in range(200)]
    texts = [text for row in heldout for text in (some_text(300, 400), row)]
    assert Overlap(heldout).match(texts) == [(2 * index + 1, index) for index in range(200)]


def prompts(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return ["\n".join(m["content"] for m in r["messages"]) if "messages" in r else r["instruction"] for r in rows]


@pytest.mark.parametrize("name", ["general", "pizza"])
def test_shipped_heldout_rows_stand_apart_from_the_training_rows(name: str) -> None:
    train, heldout = prompts(DATA / name / "train.jsonl"), prompts(DATA / name / "heldout.jsonl")
    overlap = Overlap(heldout)
    assert len(overlap.match(train)) <= 0.005 * len(train)
    assert len(overlap.match(heldout)) == len(heldout)
