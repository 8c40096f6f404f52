"""Do the intervals hold what they promise? Simulated worlds whose truth is known.

The same helpers that accept our formulas must reject well-known wrong ones: `test_..._rejected`.
docs/statistics.md lists the numbers; `pytest -rP` prints them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation.bootstrap import paired_bootstrap
from finetune.evaluation.repeats import flaky_prompts, pass_all, pass_any, repeated_rate
from finetune.evaluation.statistics import (
    Interval,
    paired_gain,
    perplexity_ratio_interval,
    wilson,
)
from tests.evaluation.simulation import (
    SCORES,
    Array,
    assert_catches,
    assert_covers,
    assert_unbiased,
    by_cells,
    covers,
    worlds,
)


@pytest.fixture(params=[1, pytest.param(5, marks=pytest.mark.slow)], ids=["short", "long"])
def effort(request: pytest.FixtureRequest) -> int:
    """How many times as many worlds as the ordinary suite simulates."""
    return int(request.param)


# One pass rate


def wald(passed: int, total: int) -> Interval:
    p = passed / total
    half = 1.96 * math.sqrt(p * (1 - p) / total)
    return Interval(p, p - half, p + half)


def rates(interval: Callable[[int, int], Interval], prompts: int, runs: int) -> list[bool]:
    """Coverage averaged over pass rates, all equally likely, as in Brown, Cai and DasGupta (2001)."""
    rng = np.random.default_rng(prompts)
    truth = rng.random(runs)
    found = [interval(passed, prompts) for passed in range(prompts + 1)]
    return [covers(found[x], p) for x, p in zip(rng.binomial(prompts, truth), truth, strict=True)]


@pytest.mark.parametrize("prompts", [20, 50, 100, 200])
def test_wilson_covers_on_average_over_all_rates(prompts: int, effort: int) -> None:
    assert_covers(f"wilson, {prompts} prompts", rates(wilson, prompts, 20_000 * effort))


def test_wald_is_rejected() -> None:
    with pytest.raises(AssertionError, match="covers"):
        assert_covers("wald, 20 prompts", rates(wald, 20, 20_000))


# Pairs of pass and fail

MIXES = {"any": (1.0, 1.0, 1.0, 1.0), "alike": (4.0, 1.0, 1.0, 2.0)}  # Dirichlet weights of the four cells


def gains(
    interval: Callable[[list[bool], list[bool]], Interval], prompts: int, mix: tuple[float, ...], runs: int
) -> list[bool]:
    """Coverage averaged over worlds, as Newcombe (1998) measured it: each run has its own four chances."""
    rng = np.random.default_rng(prompts)
    chances = rng.dirichlet(mix, runs)
    found = map(by_cells(interval), worlds(rng, prompts, chances, runs))
    return [covers(x, c[1] - c[2]) for x, c in zip(found, chances, strict=True)]  # type: ignore[arg-type]


def unpaired_gain(base: list[bool], adapter: list[bool]) -> Interval:
    n, p, q = len(base), sum(base) / len(base), sum(adapter) / len(base)
    half = 1.96 * math.sqrt((p * (1 - p) + q * (1 - q)) / n)
    return Interval(q - p, q - p - half, q - p + half)


@pytest.mark.parametrize(
    ("prompts", "mix"), [(n, mix) for mix in MIXES for n in (20, 50, 100, 200) if (n, mix) != (20, "alike")]
)
def test_paired_gain_covers_on_average_over_worlds(prompts: int, mix: str, effort: int) -> None:
    name = f"paired gain, {prompts} prompts, {mix}"
    assert_covers(name, gains(paired_gain, prompts, MIXES[mix], 5_000 * effort))


def test_paired_gain_errs_on_the_safe_side_with_a_handful_of_differences(effort: int) -> None:
    """20 prompts of which 5 differ: so few whole numbers that no interval hits 95%, Newcombe's is too wide."""
    assert_covers("paired gain, 20 prompts, alike", gains(paired_gain, 20, MIXES["alike"], 5_000 * effort), high=0.98)


