"""What must be equal to what, however a run is cut, stopped, saved or swapped."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from finetune.data.batches import TrainingRows, pack, trained_tokens
from finetune.data.encoding import Encoded
from finetune.data.examples import Example
from finetune.data.messages import Message
from finetune.errors import Interrupted
from finetune.model.attention import hidden_states, packed_attention
from finetune.model.base import Base, assert_trainable_through, linear4bit_layers, weights_sha256
from finetune.model.lora import attach, load_adapter
from finetune.recipe import AdapterSection, TrainSection
from finetune.training.budget import MemoryPlan
from finetune.training.loss import output_head, trained_nll
from finetune.training.run import TrainingJob
from finetune.training.scoring import score_rows
from finetune.training.telemetry import Event, StepEvent
from tests.conftest import MakeBase
from tests.training.helpers import PLAN, SECTION, encoded, make_job, run, weights

ADAPTER = AdapterSection(r=4, alpha=8.0)


def gradients(base: Base, model: PeftModel, rows: list[Encoded], budget: int) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    model.train()
    head, count, loss = output_head(base.model), trained_tokens(rows), 0.0
    with packed_attention(base.model):
        for batch in pack(rows, budget):
            part = trained_nll(base.model, head, batch, count)
            part.backward()
            loss += part.item()
    return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def stir(model: PeftModel, seed: int = 1) -> None:
    """Give every LoRA matrix content: a fresh B is zero, and hides what A does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


IDS = torch.tensor([[1, 30, 41, 77, 9, 200, 13, 55]])


@pytest.mark.parametrize("budget", [1, 64, 200, 100_000])
def test_packed_is_unpacked_in_loss_and_gradient(base: Base, examples: tuple[Example, ...], budget: int) -> None:
    rows = encoded(base, examples)
    model = attach(base, ADAPTER, seed=0)
    stir(model)
    alone_loss, alone = gradients(base, model, rows, budget=1)
    loss, packed = gradients(base, model, rows, budget)
    assert loss == pytest.approx(alone_loss, rel=1e-6)
    for one, other in zip(alone, packed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_loss_is_the_token_weighted_mean_of_transformers_own_logits(
    base: Base, examples: tuple[Example, ...]
) -> None:
    """An oracle without packing, head tricks or our attention: full logits, one example at a time."""
    rows = encoded(base, examples)
    total, count = 0.0, 0
    for row in rows:
        out = logits(base.model, torch.tensor([row.ids]))[0].double().log_softmax(-1)
        for position in range(1, len(row.ids)):
            if row.loss_mask[position]:
                total -= out[position - 1, row.ids[position]].item()
                count += 1
    model = attach(base, ADAPTER, seed=0)
    assert count == trained_tokens(rows)
    assert gradients(base, model, rows, 300)[0] == pytest.approx(total / count, rel=1e-6)


def test_a_leak_between_packed_examples_would_be_seen(base: Base) -> None:
    """The first example of a row must not move the second; without segments it does."""
    with packed_attention(base.model), torch.no_grad():
        positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
        apart = hidden_states(base.model, IDS, positions, [(0, 4), (4, 8)])[:, 4:]
        together = hidden_states(base.model, IDS, positions, [(0, 8)])[:, 4:]
        alone = hidden_states(base.model, IDS[:, 4:], positions[:, :4], [(0, 4)])
    torch.testing.assert_close(apart, alone, rtol=1e-5, atol=1e-5)
    assert (together - alone).abs().max() > 0.05


def test_a_fresh_adapter_is_the_base_bit_for_bit(base: Base, plain_base: Base) -> None:
    for each in (base, plain_base):
        before = logits(each.model, IDS)
        model = attach(each, ADAPTER, seed=0)
        assert torch.equal(logits(model, IDS), before)


@pytest.mark.parametrize("budget", [32, 100_000])
def test_how_a_step_is_cut_does_not_change_the_adapter(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path, budget: int
) -> None:
    """8 x 1 = 1 x 8: many micro-batches or one, the same weights after two epochs."""
    results = []
    for plan in (PLAN, MemoryPlan(budget)):
        base = make_base()
        job = replace(make_job(base, encoded(base, examples), tmp_path / "none"), plan=plan)
        run(job)
        results.append(weights(job.model))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=0, atol=1e-4)


def test_the_base_is_the_same_before_and_after(base: Base, examples: tuple[Example, ...], tmp_path: Path) -> None:
    before = weights_sha256(base.model)
    rows = encoded(base, examples)
    job = make_job(base, rows, tmp_path / "none")
    assert weights_sha256(base.model) == before
    run(job)
    score_rows(base.model, rows, 256, isolate=True)
    assert weights_sha256(base.model) == before


