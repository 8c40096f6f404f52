"""Sampling: the right distribution, the penalties by definition, random numbers that belong to a prompt."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from finetune.serving.sampling import NOT_FINITE, Sampler, invert, nucleus, penalize
from finetune.serving.settings import SamplingSettings


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.75)])
def test_samples_follow_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, 0.0])
    expected = torch.softmax(logits.double() / temperature, dim=0)
    if top_p < 1.0:  # tokens 3, 0 and 4 reach 0.52, 0.72 and 0.83
        expected = torch.where(torch.tensor([True, False, False, True, True, False]), expected, 0.0)
        expected /= expected.sum()
    sampler = Sampler(SamplingSettings(temperature=temperature, top_p=top_p), [(3, [row]) for row in range(1500)])
    counts = Counter(token for _ in range(4) for token in sampler.choose(logits.repeat(1500, 1)))
    assert all(expected[token] > 0 for token in counts)
    means = {token: 6000 * share for token, share in enumerate(expected.tolist()) if share > 0}
    chi_square = sum((counts[token] - mean) ** 2 / mean for token, mean in means.items())
    assert chi_square < (20.5 if top_p == 1.0 else 13.8)  # p = 0.001 at 5 or 2 degrees of freedom; draws are fixed


def test_nucleus_is_the_smallest_set_even_with_ties() -> None:
    assert nucleus(torch.zeros(2, 4), 1.0, 0.5).tolist() == [[0.25, 0.25, 0.0, 0.0]] * 2
    assert nucleus(torch.tensor([[3.0, 9.0, 1.0]]), 1.0, 1e-6).nonzero().tolist() == [[0, 1]]
    assert nucleus(torch.tensor([[3.0, 80.0, 1.0]]), 1e-300, 1.0).tolist() == [[0.0, 1.0, 0.0]]


def test_inversion_never_chooses_weight_zero() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.0]], dtype=torch.float64).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.33, 1 / 3, 0.9, 1.0 - 2.0**-53], dtype=torch.float64)
    assert invert(weights, uniform).tolist() == [1, 1, 3, 3, 3]


def test_penalties_by_definition() -> None:
    logits, counts = torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[3.0, 1.0, 0.0]])
    assert penalize(logits, counts, 0.5, 0.25).tolist() == [[2.0 - 1.5 - 0.25, 1.0 - 0.5 - 0.25, -1.0]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_keep_their_numbers_and_counts(temperature: float) -> None:
    settings = SamplingSettings(temperature=temperature, frequency_penalty=1.0, presence_penalty=0.5)
    logits = torch.tensor([[2.0, 1.9, 1.8, 0.0], [0.0, 0.1, 0.2, 0.3], [1.0, 2.0, 1.5, 0.0]])
    together, alone = Sampler(settings, [(7, [1]), (7, [2, 3]), (7, [4])]), Sampler(settings, [(7, [4])])
    expected = [alone.choose(logits[2:]) for _ in range(8)]
    chosen = [together.choose(logits)[2:] for _ in range(2)]
    together.keep([2, 0])
    chosen += [together.choose(logits[[2, 0]])[:1] for _ in range(3)]
    together.keep([0])
    chosen += [together.choose(logits[2:]) for _ in range(3)]
    assert chosen == expected
    assert len({token for (token,) in chosen}) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_marked(broken: float, temperature: float) -> None:
    sampler = Sampler(SamplingSettings(temperature=temperature, top_p=0.9, presence_penalty=1.0), [(0, [1]), (0, [2])])
    assert sampler.choose(torch.tensor([[0.0, 1.0, broken], [0.0, 99.0, 0.0]])) == [NOT_FINITE, 1]
