"""Sampling: the right distribution, the penalties by definition, random numbers that belong to a prompt."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from finetune.serving.sampling import NOT_FINITE, Draws, Sampler, candidates, invert, penalize, probabilities, repeat
from finetune.serving.settings import SamplingSettings


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.75)])
def test_samples_follow_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, 0.0])
    expected = torch.softmax(logits.double() / temperature, dim=0)
    if top_p < 1.0:  # tokens 3, 0 and 4 reach 0.52, 0.72 and 0.83
        expected = torch.where(torch.tensor([True, False, False, True, True, False]), expected, 0.0)
        expected /= expected.sum()
    settings = SamplingSettings(temperature=temperature, top_p=top_p)
    rows = [Draws(settings, 3, [row]) for row in range(1500)]
    counts = Counter(token for _ in range(4) for token in chosen(logits.repeat(1500, 1), rows))
    assert all(expected[token] > 0 for token in counts)
    means = {token: 6000 * share for token, share in enumerate(expected.tolist()) if share > 0}
    chi_square = sum((counts[token] - mean) ** 2 / mean for token, mean in means.items())
    assert chi_square < (20.5 if top_p == 1.0 else 13.8)  # p = 0.001 at 5 or 2 degrees of freedom; draws are fixed


def chosen(logits: Tensor, rows: list[Draws], sampler: Sampler | None = None) -> list[int]:
    return [choice.token for choice in (sampler or Sampler()).choose(logits, rows)]


def kept(logits: list[list[float]], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[list[int]]:
    """The tokens that may be sampled, per row."""
    table = torch.tensor(logits)
    limits = (torch.tensor([value] * len(logits)) for value in (top_k, top_p, min_p))
    weights = candidates(probabilities(table, torch.ones(len(logits), dtype=torch.float64)), *limits)
    return [row.nonzero()[:, 0].tolist() for row in weights]


def test_nucleus_is_the_smallest_set_even_with_ties() -> None:
    assert kept([[0.0] * 4] * 2, top_p=0.5) == [[0, 1]] * 2
    assert kept([[3.0, 9.0, 1.0]], top_p=1e-6) == [[1]]
    cold = probabilities(torch.tensor([[3.0, 80.0, 1.0]]), torch.tensor([1e-300], dtype=torch.float64))
    assert cold.tolist() == [[0.0, 1.0, 0.0]]


def test_top_k_and_min_p_by_definition() -> None:
    logits = [[math.log(p) for p in (0.1, 0.4, 0.2, 0.25, 0.05)]]
    assert kept(logits, top_k=2) == [[1, 3]]
    assert kept(logits, top_k=9) == [[0, 1, 2, 3, 4]]
    assert kept(logits, min_p=0.49) == [[1, 2, 3]]  # 0.2 is half of 0.4
    assert kept(logits, min_p=1.0) == [[1]]
    assert kept(logits, top_k=3, top_p=0.7) == [[1, 3]]  # of 0.85 that are left, 0.65 reach 0.7
    assert kept(logits, top_p=0.7) == [[1, 2, 3]]
    assert kept([[0.0] * 6], top_k=4, top_p=0.5) == [[0, 1]]


def test_what_is_kept_does_not_depend_on_how_much_was_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = (torch.randn(8, 300, generator=torch.Generator().manual_seed(0)) * 2).round().tolist()  # many ties
    for limits in ({"top_p": 0.97}, {"top_k": 77}, {"min_p": 0.01}, {"top_k": 40, "top_p": 0.99, "min_p": 0.001}):
        monkeypatch.setattr("finetune.serving.sampling.LEADING", 300)
        whole = kept(logits, **limits)  # type: ignore[arg-type]
        monkeypatch.setattr("finetune.serving.sampling.LEADING", 16)
        assert kept(logits, **limits) == whole  # type: ignore[arg-type]
        assert max(map(len, whole)) > 16


def test_repetition_penalty_by_definition() -> None:
    logits, seen = torch.tensor([[2.0, -1.0, 3.0, -4.0]]), torch.tensor([[True, True, False, False]])
    assert repeat(logits, seen, 2.0).tolist() == [[1.0, -2.0, 3.0, -4.0]]
    row = Draws(SamplingSettings(repetition_penalty=2.0), 0, [2])  # token 2 is in the prompt
    table, sampler = torch.tensor([[1.4, 1.0, 2.5]]), Sampler()
    assert [chosen(table, [row], sampler)[0] for _ in range(3)] == [0, 2, 2]  # 1.4; then 0.7, 1.0, 1.25


MIXED = (
    SamplingSettings(),
    SamplingSettings(temperature=1.0),
    SamplingSettings(temperature=0.7, top_p=0.8),
    SamplingSettings(temperature=1.5, top_k=5, repetition_penalty=1.3),
    SamplingSettings(temperature=1.0, min_p=0.2, presence_penalty=0.5),
    SamplingSettings(frequency_penalty=1.0),
    SamplingSettings(repetition_penalty=1.7),
)


def test_each_row_draws_as_if_it_were_alone() -> None:
    table = torch.randn(12, len(MIXED), 40, generator=torch.Generator().manual_seed(1)) * 2
    alone = []
    for number, settings in enumerate(MIXED):
        row, sampler = Draws(settings, 5, [number]), Sampler()
        alone.append([chosen(table[step, number : number + 1], [row], sampler)[0] for step in range(12)])
    rows, sampler, found = [Draws(s, 5, [n]) for n, s in enumerate(MIXED)], Sampler(), [list[int]() for _ in MIXED]
    for step in range(12):  # rows change places and are missing in between
        order = [(number + step) % len(MIXED) for number in range(len(MIXED))]
        for part in (order[: step % 6 + 1], order[step % 6 + 1 :]):
            for number, token in zip(part, chosen(table[step, part], [rows[n] for n in part], sampler), strict=True):
                found[number].append(token)
    assert found == alone


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.5, 0.0]])
    biased = SamplingSettings(temperature=2.0, frequency_penalty=2.0)
    rows = [Draws(SamplingSettings(), 0, [1], logprobs=2), Draws(biased, 0, [1]), Draws(biased, 0, [1], logprobs=0)]
    first, second, third = Sampler().choose(logits, rows)
    expected = torch.log_softmax(logits, dim=-1)
    assert first.logprob == pytest.approx(float(expected[0, 0]))
    assert [token for token, _ in first.top] == [0, 1]
    assert [value for _, value in first.top] == pytest.approx(expected[0, :2].tolist())
    assert (second.logprob, second.top) == (None, ())
    assert third.logprob == pytest.approx(float(expected[2, third.token]))
    assert third.top == ()


def test_inversion_never_chooses_weight_zero() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.0]], dtype=torch.float64).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.33, 1 / 3, 0.9, 1.0 - 2.0**-53], dtype=torch.float64)
    assert invert(weights, uniform).tolist() == [1, 1, 3, 3, 3]


def test_penalties_by_definition() -> None:
    logits, counts = torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[3.0, 1.0, 0.0]])
    assert penalize(logits, counts, 0.5, 0.25).tolist() == [[2.0 - 1.5 - 0.25, 1.0 - 0.5 - 0.25, -1.0]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_marked(broken: float, temperature: float) -> None:
    settings = SamplingSettings(temperature=temperature, top_p=0.9, presence_penalty=1.0)
    rows = [Draws(settings, 0, [1], logprobs=1), Draws(settings, 0, [2])]
    assert chosen(torch.tensor([[0.0, 1.0, broken], [0.0, 99.0, 0.0]]), rows) == [NOT_FINITE, 1]
