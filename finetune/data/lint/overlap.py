"""Held-out rows that nearly stand in the training rows: overlap of 13-grams as for GPT-3 (Brown et al. 2020, app. C).

Words are compared without case, punctuation and white space. Only the held-out rows are kept in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.data.lint.repeats import ENTRIES, SHINGLE, Signatures, band_keys, band_size, signatures, similarity
from finetune.data.lint.words import U64, Grams, Indices, batches, hash_grams, hash_texts, hash_words

GRAM = 13  # words
COMMON, COMMON_SHARE = 3, 0.01  # a gram in more held-out rows than both of these is boilerplate
SHORTEST = 5  # words; a held-out row of fewer counts only where it is equal
SIMILAR = 0.8  # Jaccard similarity of 3-shingles, for held-out rows of fewer than GRAM words
LONGEST = int((GRAM - SHINGLE) / SIMILAR) + SHINGLE - 1  # words; a longer text is not that similar to such a row
BUCKET = 8  # short held-out rows of a bucket that a text is compared with
SLOTS = 16  # of the lookup table, per key


class Overlap:
    """Find the held-out row that a training text nearly contains.

    That is, in this order: a row with the same words; of rows of 5 to 12 words, one with an estimated similarity of
    0.8; the row with which it shares most 13-grams that are not boilerplate.
    """

    def __init__(self, heldout: Sequence[str]) -> None:
        wholes, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        start = 0
        for batch in batches(heldout):
            words = hash_words(batch)
            grams = hash_grams(words, GRAM)
            wholes.append(hash_texts(words))
            counts.append(words.counts)
            hashes.append(grams.hashes)
            owners.append(grams.owners() + start)
            start += len(batch)
        self._grams = _Lookup(*_telling(np.concatenate(hashes), np.concatenate(owners), len(heldout)))
        sizes = np.concatenate(counts)
        worded = np.flatnonzero(sizes)
        self._wholes = _Lookup(*_first_of_each(np.concatenate(wholes)[worded], worded))
        self._short = _ShortRows(heldout, np.flatnonzero((sizes >= SHORTEST) & (sizes < GRAM)))

    def match(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """List (index of a text, the held-out row it nearly contains), sorted, at most one row per text."""
        found: list[tuple[int, int]] = []
        start = 0
        for batch in batches(texts):
            rows = self._match(batch)
            hit = np.flatnonzero(rows >= 0)
            found += zip((hit + start).tolist(), rows[hit].tolist(), strict=True)
            start += len(batch)
        return found

    def _match(self, texts: Sequence[str]) -> Indices:
        words = hash_words(texts)
        rows = self._most_shared(hash_grams(words, GRAM), len(texts))
        short = np.flatnonzero((words.counts >= SHORTEST) & (words.counts <= LONGEST))
        similar = self._short.match([texts[index] for index in short.tolist()])
        rows[short[similar >= 0]] = similar[similar >= 0]
        equal = np.where(words.counts > 0, self._wholes.rows_of(hash_texts(words)), -1)
        return np.where(equal >= 0, equal, rows)

    def _most_shared(self, grams: Grams, count: int) -> Indices:
        rows = self._grams.rows_of(grams.hashes)
        hit = np.flatnonzero(rows >= 0)
        width = int(rows.max(initial=0)) + 1
        shared, sizes = np.unique(grams.owners()[hit] * width + rows[hit], return_counts=True)
        shared = shared[np.argsort(sizes, kind="stable")]  # most grams last, where they overwrite the others
        best = np.full(count, -1)
        best[shared // width] = shared % width
        return best


class _Lookup:
    """From hashes to rows; a table of bits answers most hashes that are not there."""

    def __init__(self, keys: U64, rows: Indices) -> None:
        self._keys, self._rows = keys, rows  # keys sorted
        self._mask = np.uint64((1 << (SLOTS * len(keys)).bit_length()) - 1)
        self._table = np.zeros(int(self._mask) + 1, np.bool_)
        self._table[keys & self._mask] = True

    def rows_of(self, hashes: U64) -> Indices:
        """Say of every hash which row has it, -1 for none."""
        rows = np.full(len(hashes), -1)
        maybe = np.flatnonzero(self._table[hashes & self._mask])
        if len(maybe):
            places = np.minimum(np.searchsorted(self._keys, hashes[maybe]), len(self._keys) - 1)
            rows[maybe] = np.where(self._keys[places] == hashes[maybe], self._rows[places], -1)
        return rows


class _ShortRows:
    """Held-out rows of fewer words than a gram, found by MinHash."""

    def __init__(self, heldout: Sequence[str], rows: Indices) -> None:
        batched = [signatures(batch) for batch in batches([heldout[row] for row in rows.tolist()])]
        self._rows = rows
        self._signatures = np.concatenate([np.empty((0, ENTRIES), np.uint8), *batched])
        self._band = band_size(SIMILAR)
        keys = list(band_keys(self._signatures, self._band))
        self._orders = [np.argsort(key, kind="stable") for key in keys]
        self._keys = [key[order] for key, order in zip(keys, self._orders, strict=True)]

    def match(self, texts: Sequence[str]) -> Indices:
        """Say of every text which held-out row is most similar, -1 for none."""
        best, score = np.full(len(texts), -1), np.full(len(texts), int(SIMILAR * ENTRIES) - 1, np.uint8)
        if not len(self._rows) or not texts:
            return best
        asked = signatures(texts)
        for keys, order, wanted in zip(self._keys, self._orders, band_keys(asked, self._band), strict=True):
            places = np.searchsorted(keys, wanted)
            for _ in range(BUCKET):
                met = np.flatnonzero((places < len(keys)) & (keys[np.minimum(places, len(keys) - 1)] == wanted))
                self._improve(asked, met, order[places[met]], best, score)
                places += 1
        best[best >= 0] = self._rows[best[best >= 0]]
        return best

    def _improve(
        self, asked: Signatures, met: Indices, places: Indices, best: Indices, score: NDArray[np.uint8]
    ) -> None:
        equal = similarity(asked[met], self._signatures[places])
        better = equal > score[met]
        best[met[better]], score[met[better]] = places[better], equal[better]


def _telling(hashes: U64, owners: Indices, count: int) -> tuple[U64, Indices]:
    """Sort the grams and leave out boilerplate; of several rows with a gram the first owns it."""
    order = np.argsort(hashes, kind="stable")  # owners are sorted before and stay so for every hash
    hashes, owners = hashes[order], owners[order]
    again = np.concatenate(([False], (hashes[1:] == hashes[:-1]) & (owners[1:] == owners[:-1])))[: len(hashes)]
    keys, firsts, rows = np.unique(hashes[~again], return_index=True, return_counts=True)
    telling = rows <= max(COMMON, COMMON_SHARE * count)
    return keys[telling], owners[~again][firsts][telling]


def _first_of_each(hashes: U64, rows: Indices) -> tuple[U64, Indices]:
    keys, firsts = np.unique(hashes, return_index=True)
    return keys, rows[firsts]
