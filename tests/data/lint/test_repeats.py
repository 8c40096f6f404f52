"""Words, signatures and near duplicates, against the exact Jaccard similarity."""

from __future__ import annotations

import hashlib
import random
import time
import tracemalloc
import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.lint.repeats import ENTRIES, NearDuplicates, band_size, signatures, similarity
from finetune.data.lint.words import BATCH_CHARACTERS, batches, hash_grams, hash_texts, hash_words

RANDOM = random.Random(5)
WORDS = ["".join(RANDOM.choices("abcdefghijklmnopqrstuvwxyzéø", k=RANDOM.randrange(1, 10))) for _ in range(3000)]


def some_words(count: int) -> list[str]:
    return RANDOM.choices(WORDS, k=count)


def shingles(text: str) -> set[tuple[str, ...]]:
    kept = text.lower().replace("'", "").replace("’", "")
    words = "".join(c if c.isalnum() or unicodedata.category(c) in ("Mn", "Mc") else " " for c in kept).split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def edited(words: Sequence[str], edits: int) -> list[str]:
    changed = list(words)
    for _ in range(edits):
        place = RANDOM.randrange(len(changed) or 1)
        changed[place : place + RANDOM.randrange(2)] = some_words(RANDOM.randrange(2))
    return changed


def planted(count: int, low: float, high: float) -> list[tuple[str, str]]:
    """Pairs of texts of 15 to 150 words with a similarity in [low, high]."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        words = some_words(RANDOM.randrange(15, 150))
        most = 2 + int(len(words) * (1 - low))
        one, other = " ".join(words), ", ".join(edited(words, RANDOM.randrange(1, most))).upper()
        if low <= jaccard(one, other) <= high:
            pairs.append((one, other))
    return pairs


def found(texts: Sequence[str], threshold: float = 0.8) -> list[tuple[int, int]]:
    near = NearDuplicates(threshold)
    near.add(texts)
    return near.pairs()


@pytest.mark.parametrize(("low", "high", "least"), [(0.9, 1.0, 0.99), (0.8, 1.0, 0.85), (0.8, 0.9, 0.85)])
def test_near_duplicates_are_found(low: float, high: float, least: float) -> None:
    pairs = planted(1000, low, high)
    hits = found([one for one, _ in pairs] + [other for _, other in pairs])
    assert {(row, earlier) for row, earlier in hits} <= {(row, row - 1000) for row in range(1000, 2000)}
    assert len(hits) >= least * 1000


def test_what_is_half_alike_is_not_reported() -> None:
    pairs = planted(4000, 0.2, 0.5)
    assert len(found([text for pair in pairs for text in pair])) <= 0.001 * len(pairs)


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.9, 1.0])
def test_other_thresholds_cut_where_they_say(threshold: float) -> None:
    above = (
        planted(200, min(1.0, threshold + 0.08), 1.0) if threshold < 0.9 else [(t, t) for t, _ in planted(200, 0, 1)]
    )
    below = planted(200, 0.0, threshold - 0.12)
    hits = found([text for pair in above + below for text in pair], threshold)
    assert sum(row < 400 for row, _ in hits) >= 0.98 * 200
    assert sum(row >= 400 for row, _ in hits) <= 0.02 * 200


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ValueError, match="is not in"):
        NearDuplicates(threshold)


def test_the_estimate_is_unbiased() -> None:
    pairs = planted(1500, 0.0, 1.0)
    exact = np.array([jaccard(*pair) for pair in pairs])
    equal = similarity(signatures([one for one, _ in pairs]), signatures([other for _, other in pairs]))
    errors = equal / ENTRIES - exact
    assert abs(errors.mean()) < 0.006  # (1 - similarity) / 256 comes from the 8 bits
    assert errors.std() < 1.15 * np.sqrt((exact * (1 - exact)).mean() / ENTRIES)


def test_each_row_names_one_earlier_row() -> None:
    words = some_words(60)
    texts = [" ".join(words), "other", " ".join(words), " ".join(edited(words, 1)), " ".join([*words[:-1], "end"])]
    pairs = found([*texts, *texts])
    assert [row for row, _ in pairs] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert dict(pairs)[2] == 0
    assert dict(pairs)[6] == 1
    assert all(earlier < row for row, earlier in pairs)


def test_a_near_duplicate_is_found_among_many_rows_of_one_template() -> None:
    template, texts = some_words(100), []
    for _ in range(1000):
        words = list(template)
        for place in RANDOM.sample(range(100), 3):
            words[place] = some_words(1)[0]
        texts.append(" ".join(words))
        words[RANDOM.randrange(100)], words[RANDOM.randrange(100)] = "please", "now"
        texts.append(" ".join(words))
    assert np.mean([jaccard(texts[0], text) for text in texts[2:60]]) < 0.75
    hits = dict(found(texts))
    assert sum(row in hits for row in range(1, 2000, 2)) >= 995


def test_texts_without_words_equal_only_themselves() -> None:
    assert found(["", "?!", "a", "", "?!", "...", "A!", " "]) == [(3, 0), (4, 1), (6, 2)]
    assert found([]) == []
    assert found([""]) == []


def test_ten_thousands_of_equal_rows_take_linear_time() -> None:
    same, close = " ".join(some_words(40)), some_words(60)
    texts = [same] * 30_000 + [" ".join([*close, str(n)]) for n in range(10_000)]
    start = time.process_time()
    pairs = found(texts)
    assert time.process_time() - start < 8  # a fifth of that; an hour, where it is quadratic
    assert pairs[:29_999] == [(row, 0) for row in range(1, 30_000)]
    assert len(pairs) == 39_998


def test_a_row_takes_at_most_250_bytes() -> None:
    texts = [" ".join(RANDOM.sample(WORDS, 6)) for _ in range(40_000)]
    near = NearDuplicates()
    near.add(texts[:100])
    tracemalloc.start()
    try:
        for start in range(0, len(texts), 1000):
            near.add(texts[start : start + 1000])
        kept, _ = tracemalloc.get_traced_memory()
        near.pairs()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    space = 4_000_000  # of one batch
    assert kept <= 160 * len(texts) + space
    assert peak <= 250 * len(texts) + space


TEXTS = st.lists(st.text(st.sampled_from("ab 漢あ'’é\u0301?\U0001f600\n\ud800"), max_size=12), max_size=8)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_a_signature_depends_on_its_text_alone(texts: list[str]) -> None:
    together = signatures(texts) if texts else np.empty((0, ENTRIES), np.uint8)
    for text, signature in zip(texts, together, strict=True):
        assert (signatures([text])[0] == signature).all()


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_equal_rows_are_found_however_they_are_fed(texts: list[str]) -> None:
    near = NearDuplicates()
    for text in texts:
        near.add([text])
    pairs = near.pairs()
    assert pairs == found(texts)
    equal = {row for row, text in enumerate(texts) if text in texts[:row]}
    assert equal <= {row for row, _ in pairs}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Don't stop", 2), ("dont STOP!", 2), ("", 0), ("--- ...", 0), ("snake_case x1", 3), ("naïve café", 2),
        ("漢字かな", 4), ("abc漢字def", 4), ("हिन्दी भाषा", 2), ("e\u0301te\u0301", 1), ("3.5 kg", 3), ("🍕 pizza", 2),
    ],
)  # fmt: skip
def test_words_are_counted_in_every_script(text: str, count: int) -> None:
    assert hash_words(["before", text, "after"]).counts.tolist() == [1, count, 1]


def test_words_are_compared_without_case_and_apostrophes() -> None:
    one, other, third = np.split(hash_words(["Don't STOP", "dont stop", "stop dont"]).hashes, 3)
    assert one.tolist() == other.tolist() == third.tolist()[::-1]
    assert len(set(hash_words([" ".join(WORDS)]).hashes.tolist())) == len(set(WORDS))


def test_a_run_of_words_has_one_hash_wherever_it_stands() -> None:
    words = hash_words(["x one two three four", "one two three", "two three", ""])
    grams = hash_grams(words, 3)
    assert grams.counts.tolist() == [3, 1, 0, 0]
    assert grams.owners().tolist() == [0, 0, 0, 1]
    assert grams.hashes[1] == grams.hashes[3] == hash_texts(words)[1]
    assert hash_grams(words, 3, shorter=True).counts.tolist() == [3, 1, 1, 0]
    assert len(set(grams.hashes.tolist())) == 3


def test_hashes_are_the_same_everywhere() -> None:
    digest = hashlib.sha256(signatures(["The quick brown fox jumps", "", "Ein Ärger, 漢字"]).tobytes()).hexdigest()
    assert digest[:16] == "daa763226cc2be63"


def test_batches_hold_every_text_once() -> None:
    texts = ["a" * size for size in (5, BATCH_CHARACTERS, 3, 0, BATCH_CHARACTERS * 2, 1)]
    assert [text for batch in batches(texts) for text in batch] == texts
    assert [len(batch) for batch in batches(texts)] == [2, 3, 1]
    assert [band_size(threshold) for threshold in (1.0, 0.8, 0.3, 0.01)] == [8, 7, 2, 1]