def test_resumed_is_uninterrupted_bit_for_bit(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    """Also with dropout, whose random state is part of the checkpoint."""
    adapter = AdapterSection(r=4, alpha=8.0, dropout=0.1)
    base = make_base()
    whole = make_job(base, encoded(base, examples), tmp_path / "whole", SECTION, adapter, 3)
    whole_log = run(whole).log

    base = make_base()
    first = make_job(base, encoded(base, examples), tmp_path / "parts", SECTION, adapter, 3)
    with pytest.raises(Interrupted) as stopped:
        _run_until(first, step=4)
    assert stopped.value.exit_code == 143
    torch.manual_seed(999)  # another process starts with another random state

    base = make_base()
    second = make_job(base, encoded(base, examples), tmp_path / "parts", SECTION, adapter, 3)
    second_log = run(second).log
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, weights(second.model)[name]), name
    assert [e["loss"] for e in second_log] == [e["loss"] for e in whole_log]


def _run_until(job: TrainingJob, step: int) -> None:
    from accelerate import Accelerator

    from finetune.training.loop import train

    def stop_there(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == step:
            signal.raise_signal(signal.SIGTERM)

    train(job, Accelerator(cpu=True), stop_there)


def test_same_seed_same_adapter_other_seed_another(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    found = []
    for _ in range(2):
        base = make_base()
        job = make_job(base, encoded(base, examples), tmp_path / "none")
        run(job)
        found.append(weights(job.model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    base = make_base()
    other = weights(attach(base, ADAPTER, seed=1))
    fresh = weights(attach(make_base(), ADAPTER, seed=0))
    assert any(not torch.equal(other[name], fresh[name]) for name in fresh)


def test_evaluating_in_between_does_not_change_training(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    """train, eval, train = train, train. bitsandbytes' in-place re-packing would break it."""
    losses = []
    for evaluate in (False, True):
        base = make_base()
        rows = encoded(base, examples)
        job = make_job(base, rows, tmp_path / "none")
        if evaluate:
            base.model.eval()
            with torch.no_grad(), job.model.disable_adapter():  # through bitsandbytes' own forward
                base.model(input_ids=IDS)
            score_rows(base.model, rows, 256, isolate=True)
        losses.append([e["loss"] for e in run(job).log])
    assert losses[0] == losses[1]


def test_the_guard_against_repacking_is_on_and_its_absence_is_noticed(base: Base) -> None:
    layers = list(linear4bit_layers(base.model))
    assert len(layers) == 14
    assert all(isinstance(layer, bnb.nn.Linear4bit) and not layer.support_avx512bf16_for_cpu for layer in layers)
    assert_trainable_through(base.model)
    layers[3].support_avx512bf16_for_cpu = True
    with pytest.raises(Exception, match="re-packed"):
        assert_trainable_through(base.model)


def test_a_fixture_is_memorised(base: Base, tmp_path: Path) -> None:
    pairs = [("What is it?", "One large pizza."), ("How much?", "5 dollars."), ("Hello", "I can help.")]
    rows = encoded(base, [Example((Message("user", q), Message("assistant", a)), q) for q, a in pairs])
    section = TrainSection(epochs=100.0, batch_size=3, learning_rate=5e-3)
    result = run(make_job(base, rows, tmp_path / "none", section, AdapterSection(r=8, alpha=16.0)))
    assert result.log[-1]["loss"] < 0.1


def test_saved_then_loaded_is_what_was_in_memory_here_and_in_peft(make_base: MakeBase, tmp_path: Path) -> None:
    model = attach(make_base(), ADAPTER, seed=0)
    stir(model)
    expected = logits(model.eval(), IDS)
    model.save_pretrained(str(tmp_path / "a"), save_embedding_layers=False)
    ours = load_adapter(make_base(), tmp_path / "a")
    assert torch.equal(logits(ours.eval(), IDS), expected)
    theirs = PeftModel.from_pretrained(make_base().model, str(tmp_path / "a"))
    torch.testing.assert_close(logits(theirs.eval(), IDS), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_made_by_peft_loads_here_with_equal_logits(make_base: MakeBase, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=True)
    theirs = get_peft_model(make_base().model, config)
    assert isinstance(theirs, PeftModel)
    stir(theirs)
    theirs.save_pretrained(str(tmp_path / "b"), save_embedding_layers=False)
    ours = load_adapter(make_base(), tmp_path / "b")
    torch.testing.assert_close(logits(ours.eval(), IDS), logits(theirs.eval(), IDS), rtol=1e-4, atol=1e-4)


def test_merged_is_active_in_fp32(plain_base: Base) -> None:
    model = attach(plain_base, ADAPTER, seed=0)
    stir(model)
    active = logits(model.eval(), IDS)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, IDS), active, rtol=1e-4, atol=1e-4)


def test_row_order_is_a_function_of_seed_and_epoch(base: Base, examples: tuple[Example, ...]) -> None:
    rows = TrainingRows(encoded(base, examples))
    random.seed(1)
    first = list(rows.epoch(0, 0))
    random.seed(2)
    assert list(rows.epoch(0, 0)) == first
    assert list(rows.epoch(1, 0)) != first
