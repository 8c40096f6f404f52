"""How small a drop in pass rate so many prompts can show: the power of the exact one-sided McNemar test.

Only prompts that one of the two passes and the other fails tell them apart, so every question here
needs their share, `discordant`: guess DISCORDANT, or take what an earlier evaluation measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaln, xlog1py, xlogy

from finetune.evaluation.statistics import CONFIDENCE, Interval, wilson

POWER = 0.9
DISCORDANT = 0.2  # of two adapters, where nothing is known yet
SMALLEST_DROP = 0.001  # below it the answer is in the millions of prompts
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def discordant_rate(base: Sequence[bool], adapter: Sequence[bool], confidence: float = CONFIDENCE) -> Interval:
    """Return the share of prompts that only one of the two passes, with Wilson's interval."""
    differ = [b != a for b, a in zip(base, adapter, strict=True)]
    return wilson(sum(differ), len(differ), confidence)


def catch_rate(prompts: int, drop: float, discordant: float, confidence: float = CONFIDENCE) -> float:
    """Return how probably the exact one-sided McNemar test shows a true drop, 0.1 being 10 points.

    A drop needs at least as many discordant prompts: where `discordant` is less than `drop`, `drop`
    counts. The exact unconditional power of Duffy (1984, Biometrics 40:1005-1015): the power given
    the number of discordant prompts, averaged over its binomial distribution.
    """
    _check(prompts, discordant, confidence)
    if not 0 <= drop <= 1:
        raise ValueError(f"a drop lies between 0 and 1, not {drop}")
    share = max(discordant, drop)
    if share == 0:
        return 0.0
    fewest, most = _likely_counts(prompts, share)
    differing = np.arange(fewest, most + 1)
    shown = _tail(_losses_needed(fewest, most, 1 - confidence), differing, (share + drop) / 2 / share)
    return min(1.0, float(_binomial(differing, prompts, share) @ shown))


def detectable_drop(prompts: int, discordant: float, confidence: float = CONFIDENCE, power: float = POWER) -> float:
    """Return the smallest true drop in pass rate that is shown with this power; infinite if none is.

    With fewer than 5 prompts not even a drop to zero is shown at a confidence of 0.95.
    """
    _check(prompts, discordant, confidence, power)
    low, high = 0.0, 1.0
    if catch_rate(prompts, high, discordant, confidence) < power:
        return math.inf
    while high - low > 1e-6:
        middle = (low + high) / 2
        if catch_rate(prompts, middle, discordant, confidence) >= power:
            high = middle
        else:
            low = middle
    return high


def prompts_needed(drop: float, discordant: float, confidence: float = CONFIDENCE, power: float = POWER) -> int:
    """Return how many prompts show a true drop of this size with this power.

    One prompt less would not. The test counts whole prompts, so its power rises in small teeth.
    """
    _check(1, discordant, confidence, power)
    if not SMALLEST_DROP <= drop <= 1:
        raise ValueError(f"a drop to be shown lies between {SMALLEST_DROP} and 1, not {drop}")
    low, high = 0, 1
    while catch_rate(high, drop, discordant, confidence) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if catch_rate(middle, drop, discordant, confidence) >= power:
            high = middle
        else:
            low = middle
    return high


def _likely_counts(prompts: int, share: float) -> tuple[int, int]:
    """Return the least and most discordant prompts that are not wholly improbable (8 standard deviations)."""
    middle, reach = prompts * share, 8 * math.sqrt(prompts * share * (1 - share)) + 20
    return max(0, math.floor(middle - reach)), min(prompts, math.ceil(middle + reach))


@lru_cache(maxsize=2)  # a search over drops asks again and again
def _losses_needed(fewest: int, most: int, alpha: float) -> Counts:
    """Return, for each number of fair coins, how many tails make a tail probability of at most alpha.

    One more than there are coins where even all tails are not improbable enough.
    """
    coins = np.arange(fewest, most + 1)
    low = coins // 2  # half of them or fewer are never enough
    # Hoeffding's inequality: so many are enough for certain.
    bound = np.ceil(coins / 2 + np.sqrt(coins * math.log(1 / alpha) / 2)) + 1
    high: Counts = np.minimum(coins + 1, bound.astype(np.int64))
    while np.any(high - low > 1):
        middle = (low + high) // 2
        enough = _tail(middle, coins, 0.5) <= alpha
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def _tail(at_least: Counts, tosses: Counts, chance: float) -> Floats:
    """Return the probability of at least so many successes."""
    possible = (at_least >= 1) & (at_least <= tosses)
    k, n = np.where(possible, at_least, 1), np.where(possible, tosses, 1)
    return np.where(possible, betainc(k, n - k + 1, chance), (at_least < 1).astype(np.float64))


def _binomial(k: Counts, tosses: int, chance: float) -> Floats:
    ways = gammaln(tosses + 1) - gammaln(k + 1) - gammaln(tosses - k + 1)
    weights: Floats = np.exp(ways + xlogy(k, chance) + xlog1py(tosses - k, -chance))
    return weights


def _check(prompts: int, discordant: float, confidence: float, power: float = POWER) -> None:
    if prompts < 1:
        raise ValueError(f"{prompts} prompts show nothing")
    if not 0 <= discordant <= 1:
        raise ValueError(f"a share of discordant prompts lies between 0 and 1, not {discordant}")
    if not (0.5 <= confidence < 1 and 0 < power < 1):
        raise ValueError(f"confidence {confidence} and power {power}: both lie below 1, confidence at 0.5 or above")
