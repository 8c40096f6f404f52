from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation import bootstrap
from finetune.evaluation.bootstrap import paired_bootstrap, scores_no_worse


def scores(n: int, drop: float = 0.0, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = random.Random(seed)
    base = [rng.uniform(0.3, 1.0) for _ in range(n)]
    return base, [x - drop + rng.gauss(0, 0.1) for x in base]


def test_same_seed_same_numbers_and_another_seed_others() -> None:
    base, adapter = scores(30)
    assert paired_bootstrap(base, adapter, 1) == paired_bootstrap(base, adapter, 1)
    assert paired_bootstrap(base, adapter, 1) != paired_bootstrap(base, adapter, 2)


def test_numbers_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = scores(33)
    whole = paired_bootstrap(base, adapter, 1, resamples=501)
    monkeypatch.setattr(bootstrap, "CHUNK", 33 * 7)
    assert paired_bootstrap(base, adapter, 1, resamples=501) == whole


def test_interval_is_close_to_students_where_that_holds() -> None:
    base, adapter = scores(60, drop=0.05)
    gains = np.subtract(adapter, base)
    student = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    interval = paired_bootstrap(base, adapter, 3)
    width = student.high - student.low
    assert interval.value == pytest.approx(gains.mean())
    assert interval.low == pytest.approx(student.low, abs=0.04 * width)
    assert interval.high == pytest.approx(student.high, abs=0.04 * width)


def test_higher_confidence_is_wider() -> None:
    base, adapter = scores(40)
    narrow, wide = (paired_bootstrap(base, adapter, 0, confidence=c) for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_equal_differences_are_exact() -> None:
    assert paired_bootstrap([0.25, 0.5, 0.75], [0.5, 0.75, 1.0], 0) == (0.25, 0.25, 0.25)
    assert paired_bootstrap([1 / 3] * 7, [1 / 3] * 7, 0) == (0.0, 0.0, 0.0)
    value, low, high = paired_bootstrap([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], 0)
    assert low <= value <= high
    assert value == pytest.approx(0.1)


def test_one_prompt_has_no_interval() -> None:
    assert paired_bootstrap([0.5], [0.75], 0) == (0.25, -math.inf, math.inf)


def test_scores_that_make_no_pairs_are_refused() -> None:
    for base, adapter in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="no pairs"):
            paired_bootstrap(base, adapter, 0)
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap([1.0, 2.0], [1.0, math.nan], 0)


@pytest.mark.parametrize(("drop", "verdict"), [(0.0, "pass"), (0.1, "inconclusive"), (0.2, "fail")])
def test_scores_pass_fail_or_cannot_tell(drop: float, verdict: str) -> None:
    decision = scores_no_worse(*scores(40, drop), margin=0.1, seed=0)
    assert decision.verdict == verdict
    assert decision.drop.low < decision.drop.value < decision.drop.high
    assert "0.1" in decision.reason


def test_few_differences_are_no_certainty() -> None:
    """No prompt of 20 lost anything: resampling says the drop is exactly 0, but others were not asked."""
    same = [0.5] * 20
    assert scores_no_worse(same, same, 0.05, 0).verdict == "inconclusive"
    assert scores_no_worse(same * 20, same * 20, 0.05, 0).verdict == "pass"
    assert scores_no_worse(same, same, 0.05, 0, worst=0.1).verdict == "pass"
    three = [0.0] * 3 + [0.5] * 197
    assert scores_no_worse([0.5] * 200, three, 0.0, 0).verdict == "inconclusive"
    five = [0.0] * 5 + [0.5] * 195
    assert scores_no_worse([0.5] * 200, five, 0.0, 0).verdict == "fail"
