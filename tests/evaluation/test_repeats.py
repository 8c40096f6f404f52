from __future__ import annotations

import itertools
import math

import pytest

from finetune.evaluation.repeats import (
    flaky_prompts,
    mean_pass_all,
    mean_pass_any,
    pass_all,
    pass_any,
    repeated_rate,
    variance,
)
from finetune.evaluation.statistics import wilson

EIGHT = [[i < passed for i in range(8)] for passed in (0, 3, 4, 8, 1)]


@pytest.mark.parametrize("repeats", [1, 2, 5, 8])
def test_pass_any_and_pass_all_are_shares_of_all_subsets(repeats: int) -> None:
    for passed, k in itertools.product(range(repeats + 1), range(1, repeats + 1)):
        subsets = list(itertools.combinations([i < passed for i in range(repeats)], k))
        assert pass_any(passed, repeats, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)
        assert pass_all(passed, repeats, k) == pytest.approx(sum(map(all, subsets)) / len(subsets), abs=1e-12)


def test_many_repeats_do_not_overflow() -> None:
    assert pass_any(1, 5000, 2500) == pytest.approx(0.5)
    assert pass_all(4999, 5000, 2500) == pytest.approx(0.5)


def test_variance_is_the_sample_variance_of_the_outcomes() -> None:
    assert [variance(sum(x), 8) for x in EIGHT] == pytest.approx([0, 15 / 56, 16 / 56, 0, 7 / 56])


def test_only_prompts_that_waver_are_flaky_and_the_worst_come_first() -> None:
    found = flaky_prompts(EIGHT)
    assert [(f.prompt, f.passed, f.repeats) for f in found] == [(2, 4, 8), (1, 3, 8), (4, 1, 8)]
    assert found[0].rate == wilson(4, 8)


def test_averages_over_prompts_have_students_interval() -> None:
    interval = mean_pass_any(EIGHT, 2)
    values = [pass_any(sum(x), 8, 2) for x in EIGHT]
    assert interval.value == pytest.approx(math.fsum(values) / 5)
    error = math.sqrt(math.fsum((v - interval.value) ** 2 for v in values) / 4 / 5)
    assert interval.low == pytest.approx(interval.value - 2.7764451051977987 * error)
    assert interval.high == 1.0
    assert mean_pass_all(EIGHT, 2).value < repeated_rate(EIGHT).value < interval.value
    assert mean_pass_all(EIGHT[:1], 2) == (0.0, 0.0, 1.0)


def test_answers_alike_count_as_one_per_prompt() -> None:
    same = [[i < 15] * 8 for i in range(20)]
    assert repeated_rate(same) == pytest.approx(repeated_rate([[i < 15] for i in range(20)]))
    assert repeated_rate(same).low < wilson(15, 20).low
    assert repeated_rate(same).high - repeated_rate(same).low > 2 * (wilson(120, 160).high - wilson(120, 160).low)


def test_even_prompts_count_no_more_answers_than_there_are() -> None:
    even = repeated_rate([[True, False]] * 50)
    assert even.low <= wilson(50, 100).low
    assert even.high >= wilson(50, 100).high


def test_all_passing_is_as_sure_as_so_many_prompts_not_answers() -> None:
    interval = repeated_rate([[True] * 8] * 20)
    assert interval.high == 1.0
    assert interval.low == pytest.approx(20 / (20 + 2.093024054408263**2))
    assert repeated_rate([[True, False]]) == (0.5, 0.0, 1.0)


def test_impossible_counts_are_refused() -> None:
    for passed, repeats, k in [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)]:
        with pytest.raises(ValueError, match="within the repeats"):
            pass_any(passed, repeats, k)
        with pytest.raises(ValueError, match="within the repeats"):
            pass_all(passed, repeats, k)
    with pytest.raises(ValueError, match="at least two"):
        variance(1, 1)
    for outcomes in ([], [[True], []]):
        with pytest.raises(ValueError, match="at least one answer"):
            repeated_rate(outcomes)