def test_unpaired_gain_is_rejected() -> None:
    with pytest.raises(AssertionError, match="covers"):
        assert_covers("unpaired gain", gains(unpaired_gain, 200, MIXES["alike"], 5_000))


# Perplexity


def perplexities(
    interval: Callable[..., tuple[float, float, float]], examples: int, alike: float, ragged: float, runs: int
) -> list[bool]:
    """Differences of NLL with this intra-class correlation; lengths lognormal, the median 30 tokens."""
    rng, shape = np.random.default_rng([examples, int(100 * alike), int(100 * ragged)]), (runs, examples)
    tokens = np.clip(np.rint(30 * np.exp(ragged * rng.normal(size=shape))), 1, 600)
    own = math.sqrt(alike) * rng.normal(size=shape)
    noise = math.sqrt(1 - alike) * rng.normal(size=shape) / np.sqrt(tokens)
    base = tokens * rng.gamma(8.0, 0.25, shape)
    adapter = base + tokens * (0.1 + 0.3 * (own + noise))
    worlds = zip(base.tolist(), adapter.tolist(), tokens.astype(int).tolist(), strict=True)
    return [covers(interval(*world), math.exp(0.1)) for world in worlds]


def token_level(base: list[float], adapter: list[float], tokens: list[int]) -> tuple[float, float, float]:
    """As if the tokens of an example were independent of each other, each with variance 0.09."""
    total = sum(tokens)
    value = (sum(adapter) - sum(base)) / total
    half = 1.96 * 0.3 / math.sqrt(total)
    return math.exp(value), math.exp(value - half), math.exp(value + half)


@pytest.mark.parametrize("ragged", [0.0, 0.8])
@pytest.mark.parametrize("alike", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("examples", "runs"), [(20, 12_000), (50, 4000), (200, 1500)])
def test_perplexity_ratio_covers_when_tokens_are_alike(
    examples: int, runs: int, alike: float, ragged: float, effort: int
) -> None:
    name = f"perplexity ratio, {examples} examples, ICC {alike}, lengths {ragged}"
    assert_covers(name, perplexities(perplexity_ratio_interval, examples, alike, ragged, runs * effort))


def cochran(base: list[float], adapter: list[float], tokens: list[int]) -> tuple[float, float, float]:
    """The linearised interval without regard to unequal lengths."""
    n, total = len(tokens), sum(tokens)
    gains = np.subtract(adapter, base)
    value = gains.sum() / total
    error = math.sqrt(n / (n - 1) * np.sum((gains - value * np.array(tokens)) ** 2)) / total
    half = stats.t.ppf(0.975, n - 1) * error
    return math.exp(value), math.exp(value - half), math.exp(value + half)


def test_an_interval_for_equal_lengths_is_rejected_where_they_are_not() -> None:
    with pytest.raises(AssertionError, match="covers"):
        assert_covers("cochran", perplexities(cochran, 20, 0.5, 0.8, 3000))


def test_independent_tokens_are_rejected() -> None:
    with pytest.raises(AssertionError, match="covers"):
        assert_covers("token level", perplexities(token_level, 50, 0.05, 0.5, 1000))
    assert_covers("token level, truly independent", perplexities(token_level, 50, 0.0, 0.5, 3000))


# Graded scores


def bootstraps(interval: Callable[[Array, Array, int], Interval], kind: str, prompts: int, runs: int) -> list[bool]:
    rng, hits = np.random.default_rng(prompts), []
    for seed in range(runs):
        base, adapter, truth = SCORES[kind](rng, prompts)
        hits.append(covers(interval(base, adapter, seed), truth))
    return hits


def paired(base: Array, adapter: Array, seed: int) -> Interval:
    return paired_bootstrap(base, adapter, seed, resamples=2000 if len(base) < 100 else 1000)  # type: ignore[arg-type]


def unpaired(base: Array, adapter: Array, seed: int) -> Interval:
    rng, n = np.random.default_rng(seed), len(base)
    means = adapter[rng.integers(0, n, (1000, n))].mean(1) - base[rng.integers(0, n, (1000, n))].mean(1)
    return Interval(0.0, *np.quantile(means, [0.025, 0.975]))


