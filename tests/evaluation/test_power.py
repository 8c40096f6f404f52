from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetune.evaluation.power import catch_rate, detectable_drop, discordant_rate, prompts_needed


def by_enumeration(prompts: int, drop: float, discordant: float) -> float:
    """Add up the chances of all (gained, lost) that the binomial test calls worse."""
    gains, losses = (discordant - drop) / 2, (discordant + drop) / 2
    total = 0.0
    for gained, lost in itertools.product(range(prompts + 1), repeat=2):
        same = prompts - gained - lost
        if same < 0 or stats.binom.sf(lost - 1, gained + lost, 0.5) > 0.05:
            continue
        ways = math.comb(prompts, gained) * math.comb(prompts - gained, lost)
        total += ways * gains**gained * losses**lost * (1 - discordant) ** same
    return total


@pytest.mark.parametrize(
    ("prompts", "drop", "discordant"), [(3, 1.0, 1.0), (12, 0.3, 0.5), (30, 0.1, 0.2), (30, 0.2, 0.2), (25, 0.0, 0.4)]
)
def test_catch_rate_equals_the_sum_over_all_outcomes(prompts: int, drop: float, discordant: float) -> None:
    expected = by_enumeration(prompts, drop, discordant)
    assert catch_rate(prompts, drop, discordant) == pytest.approx(expected, abs=1e-9)


def test_a_drop_larger_than_the_discordant_share_makes_its_own() -> None:
    assert catch_rate(50, 0.3, 0.1) == pytest.approx(catch_rate(50, 0.3, 0.3))
    assert catch_rate(50, 0.0, 0.0) == 0.0


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 600), st.sampled_from([0.02, 0.1, 0.2, 0.5, 1.0]), st.sampled_from([0.5, 0.8, 0.9]))
def test_detectable_drop_is_where_the_power_is_reached(prompts: int, discordant: float, power: float) -> None:
    drop = detectable_drop(prompts, discordant, power=power)
    assert catch_rate(prompts, drop, discordant) >= power
    assert catch_rate(prompts, drop - 2e-6, discordant) < power


@settings(deadline=None, max_examples=40)
@given(st.floats(0.02, 1.0), st.floats(0.0, 1.0), st.sampled_from([0.9, 0.95, 0.99]))
def test_one_prompt_less_than_needed_is_too_few(drop: float, discordant: float, confidence: float) -> None:
    needed = prompts_needed(drop, discordant, confidence)
    assert catch_rate(needed, drop, discordant, confidence) >= 0.9
    assert needed == 1 or catch_rate(needed - 1, drop, discordant, confidence) < 0.9


def test_more_prompts_detect_smaller_drops() -> None:
    drops = [detectable_drop(n, 0.2) for n in (5, 20, 50, 100, 200, 400, 1000, 10_000)]
    assert drops == sorted(drops, reverse=True)
    assert detectable_drop(4, 0.2) == math.inf
    assert 0.09 < detectable_drop(200, 0.2) < 0.1


def test_ten_thousand_prompts_are_answered_at_once() -> None:
    detectable_drop(10_000, 0.3)
    times = []
    for discordant in (0.001, 0.2, 1.0):
        start = time.process_time()
        detectable_drop(10_000, discordant)
        times.append(time.process_time() - start)
    assert min(times) < 0.5  # a tenth of that, or less; counting one by one would take minutes


def test_discordant_share_comes_from_the_pairs() -> None:
    rate = discordant_rate([True, True, False, False], [True, False, True, False])
    assert rate.value == 0.5
    assert 0 < rate.low < 0.5 < rate.high < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: catch_rate(0, 0.1, 0.2), "show nothing"),
        (lambda: catch_rate(10, -0.1, 0.2), "a drop lies"),
        (lambda: catch_rate(10, 0.1, 1.2), "discordant"),
        (lambda: detectable_drop(10, 0.2, power=1.0), "power"),
        (lambda: detectable_drop(10, 0.2, confidence=0.3), "confidence"),
        (lambda: prompts_needed(0.0, 0.2), "a drop to be shown"),
        (lambda: prompts_needed(np.nan, 0.2), "a drop to be shown"),
    ],
)
def test_impossible_questions_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
