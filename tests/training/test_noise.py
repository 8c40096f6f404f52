"""NEFTune's noise: its size, when it is there, and what it depends on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.data.batches import pack
from finetune.data.examples import Example
from finetune.model.attention import hidden_states, packed_attention
from finetune.model.base import Base
from finetune.training.noise import ALPHA, EmbeddingNoise
from tests.training.helpers import encoded


def noise_of(base: Base, noise: EmbeddingNoise, rows: list[object], budget: int = 4096) -> list[Tensor]:
    """What is added to the embeddings of each row, in training mode."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    plain = base.model.get_input_embeddings().weight
    for batch in pack(rows, budget):  # type: ignore[arg-type]
        seen: list[Tensor] = []
        with noise.on(base.model), packed_attention(base.model):
            handle = base.model.get_input_embeddings().register_forward_hook(lambda m, i, out, s=seen: s.append(out))
            hidden_states(base.model, batch.input_ids, batch.position_ids, batch.segments)
            handle.remove()
        added = seen[0][0, : batch.input_ids.shape[1]] - plain[batch.input_ids[0]]
        for row, (start, end) in zip(batch.rows, batch.segments, strict=True):
            found[row] = added[start:end].detach()
    return found


@pytest.fixture
def trained(base: Base) -> Base:
    base.model.train()
    return base


def test_the_bound_is_of_each_examples_own_length(trained: Base, examples: tuple[Example, ...]) -> None:
    rows = encoded(trained, examples)
    for row, added in zip(rows, noise_of(trained, EmbeddingNoise(0), rows), strict=True):  # type: ignore[arg-type]
        bound = ALPHA / (len(row.ids) * 64) ** 0.5
        assert float(added.abs().max()) == pytest.approx(bound, rel=0.02)
        assert float(added.square().mean()) == pytest.approx(bound**2 / 3, rel=0.25)


def test_it_follows_from_seed_step_and_example_however_a_step_is_cut(
    trained: Base, examples: tuple[Example, ...]
) -> None:
    rows, noise = encoded(trained, examples)[:8], EmbeddingNoise(0)
    packed, alone = noise_of(trained, noise, rows), noise_of(trained, noise, rows, budget=1)  # type: ignore[arg-type]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(packed, alone, strict=True))
    noise.step = 1
    assert not torch.allclose(noise_of(trained, noise, rows[:1])[0], packed[0], atol=1e-3)  # type: ignore[arg-type]
    assert not torch.allclose(noise_of(trained, EmbeddingNoise(1), rows[:1])[0], packed[0], atol=1e-3)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    noise_of(trained, noise, rows[:1])  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


def test_scoring_and_what_comes_afterwards_know_nothing_of_it(base: Base, examples: tuple[Example, ...]) -> None:
    rows = encoded(base, examples)[:3]
    base.model.eval()
    assert all(bool((added == 0).all()) for added in noise_of(base, EmbeddingNoise(0), rows))  # type: ignore[arg-type]
    base.model.train()
    with EmbeddingNoise(0).on(base.model):
        pass
    ids = torch.tensor([rows[0].ids])
    assert torch.equal(base.model.get_input_embeddings()(ids), base.model.get_input_embeddings().weight[ids])