def plain_percentiles(base: Array, adapter: Array, seed: int) -> Interval:
    rng, n = np.random.default_rng(seed), len(base)
    return Interval(0.0, *np.quantile((adapter - base)[rng.integers(0, n, (1000, n))].mean(1), [0.025, 0.975]))


@pytest.mark.parametrize(
    ("prompts", "kind", "runs"),
    [(20, "independent", 2000), (20, "graded", 2000), (20, "difficult", 3000), (50, "difficult", 1000)]
    + [(200, "independent", 1500)]
    + [pytest.param(n, kind, 10_000, marks=pytest.mark.slow) for n in (20, 50, 200) for kind in SCORES],
)
def test_paired_bootstrap_covers(prompts: int, kind: str, runs: int) -> None:
    assert_covers(f"paired bootstrap, {prompts} prompts, {kind}", bootstraps(paired, kind, prompts, runs))


@pytest.mark.parametrize(("wrong", "kind"), [(unpaired, "difficult"), (plain_percentiles, "independent")])
def test_bootstraps_of_other_kinds_are_rejected(wrong: Callable[[Array, Array, int], Interval], kind: str) -> None:
    with pytest.raises(AssertionError, match="covers"):
        assert_covers(wrong.__name__, bootstraps(wrong, kind, 20, 2000))


# Repeats


def repeats(interval: Callable[[list[list[bool]]], Interval], prompts: int, runs: int, a: float = 1.4) -> list[bool]:
    """Prompts have pass rates of their own (beta, mean 0.7) and 3 to 8 answers each."""
    rng = np.random.default_rng(prompts)
    hits = []
    for _ in range(runs):
        rates = rng.beta(a, a * 3 / 7, prompts)
        outcomes = [[*(rng.random(k) < p)] for k, p in zip(rng.integers(3, 9, prompts), rates, strict=True)]
        hits.append(covers(interval(outcomes), 0.7))
    return hits


def pooled(outcomes: list[list[bool]]) -> Interval:
    return wilson(sum(map(sum, outcomes)), sum(map(len, outcomes)))


@pytest.mark.parametrize("spread", [0.7, 1.4, 70.0])
@pytest.mark.parametrize("prompts", [20, 50, 200])
def test_repeated_rate_covers(prompts: int, spread: float, effort: int) -> None:
    runs = (600 if prompts == 200 else 2000) * effort
    assert_covers(f"repeated rate, {prompts} prompts, beta {spread}", repeats(repeated_rate, prompts, runs, spread))


def test_pooling_all_answers_is_rejected() -> None:
    with pytest.raises(AssertionError, match="covers"):
        assert_covers("pooled answers", repeats(pooled, 50, 500))


def test_pass_any_and_pass_all_are_unbiased() -> None:
    assert_unbiased("pass@k", pass_any, lambda p, k: 1 - (1 - p) ** k)
    assert_unbiased("pass^k", pass_all, lambda p, k: p**k)


def test_plugged_in_pass_rates_are_rejected() -> None:
    with pytest.raises(AssertionError, match="instead of"):
        assert_unbiased("plug-in pass@k", lambda c, n, k: 1 - (1 - c / n) ** k, lambda p, k: 1 - (1 - p) ** k)
    with pytest.raises(AssertionError, match="instead of"):
        assert_unbiased("plug-in pass^k", lambda c, n, k: (c / n) ** k, lambda p, k: p**k)


def test_fair_coins_are_flaky_and_steady_prompts_never() -> None:
    rng = np.random.default_rng(0)
    coins = (rng.random((20_000, 8)) < 0.5).tolist()
    steady = [[bool(i % 2)] * 8 for i in range(20_000)]
    found = flaky_prompts(coins + steady)
    assert_catches("flaky at 8 repeats", [True] * len(found) + [False] * (20_000 - len(found)), low=0.99)
    assert all(flaky.prompt < 20_000 for flaky in found)
