"""Intervals and tests for what an evaluation measures; every formula names its source.

Examples are the unit of independence: tokens of one answer are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from scipy.special import stdtrit

from finetune.errors import ModelError

CONFIDENCE = 0.95


class Interval(NamedTuple):
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Per example: NLL of its completion (sum, nats), completion tokens, completion UTF-8 bytes."""

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.nll) == len(self.tokens) == len(self.bytes) > 0:
            raise ValueError(f"{len(self.nll)} NLLs, {len(self.tokens)} token and {len(self.bytes)} byte counts")
        for index, nll in enumerate(self.nll):
            if not math.isfinite(nll):
                raise ModelError(f"the NLL of example {index + 1} is {nll}", fix="the weights are not finite: retrain")


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """Return z such that a standard normal lies within ±z with this probability."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(passed: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Return a proportion with its score interval (Wilson 1927)."""
    if not 0 <= passed <= total or total < 1:
        raise ValueError(f"{passed} of {total} is no proportion")
    z, p = normal_quantile(confidence), passed / total
    scale = 1 / (1 + z * z / total)
    centre = scale * (p + z * z / (2 * total))
    half = scale * z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(p, 0.0 if passed == 0 else low, 1.0 if passed == total else high)


def paired_gain(base: Sequence[bool], adapter: Sequence[bool]) -> Interval:
    """Return the adapter's pass rate minus the base's, on the same prompts, with a 95% interval.

    Method 10 of Newcombe (1998, Statistics in Medicine 17:2635-2650): the two Wilson intervals,
    combined with the correlation of the pairs, which is corrected for continuity.
    """
    both, gained, lost, neither = _pairs(base, adapter)
    n = both + gained + lost + neither
    p1, l1, u1 = wilson(both + gained, n)
    p2, l2, u2 = wilson(both + lost, n)
    phi = _correlation(both, gained, lost, neither)
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    gain = (gained - lost) / n
    return Interval(gain, gain - math.sqrt(max(0.0, below)), gain + math.sqrt(max(0.0, above)))


def mcnemar(base: Sequence[bool], adapter: Sequence[bool]) -> float:
    """Return the exact two-sided p-value that base and adapter pass equally often (McNemar 1947).

    Under no difference, the prompts that only one of them passes are fair coin tosses.
    """
    _, gained, lost, _ = _pairs(base, adapter)
    n = gained + lost
    tail = ways = 1  # of 2^n outcomes, those as uneven as this one: exact integers
    for k in range(min(gained, lost)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << n))


def perplexity_interval(nll: Sequence[float], tokens: Sequence[int]) -> Interval:
    """Return exp(sum NLL / sum tokens) with a 95% interval clustered by example.

    `nll` is each example's sum in nats. With one example the interval is 0 to infinity.
    """
    return _exp(_ratio(nll, tokens))


def perplexity_ratio_interval(
    base_nll: Sequence[float], adapter_nll: Sequence[float], tokens: Sequence[int]
) -> Interval:
    """Return adapter perplexity / base perplexity, paired by example; below 1 the adapter is better.

    With one example the interval is 0 to infinity.
    """
    return _exp(_ratio([a - b for b, a in zip(base_nll, adapter_nll, strict=True)], tokens))


def _ratio(sums: Sequence[float], counts: Sequence[int]) -> Interval:
    """Return sum / count with the linearised interval of a ratio estimator.

    Cochran (1977, Sampling Techniques, 6.3-6.4), clusters = examples, Student t with clusters-1
    degrees of freedom as in Miller (2024, arXiv 2411.00640).
    """
    m, total = len(counts), sum(counts)
    if len(sums) != m or m == 0 or min(counts) < 1:
        raise ValueError(f"{len(sums)} sums and {m} counts; every example needs at least one token")
    value = math.fsum(sums) / total
    if m == 1:
        return Interval(value, -math.inf, math.inf)
    squares = math.fsum((x - value * n) ** 2 for x, n in zip(sums, counts, strict=True))
    error = math.sqrt(m / (m - 1) * squares) / total
    half = float(stdtrit(m - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(value, value - half, value + half)


def _exp(interval: Interval) -> Interval:
    return Interval(*(math.exp(x) if x < 700 else math.inf for x in interval))


def _pairs(base: Sequence[bool], adapter: Sequence[bool]) -> tuple[int, int, int, int]:
    """Count prompts that both, only the adapter, only the base, and neither passed."""
    pairs = list(zip(base, adapter, strict=True))
    if not pairs:
        raise ValueError("no prompts to compare")
    both, gained = pairs.count((True, True)), pairs.count((False, True))
    lost = pairs.count((True, False))
    return both, gained, lost, len(pairs) - both - gained - lost


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    scale = math.sqrt((both + gained) * (lost + neither) * (both + lost) * (gained + neither))
    if scale == 0:
        return 0.0
    product = float(both * neither - gained * lost)
    if product > 0:
        product = max(0.0, product - (both + gained + lost + neither) / 2)
    return product / scale
