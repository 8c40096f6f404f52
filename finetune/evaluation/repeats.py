"""Prompts answered several times: how often one of k answers passes, all k do, and which prompts waver.

`outcomes` holds, per prompt, whether each of its answers passed. Prompts are the unit of
independence: answers to one prompt are alike, so 8 answers to 50 prompts are not 400 prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scipy.special import stdtrit

from finetune.evaluation.statistics import CONFIDENCE, Interval, clustered_ratio, score_interval, wilson

Outcomes = Sequence[Sequence[bool]]


class Flaky(NamedTuple):
    """A prompt that passed sometimes: its place, counts, and pass rate with Wilson's interval."""

    prompt: int
    passed: int
    repeats: int
    rate: Interval


def pass_any(passed: int, repeats: int, k: int) -> float:
    """Return pass@k of one prompt: the chance that at least one of k answers passes.

    Unbiased from any number of repeats >= k (Chen et al. 2021, arXiv 2107.03374, equation 1): the
    share of subsets of k answers with a pass. 1 - (1 - passed/repeats)^k would be too low.
    """
    return 1 - pass_all(repeats - passed, repeats, k)


def pass_all(passed: int, repeats: int, k: int) -> float:
    """Return pass^k of one prompt: the chance that all of k answers pass.

    Unbiased likewise (Yao et al. 2024, arXiv 2406.12045, section 3): the share of subsets of k
    answers that all pass.
    """
    if not (0 <= passed <= repeats and 1 <= k <= repeats):
        raise ValueError(f"{passed} of {repeats} repeats passed, k = {k}: k and passed lie within the repeats")
    return math.comb(passed, k) / math.comb(repeats, k)


def variance(passed: int, repeats: int) -> float:
    """Return the unbiased variance of one answer's outcome to this prompt: 0 steady, 1/4 a fair coin."""
    if not (0 <= passed <= repeats and repeats > 1):
        raise ValueError(f"{passed} of {repeats} repeats have no variance; at least two are needed")
    return passed * (repeats - passed) / (repeats * (repeats - 1))


def mean_pass_any(outcomes: Outcomes, k: int, confidence: float = CONFIDENCE) -> Interval:
    """Return pass@k averaged over prompts, with Student's interval over prompts."""
    return _mean(outcomes, k, pass_any, confidence)


def mean_pass_all(outcomes: Outcomes, k: int, confidence: float = CONFIDENCE) -> Interval:
    """Return pass^k averaged over prompts, with Student's interval over prompts."""
    return _mean(outcomes, k, pass_all, confidence)


def flaky_prompts(outcomes: Outcomes, confidence: float = CONFIDENCE) -> tuple[Flaky, ...]:
    """Return the prompts that passed in some repeats but not in all, the most uncertain first."""
    found = [
        Flaky(prompt, passed, repeats, wilson(passed, repeats, confidence))
        for prompt, (passed, repeats) in enumerate(_counts(outcomes))
        if 0 < passed < repeats
    ]
    return tuple(sorted(found, key=lambda flaky: (abs(flaky.rate.value - 0.5), flaky.prompt)))


def repeated_rate(outcomes: Outcomes, confidence: float = CONFIDENCE) -> Interval:
    """Return the share of all answers that passed, with an interval clustered by prompt.

    Wilson's interval for the effective number of answers (the number of independent ones with the
    clustered variance), with Student's quantile: Korn and Graubard (1998, Survey Methodology
    24:193-201), Wilson in place of Clopper-Pearson as Dean and Pagano (2015, Journal of Survey
    Statistics and Methodology 3:484-503) recommend.
    """
    counts = _counts(outcomes)
    passed, repeats = [c[0] for c in counts], [c[1] for c in counts]
    if len(counts) == 1:
        return Interval(passed[0] / repeats[0], 0.0, 1.0)
    rate, error, freedom = clustered_ratio(passed, repeats)
    # Prompts that all pass, all fail or are all even show no scatter to learn from: then count prompts or answers.
    size = rate * (1 - rate) / error**2 if error > 0 else float(sum(repeats) if 0 < rate < 1 else len(counts))
    return score_interval(rate, size, float(stdtrit(freedom, (1 + confidence) / 2)))


def _mean(outcomes: Outcomes, k: int, measure: Callable[[int, int, int], float], confidence: float) -> Interval:
    values = [measure(passed, repeats, k) for passed, repeats in _counts(outcomes)]
    value, error, freedom = clustered_ratio(values, [1] * len(values))
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def _counts(outcomes: Outcomes) -> list[tuple[int, int]]:
    """Count passes and repeats of each prompt."""
    if not outcomes or not all(outcomes):
        raise ValueError("every prompt needs at least one answer, and there must be a prompt")
    return [(sum(answers), len(answers)) for answers in outcomes]
