"""Computing layers again: the same gradients, less memory, and the backward still stops where it can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.data.examples import Example
from finetune.model.base import Base
from finetune.model.lora import attach
from finetune.model.recompute import recompute_layers
from finetune.recipe import AdapterSection
from finetune.training.budget import MemoryPlan
from tests.conftest import MakeBase
from tests.training.helpers import encoded, make_job, run, weights


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("every", [1, 2])
def test_training_is_the_same_bit_for_bit(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path, every: int, dropout: float
) -> None:
    found: list[dict[str, Tensor]] = []
    for plan in (MemoryPlan(200), MemoryPlan(200, recompute=every)):
        base = make_base()
        adapter = AdapterSection(r=4, alpha=8.0, dropout=dropout)
        job = replace(make_job(base, encoded(base, examples), tmp_path / "none", adapter=adapter), plan=plan)
        run(job)
        found.append(weights(job.model))
        assert recompute_layers(base.model, 0) == 0
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_every_kth_layer_runs_twice_and_none_below_the_adapter_or_without_gradients(base: Base) -> None:
    model = attach(base, AdapterSection(r=4, target_modules=("layers.1",)), seed=0)
    calls = [0, 0]
    layers = list(base.model.model.layers)
    for number, layer in enumerate(layers):
        layer.input_layernorm.register_forward_hook(lambda *_, n=number: calls.__setitem__(n, calls[n] + 1))
    before = [layer.__dict__.get("forward") for layer in layers]
    ids = torch.tensor([[1, 30, 41, 77]])
    counts = {}
    for every in (0, 1, 2):
        calls[:] = [0, 0]
        assert recompute_layers(base.model, every) == {0: 0, 1: 2, 2: 1}[every]
        model.train()
        model(input_ids=ids, use_cache=False).logits.sum().backward()
        counts[every] = tuple(calls)
    # Layer 0 is frozen: no gradient reaches it, so nothing asks for it again.
    assert counts == {0: (1, 1), 1: (1, 2), 2: (1, 1)}
    recompute_layers(base.model, 1)
    calls[:] = [0, 0]
    model.eval()
    model(input_ids=ids, use_cache=False).logits.sum().backward()
    assert calls == [1, 1]
    recompute_layers(base.model, 0)
    assert [layer.__dict__.get("forward") for layer in layers] == before
