from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetune.errors import ModelError
from finetune.evaluation.statistics import (
    Scores,
    clustered_ratio,
    drop_bounds,
    mcnemar,
    mcnemar_worse,
    no_worse,
    paired_gain,
    perplexity_interval,
    perplexity_no_worse,
    perplexity_ratio_interval,
    wilson,
)


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    base = [True] * both + [False] * gained + [True] * lost + [False] * neither
    adapter = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return base, adapter


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case: tuple[int, int]) -> None:
    passed, total = case
    expected = stats.binomtest(passed, total).proportion_ci(0.95, method="wilson")
    assert wilson(passed, total) == pytest.approx((passed / total, expected.low, expected.high), abs=1e-12)


def test_wilson_ends_are_exact() -> None:
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    assert wilson(10, 10).low == pytest.approx(10 / (10 + 1.959963984540054**2))


@pytest.mark.parametrize(("passed", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(passed: int, total: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(passed, total)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_mcnemar_agrees_with_the_exact_binomial_test(cells: tuple[int, int, int, int]) -> None:
    _, gained, lost, _ = cells
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(*pairs(*cells)) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_one_sided_mcnemar_agrees_with_the_exact_binomial_test(cells: tuple[int, int, int, int]) -> None:
    _, gained, lost, _ = cells
    expected = stats.binomtest(lost, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    assert mcnemar_worse(*pairs(*cells)) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_survives_large_counts() -> None:
    assert mcnemar(*pairs(0, 3000, 0, 0)) == 0.0
    assert mcnemar(*pairs(0, 3000, 3000, 0)) == 1.0


def tango(both: int, gained: int, lost: int, neither: int, z: float = 1.959964) -> tuple[float, float]:
    """Invert Tango's (1998) score test by brute force: another method, which must come out close."""
    n = both + gained + lost + neither

    def score(delta: float) -> float:
        a, b = 2 * n, -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        return (gained - lost - n * delta) / math.sqrt(max(1e-12, n * (2 * q + delta * (1 - delta))))

    grid = [d for d in np.linspace(-0.999, 0.999, 4001) if abs(score(float(d))) <= z]
    return float(min(grid)), float(max(grid))


@pytest.mark.parametrize("cells", [(57, 140, 3, 20), (36, 12, 2, 10), (80, 9, 9, 2), (20, 30, 5, 45), (0, 50, 10, 40)])
def test_paired_gain_is_close_to_tangos_interval(cells: tuple[int, int, int, int]) -> None:
    gain = paired_gain(*pairs(*cells))
    low, high = tango(*cells)
    assert gain.value == (cells[1] - cells[2]) / sum(cells)
    assert gain.low == pytest.approx(low, abs=0.02)
    assert gain.high == pytest.approx(high, abs=0.02)


def test_paired_gain_of_newcombes_own_example() -> None:
    # Newcombe (1998), table III: 36, 12, 2, 0 gives 0.0569 to 0.3404 by method 10.
    gain = paired_gain(*pairs(36, 12, 2, 0))
    assert gain == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_paired_gain_turns_its_sign_with_the_roles(cells: tuple[int, int, int, int]) -> None:
    base, adapter = pairs(*cells)
    gain, loss = paired_gain(base, adapter), paired_gain(adapter, base)
    assert gain == pytest.approx((-loss.value, -loss.high, -loss.low), abs=1e-9)
    assert -1 <= gain.low <= gain.value <= gain.high <= 1


def test_paired_gain_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    probabilities = (0.45, 0.25, 0.05, 0.25)
    covered = 0
    for _ in range(1500):
        both, gained, lost, neither = (int(x) for x in rng.multinomial(80, probabilities))
        interval = paired_gain(*pairs(both, gained, lost, neither))
        covered += interval.low <= 0.2 <= interval.high
    assert 0.93 <= covered / 1500 <= 0.98


def test_no_prompts_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        paired_gain([], [])
    with pytest.raises(ValueError, match=r"longer|shorter"):
        mcnemar([True], [])


@pytest.mark.parametrize("tokens", [[1] * 20, list(range(1, 21))])
def test_uniform_model_has_perplexity_of_its_vocabulary(tokens: list[int]) -> None:
    interval = perplexity_interval([n * math.log(512) for n in tokens], tokens)
    assert interval == pytest.approx((512, 512, 512), rel=1e-9)


def test_perplexity_is_weighted_by_tokens() -> None:
    assert perplexity_interval([2.0, 9.0], [1, 9]).value == pytest.approx(math.exp(1.1))


def test_equal_lengths_give_students_interval_of_the_mean() -> None:
    rng = random.Random(3)
    means = [rng.gauss(2.0, 0.5) for _ in range(15)]
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    interval = perplexity_interval([4 * x for x in means], [4] * 15)
    assert interval.low == pytest.approx(math.exp(expected.low), rel=1e-9)
    assert interval.high == pytest.approx(math.exp(expected.high), rel=1e-9)


def test_perplexity_interval_is_clustered_by_example() -> None:
    """Tokens of one example are alike: repeating them must not make the interval narrower."""
    rng = random.Random(5)
    nll = [rng.gauss(2.0, 0.5) for _ in range(30)]
    short = perplexity_interval(nll, [1] * 30)
    long = perplexity_interval([100 * x for x in nll], [100] * 30)
    assert long == pytest.approx(short)


@pytest.mark.parametrize("examples", [20, 200])
def test_perplexity_interval_covers_the_truth(examples: int) -> None:
    rng = np.random.default_rng(examples)
    covered, runs = 0, 1500
    for _ in range(runs):
        tokens = rng.integers(5, 60, examples)
        # One difficulty per example (its tokens are correlated) and noise per token.
        means = rng.gamma(8.0, 0.25, examples)
        nll = tokens * means + rng.normal(0, 1, examples) * np.sqrt(tokens)
        interval = perplexity_interval(nll.tolist(), tokens.tolist())
        covered += interval.low <= math.exp(2.0) <= interval.high
    assert 0.92 <= covered / runs <= 0.97


def by_matrices(sums: list[float], counts: list[int]) -> tuple[float, float]:
    """CR2 variance and Bell and McCaffrey's degrees of freedom from the token-level regression on a constant."""
    total, owner = sum(counts), np.repeat(np.arange(len(counts)), counts)
    y = np.concatenate([np.full(n, x / n) for x, n in zip(sums, counts, strict=True)])
    residual_maker = np.eye(total) - 1 / total
    residuals = residual_maker @ y
    pieces, g = 0.0, np.zeros((total, len(counts)))
    for i in range(len(counts)):
        mine = owner == i
        values, vectors = np.linalg.eigh(residual_maker[np.ix_(mine, mine)])
        weights = np.ones(mine.sum()) @ (vectors / np.sqrt(values)) @ vectors.T / total
        pieces += float(weights @ residuals[mine]) ** 2
        g[:, i] = residual_maker[:, mine] @ weights
    spread = np.linalg.eigvalsh(g.T @ g)
    return math.sqrt(pieces), float(spread.sum() ** 2 / (spread**2).sum())


def test_error_of_unequal_examples_is_cr2_with_its_degrees_of_freedom() -> None:
    sums, counts = [3.0, 8.5, 20.0, 1.0, 4.5], [2, 5, 9, 1, 3]
    value, error, freedom = clustered_ratio(sums, counts)
    assert value == pytest.approx(37 / 20)
    assert (error, freedom) == pytest.approx(by_matrices(sums, counts), rel=1e-9)
    assert freedom < 4


def test_ratio_is_paired() -> None:
    """Examples differ much, the adapter gains the same on each: only a paired interval sees it."""
    rng = random.Random(7)
    tokens = [rng.randint(5, 40) for _ in range(25)]
    base = [n * rng.uniform(0.5, 6.0) for n in tokens]
    adapter = [b - 0.2 * n + rng.gauss(0, 0.01) for b, n in zip(base, tokens, strict=True)]
    ratio = perplexity_ratio_interval(base, adapter, tokens)
    assert ratio.value == pytest.approx(math.exp(-0.2), rel=1e-3)
    assert ratio.value == pytest.approx(
        perplexity_interval(adapter, tokens).value / perplexity_interval(base, tokens).value
    )
    assert ratio.high < 0.83
    assert perplexity_interval(adapter, tokens).high > perplexity_interval(base, tokens).low


@pytest.mark.parametrize(
    ("cells", "margin", "verdict"),
    [
        ((150, 5, 25, 20), 0.0, "fail"),
        ((150, 25, 5, 20), 0.0, "pass"),
        ((150, 10, 15, 25), 0.0, "inconclusive"),
        ((180, 0, 0, 20), 0.0, "inconclusive"),
        ((180, 0, 0, 20), 0.05, "pass"),
        ((18, 0, 0, 2), 0.05, "inconclusive"),
        ((150, 5, 25, 20), 0.05, "fail"),
        ((150, 5, 25, 20), 0.06, "inconclusive"),
        ((120, 5, 55, 20), 0.1, "fail"),
        ((160, 8, 9, 23), 0.1, "pass"),
    ],
)
def test_a_drop_passes_fails_or_cannot_be_told(cells: tuple[int, int, int, int], margin: float, verdict: str) -> None:
    decision = no_worse(*pairs(*cells), margin=margin)
    assert decision.verdict == verdict
    assert decision.drop.value == (cells[2] - cells[1]) / sum(cells)
    assert decision.drop.low <= decision.drop.value <= decision.drop.high
    assert decision.reason


def test_reason_names_the_bound_that_decided() -> None:
    assert "p = 0.00016" in no_worse(*pairs(150, 5, 25, 20)).reason
    assert "at most 0.0" in no_worse(*pairs(160, 8, 9, 23), margin=0.1).reason
    assert "at least 0.1" in no_worse(*pairs(120, 5, 55, 20), margin=0.1).reason
    assert "0.06 lies between" in no_worse(*pairs(150, 5, 25, 20), margin=0.06).reason


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_bounds_on_the_drop_turn_with_the_roles_up_to_the_stricter_lower_one(cells: tuple[int, int, int, int]) -> None:
    drop, rise = drop_bounds(*pairs(*cells)), drop_bounds(*reversed(pairs(*cells)))
    assert -1 <= drop.low <= drop.value <= drop.high <= 1
    assert -rise.high == pytest.approx(drop.low, abs=1e-8) or drop.low < -rise.high


def test_bounds_on_the_drop_come_close_to_the_plain_score_test() -> None:
    """Tango's interval without the correction, at 90%: a little narrower by half a prompt at each end."""
    drop = drop_bounds(*pairs(130, 10, 40, 20))
    low, high = tango(130, 10, 40, 20, z=1.6448536)
    assert drop.low == pytest.approx(-high - 0.5 / 200, abs=1.2e-3)
    assert drop.high == pytest.approx(-low + 0.5 / 200, abs=1.2e-3)


@pytest.mark.parametrize(("rise", "verdict"), [(0.0, "pass"), (0.05, "inconclusive"), (0.2, "fail")])
def test_perplexity_that_rises_too_much_fails(rise: float, verdict: str) -> None:
    rng = random.Random(1)
    tokens = [rng.randint(5, 40) for _ in range(40)]
    base = [2.0 * n for n in tokens]
    adapter = [b + n * (math.log1p(rise) + rng.gauss(0, 0.05)) for b, n in zip(base, tokens, strict=True)]
    decision = perplexity_no_worse(base, adapter, tokens, margin=0.05)
    assert decision.verdict == verdict
    assert decision.drop.value == pytest.approx(rise, abs=0.03)


def test_one_example_decides_nothing() -> None:
    assert perplexity_no_worse([2.0], [9.0], [2], margin=0.1).verdict == "inconclusive"


@pytest.mark.parametrize(("margin", "confidence"), [(-0.1, 0.95), (math.nan, 0.95), (0.1, 1.0), (0.1, 0.5)])
def test_senseless_margins_are_refused(margin: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        no_worse([True], [False], margin, confidence)


def test_equal_models_have_ratio_one() -> None:
    assert perplexity_ratio_interval([3.0, 5.0], [3.0, 5.0], [2, 4]) == (1.0, 1.0, 1.0)


def test_one_example_has_no_interval() -> None:
    assert perplexity_interval([2.0], [2]) == (math.e, 0.0, math.inf)
    assert perplexity_ratio_interval([2.0], [2.0], [2]) == (1.0, 0.0, math.inf)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ModelError, match="example 2 is nan"):
        Scores((1.0, math.nan), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="token"):
        Scores((1.0,), (1, 1), (1,))
    with pytest.raises(ValueError, match="at least one token"):
        perplexity_interval([1.0], [0])
    assert perplexity_interval([2000.0, 2000.0], [1, 1]).value == math.inf
