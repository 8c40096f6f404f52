"""How near an answer is to a reference: numbers from 0 to 1. Words are what white space separates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

ORDERS = 6  # of character n-grams
BETA = 2  # how many times as much as precision recall weighs


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words that both have, each as often as both have it.

    Rajpurkar et al. 2016, SQuAD, section 6.1 (https://arxiv.org/abs/1606.05250).
    """
    ours, theirs = answer.split(), reference.split()
    common = Counter(ours) & Counter(theirs)
    return _f1(common.total(), len(ours), len(theirs))


def rouge_l(answer: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words.

    Lin 2004, ROUGE, section 3.1, with beta = 1 (https://aclanthology.org/W04-1013).
    """
    ours, theirs = answer.split(), reference.split()
    return _f1(_common_subsequence(ours, theirs), len(ours), len(theirs))


def chrf(answer: str, reference: str) -> float:
    """Return the character n-gram F-score, (1 + b²) P R / (b² P + R), without white space.

    P and R are the means over n = 1 ... 6 of the shares of common n-grams, for the n that the reference
    is long enough for. Popović 2015, section 2 (https://aclanthology.org/W15-3049), with b = 2.
    """
    ours, theirs = "".join(answer.split()), "".join(reference.split())
    precisions, recalls = [], []
    places: Sequence[int] = range(len(ours))
    for n in range(1, min(ORDERS, len(theirs)) + 1):
        wanted = Counter(theirs[i : i + n] for i in range(len(theirs) - n + 1))
        # A run can be common only where the one before it, a character shorter, was: few places remain.
        places = [i for i in places if ours[i : i + n] in wanted]
        common = (Counter(ours[i : i + n] for i in places) & wanted).total()
        precisions.append(common / max(1, len(ours) - n + 1))
        recalls.append(common / (len(theirs) - n + 1))
    precision, recall = (fmean(shares) if shares else 0.0 for shares in (precisions, recalls))
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall) if precision else 0.0


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0


def _common_subsequence(answer: Sequence[str], reference: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit per word of the reference.

    Allison and Dix 1986, a bit-string longest-common-subsequence algorithm: whole rows of the usual table
    are one number, so a long answer takes time with its own length alone.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << i
    row = 0
    for word in answer:
        if word in places:
            grown = row | places[word]
            row = grown & ((grown - (row << 1 | 1)) ^ grown)
    return row.bit_count()
