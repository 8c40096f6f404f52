"""Simulated worlds whose truth is known, and what is asked of intervals, tests and estimators in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Cells = tuple[int, int, int, int]  # both, gained, lost, neither


def assert_covers(name: str, hits: Iterable[bool], high: float = 0.965) -> None:
    share = float(np.mean([*hits]))
    print(f"{name}: covers {share:.2%}")
    assert 0.935 <= share <= high, f"{name} covers {share:.2%}"


def assert_rarely(name: str, alarms: Iterable[bool]) -> None:
    share = float(np.mean([*alarms]))
    print(f"{name}: false alarms {share:.2%}")
    assert share <= 0.055, f"{name}: {share:.2%} false alarms"


def assert_catches(name: str, caught: Iterable[bool], low: float = 0.9, high: float = 1.0) -> None:
    share = float(np.mean([*caught]))
    print(f"{name}: caught {share:.2%}")
    assert low <= share <= high, f"{name} caught {share:.2%}"


def assert_unbiased(
    name: str, estimator: Callable[[int, int, int], float], truth: Callable[[float, int], float]
) -> None:
    """The expectation over the binomial number of passes is the truth, for every p, n and k."""
    for repeats in (1, 2, 5, 8):
        for k in range(1, repeats + 1):
            for p in (0.0, 0.1, 0.5, 0.77, 1.0):
                chances = stats.binom.pmf(np.arange(repeats + 1), repeats, p)
                mean = sum(chances[c] * estimator(c, repeats, k) for c in range(repeats + 1))
                assert abs(mean - truth(p, k)) < 1e-12, f"{name} is {mean} instead of {truth(p, k)}"


def covers(interval: tuple[float, float, float], truth: float) -> bool:
    return interval[1] <= truth <= interval[2]


def answers(cells: Cells) -> tuple[list[bool], list[bool]]:
    both, gained, lost, neither = cells
    base = [True] * both + [False] * gained + [True] * lost + [False] * neither
    adapter = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return base, adapter


def worlds(rng: np.random.Generator, prompts: int, chances: Array | tuple[float, ...], runs: int) -> list[Cells]:
    drawn = rng.multinomial(prompts, chances, size=None if np.ndim(chances) == 2 else runs)
    return [tuple(row) for row in drawn.tolist()]


def by_cells(measure: Callable[[list[bool], list[bool]], object]) -> Callable[[Cells], object]:
    """The same counts give the same answer: ask once."""
    return cache(lambda cells: measure(*answers(cells)))


# Graded scores: how base and adapter come about, and the true gain

Draw = Callable[[np.random.Generator, int], tuple[Array, Array, float]]


def independent(rng: np.random.Generator, n: int) -> tuple[Array, Array, float]:
    return rng.beta(2, 2, n), rng.beta(4, 2, n), 2 / 3 - 1 / 2


def graded(rng: np.random.Generator, n: int) -> tuple[Array, Array, float]:
    """Marks in quarters; in each world another share of prompts gets a quarter more or less."""
    base, (worse, same, better) = rng.integers(1, 4, n) / 4, rng.dirichlet([3, 5, 2])
    return base, base + rng.choice([-0.25, 0.0, 0.25], n, p=[worse, same, better]), (better - worse) / 4


def difficult(rng: np.random.Generator, n: int) -> tuple[Array, Array, float]:
    """Prompts differ much in difficulty, and both models suffer from it."""
    easy = rng.beta(2, 1, n)
    return rng.beta(8 * easy + 0.2, 8 * (1 - easy) + 0.2), rng.beta(8 * easy + 0.2, 8 * (1 - easy) + 0.2), 0.0


SCORES: dict[str, Draw] = {"independent": independent, "graded": graded, "difficult": difficult}
