"""Paired bootstrap: intervals and decisions for graded scores, where no formula knows their distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from finetune.evaluation.statistics import CONFIDENCE, Decision, Interval, decide, mcnemar_worse, two_sided, wilson

CHUNK = 1 << 20  # drawn at a time: 8 MiB of indices
FEW = 10  # fewer scores that differ are too few to resample
Floats = NDArray[np.float64]


def paired_bootstrap(
    base: Sequence[float],
    adapter: Sequence[float],
    seed: int,
    resamples: int = 10_000,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the adapter's mean score minus the base's, on the same prompts, with a bootstrap interval.

    BCa (Efron 1987, Journal of the American Statistical Association 82:171-185) with Student's
    quantile in place of the normal one, expanded as in Hesterberg (2015, The American Statistician
    69:371-386). Equal differences have an interval of no width, a single prompt an infinite one.
    """
    gains = _gains(base, adapter)
    n, value = len(gains), math.fsum(gains) / len(gains)
    if n == 1:
        return Interval(value, -math.inf, math.inf)
    if np.all(gains == gains[0]):
        return Interval(*[float(gains[0])] * 3)
    means = _means(gains, seed, resamples)
    # The resampled means scatter like sqrt((n-1)/n) of the standard error, and normal, not Student.
    reach = float(stdtrit(n - 1, (1 + confidence) / 2)) * math.sqrt(n / (n - 1))
    low, high = np.quantile(means, [_level(gains, means, -reach), _level(gains, means, reach)])
    return Interval(value, min(float(low), value), max(float(high), value))


def scores_no_worse(
    base: Sequence[float],
    adapter: Sequence[float],
    margin: float,
    seed: int,
    confidence: float = CONFIDENCE,
    worst: float = 1.0,
) -> Decision:
    """Decide whether the mean score drops by more than the margin; `worst` is the most one prompt can lose.

    Few prompts that differ tell little about those that were not asked, and resampling them does not
    see it. Then the bound on the drop is Wilson's on the share of prompts that lose, times `worst`,
    and a failure needs the sign test, too.
    """
    level = two_sided(margin, confidence)
    gain = paired_bootstrap(base, adapter, seed, confidence=level)
    drop = Interval(0 - gain.value, 0 - gain.high, 0 - gain.low)
    gains = _gains(base, adapter)
    if np.count_nonzero(gains) < FEW:
        high = worst * wilson(int(np.sum(gains < 0)), len(gains), level).high
        shown = mcnemar_worse((gains < 0).tolist(), (gains > 0).tolist()) <= 1 - confidence  # equal scores drop out
        drop = Interval(drop.value, drop.low if shown else -worst, max(drop.high, high))
    return decide(drop, margin, confidence)


def _gains(base: Sequence[float], adapter: Sequence[float]) -> Floats:
    if len(base) != len(adapter) or not len(base):
        raise ValueError(f"{len(base)} and {len(adapter)} scores make no pairs")
    gains: Floats = np.asarray(adapter, np.float64) - np.asarray(base, np.float64)
    if not np.all(np.isfinite(gains)):
        raise ValueError("a score is no finite number")
    return gains


def _level(gains: Floats, means: Floats, z: float) -> float:
    """Return the percentile of the resampled means that BCa takes for a normal quantile."""
    off = gains - gains.mean()
    skew = float(np.sum(off**3) / (6 * np.sum(off**2) ** 1.5))
    middle, rounding = gains.mean(), 1e-12 * np.abs(gains).max()
    below = (np.mean(means < middle - rounding) + np.mean(means <= middle + rounding)) / 2  # a tie is half below
    shift = float(ndtri(np.clip(below, 1 / len(means), 1 - 1 / len(means))))
    return float(ndtr(shift + (shift + z) / max(1 - skew * (shift + z), 1e-3)))


def _means(gains: Floats, seed: int, resamples: int) -> Floats:
    rng, n = np.random.default_rng(seed), len(gains)
    rows = max(1, CHUNK // n)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([gains[rng.integers(0, n, (size, n))].mean(1) for size in sizes])
