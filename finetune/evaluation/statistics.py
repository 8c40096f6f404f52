"""Intervals and tests for what an evaluation measures; every formula names its source.

Examples are the unit of independence: tokens of one answer are not independent of each other.
docs/statistics.md says what each of them assumes and how well it was measured to hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

from scipy.special import betaincinv, stdtrit

from finetune.errors import ModelError

CONFIDENCE = 0.95


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Decision(NamedTuple):
    """Whether an adapter is no worse than its base: `drop` is what was lost, its ends one-sided bounds."""

    verdict: Literal["pass", "fail", "inconclusive"]
    drop: Interval
    reason: str


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
    return score_interval(passed / total, total, normal_quantile(confidence))


def score_interval(rate: float, size: float, z: float) -> Interval:
    """Return Wilson's interval of a rate; `size` need not be whole (an effective sample size)."""
    scale = 1 / (1 + z * z / size)
    centre = scale * (rate + z * z / (2 * size))
    half = scale * z * math.sqrt(rate * (1 - rate) / size + z * z / (4 * size * size))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(rate, 0.0 if rate == 0 else low, 1.0 if rate == 1 else high)


def paired_gain(base: Sequence[bool], adapter: Sequence[bool], confidence: float = CONFIDENCE) -> Interval:
    """Return the adapter's pass rate minus the base's, on the same prompts, with an interval.

    Method 10 of Newcombe (1998, Statistics in Medicine 17:2635-2650): the two Wilson intervals,
    combined with the correlation of the pairs, which is corrected for continuity.
    """
    both, gained, lost, neither = _pairs(base, adapter)
    n = both + gained + lost + neither
    p1, l1, u1 = wilson(both + gained, n, confidence)
    p2, l2, u2 = wilson(both + lost, n, confidence)
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
    return min(1.0, 2 * _at_most(min(gained, lost), gained + lost))


def mcnemar_worse(base: Sequence[bool], adapter: Sequence[bool]) -> float:
    """Return the exact one-sided p-value that the adapter passes no less often than the base."""
    _, gained, lost, _ = _pairs(base, adapter)
    return _at_most(gained, gained + lost)


def _at_most(heads: int, tosses: int) -> float:
    """Return the probability of at most so many heads of a fair coin, from exact integers."""
    tail = ways = 1  # of 2^tosses outcomes
    for k in range(heads):
        ways = ways * (tosses - k) // (k + 1)
        tail += ways
    return tail / (1 << tosses)


def perplexity_interval(nll: Sequence[float], tokens: Sequence[int], confidence: float = CONFIDENCE) -> Interval:
    """Return exp(sum NLL / sum tokens) with an interval clustered by example.

    `nll` is each example's sum in nats. With one example the interval is 0 to infinity.
    """
    return _exp(_ratio(nll, tokens, confidence))


def perplexity_ratio_interval(
    base_nll: Sequence[float], adapter_nll: Sequence[float], tokens: Sequence[int], confidence: float = CONFIDENCE
) -> Interval:
    """Return adapter perplexity / base perplexity, paired by example; below 1 the adapter is better.

    With one example the interval is 0 to infinity.
    """
    return _exp(_ratio([a - b for b, a in zip(base_nll, adapter_nll, strict=True)], tokens, confidence))


def no_worse(
    base: Sequence[bool], adapter: Sequence[bool], margin: float = 0.0, confidence: float = CONFIDENCE
) -> Decision:
    """Decide whether the pass rate drops by more than the margin, 0.05 being 5 points.

    Bounds from `drop_bounds`; at margin 0 the exact one-sided McNemar test decides instead.
    """
    two_sided(margin, confidence)
    drop = drop_bounds(base, adapter, confidence)
    if margin != 0:
        return decide(drop, margin, confidence)
    p_worse, p_better = mcnemar_worse(base, adapter), mcnemar_worse(adapter, base)
    if p_better <= 1 - confidence:
        return Decision("pass", drop, f"more prompts pass (exact McNemar test, one-sided p = {p_better:.2g})")
    if p_worse <= 1 - confidence:
        return Decision("fail", drop, f"fewer prompts pass (exact McNemar test, one-sided p = {p_worse:.2g})")
    p = min(p_better, p_worse)
    return Decision("inconclusive", drop, f"too few differ to tell (exact McNemar test, one-sided p = {p:.2g})")


