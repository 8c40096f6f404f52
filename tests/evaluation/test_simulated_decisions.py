"""Do the tests and decisions hold what they promise? Simulated worlds whose truth is known.

The same helpers that accept our formulas must reject well-known wrong ones: `test_..._rejected`.
docs/statistics.md lists the numbers; `pytest -rP` prints them.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation import bootstrap
from finetune.evaluation.bootstrap import paired_bootstrap, scores_no_worse
from finetune.evaluation.power import detectable_drop
from finetune.evaluation.statistics import (
    mcnemar,
    mcnemar_worse,
    no_worse,
    perplexity_no_worse,
)
from tests.evaluation.simulation import (
    SCORES,
    Cells,
    answers,
    assert_catches,
    assert_rarely,
    by_cells,
    worlds,
)

FALSE_ALARMS = 20_000
# Decisions

NULLS = [(50, 0.2), (100, 0.1), (200, 0.2), (400, 0.05)]  # prompts, share of discordant ones


def equal_worlds(prompts: int, discordant: float, drop: float = 0.0, runs: int = FALSE_ALARMS) -> list[Cells]:
    rng = np.random.default_rng(prompts)
    gained, lost = (discordant - drop) / 2, (discordant + drop) / 2
    return worlds(rng, prompts, (0.8 * (1 - discordant), gained, lost, 0.2 * (1 - discordant)), runs)


def verdicts(cells: list[Cells], margin: float = 0.0) -> list[str]:
    return [str(x) for x in map(by_cells(lambda b, a: no_worse(b, a, margin).verdict), cells)]


def unpaired_z(base: list[bool], adapter: list[bool]) -> bool:
    n, p, q = len(base), sum(base) / len(base), sum(adapter) / len(base)
    return (p - q) > 1.6449 * math.sqrt((p * (1 - p) + q * (1 - q)) / n)


@pytest.mark.parametrize(("prompts", "discordant"), NULLS)
def test_equal_models_are_rarely_called_different(prompts: int, discordant: float) -> None:
    cells, name = equal_worlds(prompts, discordant), f"{prompts} prompts, {discordant:.0%} discordant"
    assert_rarely(f"mcnemar, {name}", [p <= 0.05 for p in map(by_cells(mcnemar), cells)])  # type: ignore[operator]
    found = verdicts(cells)
    assert_rarely(f"no_worse fails, {name}", [x == "fail" for x in found])
    assert_rarely(f"no_worse passes at margin 0, {name}", [x == "pass" for x in found])


@pytest.mark.parametrize(
    ("prompts", "discordant", "margin"),
    [(50, 0.1, 0.1), (100, 0.06, 0.02), (100, 0.2, 0.05), (200, 0.2, 0.1), (400, 0.12, 0.05)],
)
def test_a_drop_of_just_the_margin_is_rarely_passed_or_failed(prompts: int, discordant: float, margin: float) -> None:
    found = verdicts(equal_worlds(prompts, discordant, drop=margin), margin)
    name = f"{prompts} prompts, margin {margin}"
    assert_rarely(f"no_worse fails, {name}", [x == "fail" for x in found])
    assert_rarely(f"no_worse passes, {name}", [x == "pass" for x in found])


def test_point_estimates_and_lax_levels_are_rejected() -> None:
    cells = equal_worlds(200, 0.2)
    with pytest.raises(AssertionError, match="false alarms"):
        assert_rarely("point estimate", [lost > gained for _, gained, lost, _ in cells])
    lax = by_cells(lambda b, a: no_worse(b, a, confidence=0.9).verdict == "fail")
    with pytest.raises(AssertionError, match="false alarms"):
        assert_rarely("confidence 0.9", [bool(x) for x in map(lax, cells)])


def test_perplexity_that_rose_by_just_the_margin_is_rarely_decided() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(FALSE_ALARMS):
        tokens = rng.integers(10, 80, 30)
        base = tokens * 2.0
        adapter = base + tokens * (math.log(1.02) + rng.normal(0, 0.1, 30))
        found.append(perplexity_no_worse(base.tolist(), adapter.tolist(), tokens.tolist(), 0.02).verdict)
    assert_rarely("perplexity_no_worse fails", [x == "fail" for x in found])
    assert_rarely("perplexity_no_worse passes", [x == "pass" for x in found])


@pytest.mark.parametrize(
    ("kind", "prompts", "runs"),
    [
        ("graded", 50, 2000),
        pytest.param("graded", 50, FALSE_ALARMS, marks=pytest.mark.slow),
        pytest.param("difficult", 100, FALSE_ALARMS, marks=pytest.mark.slow),  # 50 are not quite enough: 5.4%
    ],
)
def test_scores_that_fell_by_just_the_margin_are_rarely_decided(
    kind: str, prompts: int, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "paired_bootstrap", partial(paired_bootstrap, resamples=1000))  # ten times faster
    rng, found = np.random.default_rng(1), []
    for seed in range(runs):
        base, adapter, truth = SCORES[kind](rng, prompts)
        found.append(scores_no_worse(base, adapter - truth - 0.05, 0.05, seed).verdict)  # type: ignore[arg-type]
    assert_rarely(f"scores_no_worse fails, {kind}", [x == "fail" for x in found])
    assert_rarely(f"scores_no_worse passes, {kind}", [x == "pass" for x in found])


def test_a_drop_of_ten_points_is_caught_with_200_prompts() -> None:
    """15% of the prompts get worse, 5% better."""
    cells = equal_worlds(200, 0.2, drop=0.1)
    assert_catches("drop of 10 points, 200 prompts", [x == "fail" for x in verdicts(cells)])
    with pytest.raises(AssertionError, match="caught"):
        assert_catches("unpaired z-test", [bool(x) for x in map(by_cells(unpaired_z), cells)])


@pytest.mark.parametrize("discordant", [0.1, 0.3])
@pytest.mark.parametrize("prompts", [50, 100, 200, 400])
def test_detectable_drop_is_caught_as_often_as_claimed(prompts: int, discordant: float) -> None:
    drop = detectable_drop(prompts, discordant)
    found = verdicts(equal_worlds(prompts, max(drop, discordant), drop, runs=8000))
    name = f"{prompts} prompts, {discordant:.0%} discordant, drop {drop:.3f}"
    assert_catches(name, [x == "fail" for x in found], low=0.88, high=0.92)


def test_the_drop_of_a_normal_approximation_is_rejected() -> None:
    """(z + z) sqrt(discordant / n) is what a z-test could see, and the exact test cannot."""
    drop = (1.6449 + 1.2816) * math.sqrt(0.2 / 50)
    found = verdicts(equal_worlds(50, 0.2, drop=drop))
    with pytest.raises(AssertionError, match="caught"):
        assert_catches("normal approximation", [x == "fail" for x in found], low=0.88, high=0.92)


def test_mcnemar_equals_another_exact_binomial() -> None:
    for n in range(61):
        chances = stats.binom.pmf(np.arange(n + 1), n, 0.5)
        for lost in range(n + 1):
            base, adapter = answers((3, n - lost, lost, 2))
            two_sided = math.fsum(chances[np.abs(np.arange(n + 1) - n / 2) >= abs(lost - n / 2)])
            assert abs(mcnemar(base, adapter) - two_sided) <= 1e-12
            assert abs(mcnemar_worse(base, adapter) - math.fsum(chances[lost:])) <= 1e-12
