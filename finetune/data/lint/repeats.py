"""Near duplicates among millions of texts: MinHash (Broder 1997) and locality-sensitive hashing by bands.

The share of equal entries of two signatures estimates the Jaccard similarity of the texts' sets of word 3-shingles.
An entry is 8 bits of the smallest hash (b-bit minwise hashing, Li and Koenig 2010), so that a text takes 128 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.data.lint.words import U64, Indices, batches, hash_grams, hash_words

ENTRIES = 128  # of a signature; the estimate's standard deviation is 0.035 at a similarity of 0.8
SHINGLE = 3  # words
FIND = 0.98  # of the pairs that are exactly as similar as the threshold, this share must meet in a band
MAX_BAND = 8  # entries, which together are one 64-bit key
NEIGHBOURS = 4  # earlier rows of a bucket that a row is compared with, besides the bucket's first
MAX_COMPARED = 1 << 13  # pairs at a time
Signatures = NDArray[np.uint8]

# A generator's raw numbers are the same in every version of NumPy.
_PERMUTATIONS = np.random.PCG64(20).random_raw((ENTRIES, 2)).astype(np.uint32) | np.uint32(1)


class NearDuplicates:
    """Find the rows that nearly equal an earlier one; 128 bytes a row are kept, the texts are not."""

    def __init__(self, threshold: float = 0.8) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"a similarity of {threshold} is not in (0, 1]")
        self._needed = int(threshold * ENTRIES)
        self._band = band_size(threshold)
        self._signatures: Signatures = np.empty((0, ENTRIES), np.uint8)
        self._count = 0

    def add(self, texts: Sequence[str]) -> None:
        """Take further rows, which are numbered in the order they come."""
        for batch in batches(texts):
            count = self._count + len(batch)
            if count > len(self._signatures):
                # In place, so that the old and the new array are not both in memory.
                self._signatures.resize((count + count // 4, ENTRIES), refcheck=False)
            self._signatures[self._count : count] = signatures(batch)
            self._count = count

    def pairs(self) -> list[tuple[int, int]]:
        """List (row, the earlier row it equals most), sorted, where the estimated similarity reaches the threshold.

        In a bucket a row meets the first row and the NEIGHBOURS before it, so that a bucket of any size takes
        linear time; a row that nearly equals several others is found by one of them, not always by the nearest.
        """
        if not self._count:
            return []
        kept = self._signatures[: self._count]
        best = _Best(np.full(self._count, -1), np.zeros(self._count, np.uint8))
        for keys in band_keys(kept, self._band):
            for later, earlier in _candidates(keys):
                _compare(kept, later, earlier, best)
        rows = np.flatnonzero(best.score >= self._needed)
        rows = rows[best.row[rows] >= 0]
        return list(zip(rows.tolist(), best.row[rows].tolist(), strict=True))


class _Best(NamedTuple):
    row: Indices  # the earlier row that equals most, -1 for none
    score: NDArray[np.uint8]  # equal entries


def signatures(texts: Sequence[str]) -> Signatures:
    """Sketch every text in ENTRIES bytes."""
    grams = hash_grams(hash_words(texts), SHINGLE, shorter=True)
    wordless = np.flatnonzero(grams.counts == 0)
    whole = [_hash_whole(texts[row]) for row in wordless.tolist()]  # equal to the very same text only
    values = np.insert(grams.hashes, grams.offsets[wordless], np.array(whole, np.uint64)).astype(np.uint32)
    starts = np.cumsum(np.concatenate((np.zeros(1, np.int64), np.maximum(grams.counts, 1))))[:-1]
    found, hashed = np.empty((ENTRIES, len(texts)), np.uint8), np.empty_like(values)
    for entry, (factor, flip) in enumerate(_PERMUTATIONS):
        np.multiply(values ^ flip, factor, out=hashed)
        found[entry] = np.minimum.reduceat(hashed, starts).astype(np.uint8)  # the low bits: the high ones are small
    return found.T


def similarity(one: Signatures, other: Signatures) -> NDArray[np.uint8]:
    """Count the equal entries of the signatures row by row, out of ENTRIES."""
    equal: NDArray[np.uint8] = (one == other).sum(axis=-1, dtype=np.uint8)
    return equal


def band_size(threshold: float) -> int:
    """Choose the most entries per band with which pairs at the threshold still meet with probability FIND."""
    sizes = range(MAX_BAND, 1, -1)
    return next((size for size in sizes if 1 - (1 - threshold**size) ** (ENTRIES // size) >= FIND), 1)


def band_keys(kept: Signatures, size: int) -> Iterator[U64]:
    """Yield a 64-bit key of every row, band after band: rows with an equal key share a bucket."""
    for start in range(0, ENTRIES - size + 1, size):
        keys = np.zeros(len(kept), np.uint64)
        for column in range(start, start + size):
            keys = (keys << np.uint64(8)) | kept[:, column]
        yield keys


def _hash_whole(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _candidates(keys: U64) -> Iterator[tuple[Indices, Indices]]:
    """Pair rows of a bucket, later and earlier ones; no later row comes twice in one answer."""
    order = np.argsort(keys, kind="stable")
    same = np.concatenate(([False], keys[order[1:]] == keys[order[:-1]], [False]))  # as the row before
    shared = same[:-1] | same[1:]
    order, same = order[shared], same[:-1][shared]
    places = np.arange(len(order))
    firsts = np.maximum.accumulate(np.where(same, 0, places))
    yield order[same], order[firsts[same]]
    for distance in range(1, NEIGHBOURS + 1):
        later = places[places - distance > firsts]
        yield order[later], order[later - distance]


def _compare(kept: Signatures, later: Indices, earlier: Indices, best: _Best) -> None:
    open_ = best.score[later] < ENTRIES
    later, earlier = later[open_], earlier[open_]
    for start in range(0, len(later), MAX_COMPARED):
        rows, others = later[start : start + MAX_COMPARED], earlier[start : start + MAX_COMPARED]
        score = similarity(kept[rows], kept[others])
        better = score > best.score[rows]
        best.row[rows[better]], best.score[rows[better]] = others[better], score[better]
