"""Words as 64-bit hashes, for many texts at a time, the same in every process and on every machine.

A word is a run of letters, digits and combining marks of any script, in lower case; an apostrophe inside it is
left out ("don't" is "dont"). A character of a script that writes no spaces between words is a word of its own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Indices = NDArray[np.int64]
BATCH_CHARACTERS = 1 << 17  # the arrays of a batch of that size stay near the processor
APOSTROPHES = ("'", "’")
ALONE = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))  # kana and Chinese characters
_OUTSIDE, _INSIDE, _ALONE = range(3)
_WORD_BASE, _GRAM_BASE = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # odd, so that they have inverses modulo 2**64


class Grams(NamedTuple):
    """Hashes of words or of runs of words, text after text."""

    hashes: U64
    offsets: Indices  # text r has hashes[offsets[r] : offsets[r + 1]]

    @property
    def counts(self) -> Indices:
        return np.diff(self.offsets)

    def owners(self) -> Indices:
        """Say of every hash which text it belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut into runs of about BATCH_CHARACTERS characters, of at least one text."""
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield texts[start : index + 1]
            start, size = index + 1, 0
    if start < len(texts):
        yield texts[start:]


def hash_words(texts: Sequence[str]) -> Grams:
    """Hash every word of every text.

    The hash of the characters c[i..j] is (S[j+1] - S[i]) / B**i modulo 2**64, with S[k] = sum of c[m] * B**m over
    m < k: one sum over all texts gives the hash of any run.
    """
    lowered = [_lower(text) for text in texts]
    units = np.frombuffer("\n".join(lowered).encode("utf-16-le", "surrogatepass"), dtype="<u2")
    kinds = _kinds()[units]
    before = np.concatenate((np.zeros(1, np.uint8), kinds[:-1]))
    after = np.concatenate((kinds[1:], np.zeros(1, np.uint8)))
    inside = kinds != _OUTSIDE
    starts = np.flatnonzero(inside & ((kinds == _ALONE) | (before != _INSIDE)))
    ends = np.flatnonzero(inside & ((kinds == _ALONE) | (after != _INSIDE))) + 1
    hashes = _mixed(_runs(units, starts, ends, _WORD_BASE))
    return Grams(hashes, np.searchsorted(starts, _line_starts(lowered)))


def hash_grams(words: Grams, size: int, *, shorter: bool = False) -> Grams:
    """Hash every run of `size` words inside a text; with `shorter`, a text of fewer words is one run."""
    counts = np.maximum(words.counts - size + 1, 0)
    if shorter:
        counts = np.where(words.counts > 0, np.maximum(counts, 1), 0)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    shift = words.offsets[:-1] - offsets[:-1]
    starts = np.arange(offsets[-1]) + np.repeat(shift, counts)
    ends = np.minimum(starts + size, np.repeat(words.offsets[1:], counts))
    return Grams(_mixed(_runs(words.hashes, starts, ends, _GRAM_BASE)), offsets)


def hash_texts(words: Grams) -> U64:
    """Hash every text as the run of all its words."""
    return _mixed(_runs(words.hashes, words.offsets[:-1], words.offsets[1:], _GRAM_BASE))


def _lower(text: str) -> str:
    lowered = text.lower()
    for apostrophe in APOSTROPHES:
        lowered = lowered.replace(apostrophe, "")
    return lowered


def _line_starts(lines: Sequence[str]) -> Indices:
    """Where each line begins in UTF-16 units, and where the last one ends, one unit of line end behind each."""
    sizes = [len(line) if line.isascii() else len(line.encode("utf-16-le", "surrogatepass")) // 2 for line in lines]
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(np.array(sizes, np.int64) + 1)))


def _runs(values: NDArray[np.unsignedinteger], starts: Indices, ends: Indices, base: int) -> U64:
    powers, inverses = _powers(base, 1 << len(values).bit_length())
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(np.multiply(values, powers[: len(values)], dtype=np.uint64), out=sums[1:])
    return (sums[ends] - sums[starts]) * inverses[starts]


@lru_cache(maxsize=8)
def _powers(base: int, count: int) -> tuple[U64, U64]:
    powers, inverses = np.full(count, base, np.uint64), np.full(count, pow(base, -1, 1 << 64), np.uint64)
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


def _mixed(hashes: U64) -> U64:
    """Spread every bit over all others; the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


@cache
def _kinds() -> NDArray[np.uint8]:
    """Say of every UTF-16 unit whether it belongs to a word; halves of pairs do (rare scripts, emoji)."""
    kinds = np.zeros(1 << 16, np.uint8)
    for code in range(1 << 16):
        if chr(code).isalnum() or unicodedata.category(chr(code)) in ("Mn", "Mc", "Cs"):
            kinds[code] = _INSIDE
    for first, last in ALONE:
        kinds[first : last + 1] = np.where(kinds[first : last + 1], _ALONE, _OUTSIDE)
    return kinds