def drop_bounds(base: Sequence[bool], adapter: Sequence[bool], confidence: float = CONFIDENCE) -> Interval:
    """Return the base's pass rate minus the adapter's, with two one-sided bounds.

    Where Tango's (1998, Statistics in Medicine 17:891-908) score test for a margin, corrected for
    continuity, just rejects. The lower bound also obeys the exact binomial test of as many prompts
    lost and none gained (Clopper and Pearson 1934): with few discordant prompts the score test alone
    rejects too often.
    """
    both, gained, lost, neither = _pairs(base, adapter)
    n, net, z = both + gained + lost + neither, lost - gained, NormalDist().inv_cdf(confidence)
    low = _crossing(lambda drop: _tango(gained, lost, n, drop) > z)
    high = _crossing(lambda drop: _tango(gained, lost, n, drop) >= -z)
    if net > 0:
        low = min(low, float(betaincinv(net, n - net + 1, 1 - confidence)))
    return Interval(net / n, min(low, net / n), max(high, net / n))


def _tango(gained: int, lost: int, n: int, drop: float) -> float:
    """Return the score statistic of a true drop, positive where more was lost; nearer to 0 by half a prompt."""
    excess = lost - gained - n * drop
    b, c = (2 * n - lost + gained) * drop - lost - gained, -gained * drop * (1 - drop)
    gain_rate = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)  # most likely, given the drop
    scatter = n * (2 * gain_rate + drop * (1 - drop))
    size = max(0.0, abs(excess) - 0.5)
    return math.copysign(size / math.sqrt(max(scatter, 1e-12)), excess)


def _crossing(holds: Callable[[float], bool]) -> float:
    """Return where a condition on the drop stops holding, between -1 and 1."""
    low, high = -1.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def perplexity_no_worse(
    base_nll: Sequence[float],
    adapter_nll: Sequence[float],
    tokens: Sequence[int],
    margin: float = 0.0,
    confidence: float = CONFIDENCE,
) -> Decision:
    """Decide whether perplexity rises by more than the margin, 0.02 being 2% above the base's."""
    ratio = perplexity_ratio_interval(base_nll, adapter_nll, tokens, two_sided(margin, confidence))
    return decide(Interval(*(x - 1 for x in ratio)), margin, confidence, "rise")


def decide(drop: Interval, margin: float, confidence: float, what: str = "drop") -> Decision:
    """Decide from the two one-sided bounds on what was lost, each of which holds with `confidence`."""
    low, high, sure = f"{drop.low:.3g}", f"{drop.high:.3g}", f"with {confidence:.3g} confidence"
    if drop.high <= margin:
        return Decision("pass", drop, f"{sure} the {what} is at most {high}, within the margin of {margin:g}")
    if drop.low > margin:
        return Decision("fail", drop, f"{sure} the {what} is at least {low}, beyond the margin of {margin:g}")
    reason = f"the {what} may be {low} or {high} (each bound {sure}), the margin {margin:g} lies between"
    return Decision("inconclusive", drop, f"{reason}: too few data")


def two_sided(margin: float, confidence: float) -> float:
    """Return the confidence of an interval both ends of which are one-sided bounds with this confidence."""
    if not (0 <= margin < math.inf and 0.5 < confidence < 1):
        raise ValueError(f"margin {margin} must not be negative, confidence {confidence} lies between 0.5 and 1")
    return 2 * confidence - 1


def clustered_ratio(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float, float]:
    """Return sum / count, its standard error clustered by example, and the error's degrees of freedom.

    The linearised error of a ratio estimator (Cochran 1977, Sampling Techniques, 6.3-6.4), made
    unbiased for examples of unequal length by CR2 and its degrees of freedom: Bell and McCaffrey
    (2002, Survey Methodology 28:169-181). With equal lengths this is Student's interval of the mean.
    """
    m, total = len(counts), sum(counts)
    if len(sums) != m or m == 0 or min(counts) < 1:
        raise ValueError(f"{len(sums)} sums and {m} counts; every example needs at least one token")
    value = math.fsum(sums) / total
    if m == 1:
        return value, math.inf, 1.0
    shares = [n / total for n in counts]
    terms = zip(sums, counts, shares, strict=True)
    squares = math.fsum((x - value * n) ** 2 / (1 - share) for x, n, share in terms)
    # Satterthwaite's: the squared mean of the error estimate over half its variance, were tokens independent.
    leverage = [share * share / (1 - share) for share in shares]
    cross = math.fsum(leverage) ** 2 - math.fsum(x * x for x in leverage)
    return value, math.sqrt(squares) / total, 1 / (math.fsum(share * share for share in shares) + cross)


def _ratio(sums: Sequence[float], counts: Sequence[int], confidence: float) -> Interval:
    value, error, freedom = clustered_ratio(sums, counts)
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
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
