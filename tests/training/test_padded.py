"""Models whose layers carry state along a row: padded rows of like length, and what one example per row gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import BambaConfig, Lfm2Config, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from finetune.data.batches import TrainingRows, pack
from finetune.data.encoding import Encoded
from finetune.data.examples import Example
from finetune.model.base import Base, load_base
from finetune.model.lora import attach, trained_parameters
from finetune.recipe import AdapterSection, BaseSection, TrainSection
from finetune.training.accumulate import Accumulator
from finetune.training.budget import MemoryPlan
from finetune.training.loss import trained_rows
from finetune.training.scoring import score_rows
from tests.training.helpers import encoded, make_job, run, weights

SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
ALONE, TOGETHER = MemoryPlan(1), MemoryPlan(400)
SECTION = TrainSection(epochs=1.0, batch_size=8, learning_rate=5e-3)
MakeHybrid = Callable[[], Base]


def config_of(kind: str, vocabulary: int) -> PretrainedConfig:
    """A convolution along the row, or a recurrent state, beside a layer of attention."""
    if kind == "convolution":
        return Lfm2Config(
            vocab_size=vocabulary, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False, **SHAPE
        )
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
    return BambaConfig(vocab_size=vocabulary, attn_layer_indices=[1], **mamba, **SHAPE)


def maker(kind: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> MakeHybrid:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(kind, len(tokenizer)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return lambda: load_base(BaseSection(model=str(folder), dtype="float32"), torch.device("cpu"))


@pytest.fixture(params=["convolution", "recurrent"])
def hybrid(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> MakeHybrid:
    return maker(request.param, tmp_path / "hybrid", tokenizer)


@pytest.fixture
def convolution(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> MakeHybrid:
    return maker("convolution", tmp_path / "hybrid", tokenizer)


def first_step(base: Base, examples: tuple[Example, ...], plan: MemoryPlan) -> tuple[float, Tensor, int]:
    """Loss and gradients of one optimizer step, and its micro-batches."""
    rows = encoded(base, examples)
    model = attach(base, AdapterSection(r=4, alpha=8.0), 0, TrainingRows(rows))
    named = trained_parameters(model)
    with torch.no_grad():  # so that A has a gradient, too
        for number, parameter in enumerate(named.values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.05)
    accumulator = Accumulator(base, list(named.values()), plan, Accelerator(cpu=True), lambda event: None)
    model.train()
    step = accumulator.collate(rows)
    (loss,) = accumulator.add([step])
    gradients = [p.grad.flatten() for p in named.values() if p.grad is not None]
    assert len(gradients) == len(named)
    return float(loss), torch.cat(gradients), len(step.micros)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_a_step_in_padded_rows_is_that_of_one_example_per_row(
    hybrid: MakeHybrid, examples: tuple[Example, ...]
) -> None:
    base = hybrid()
    assert not base.packs
    loss, gradients, passes = first_step(base, examples, TOGETHER)
    expected, exact, each = first_step(hybrid(), examples, ALONE)
    assert each == len(examples)
    assert passes < 0.4 * each
    assert loss == pytest.approx(expected, rel=1e-6)
    assert apart(gradients, exact) < 1e-5


def test_training_in_padded_rows_gives_the_same_adapter(
    hybrid: MakeHybrid, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    found, losses = [], []
    for plan in (TOGETHER, replace(TOGETHER, recompute=1), ALONE):
        base = hybrid()
        rows = encoded(base, examples)
        job = replace(make_job(base, rows, tmp_path / "none", SECTION), plan=plan, heldout=rows[:5])
        losses.append([value for entry in run(job).log for key, value in entry.items() if "loss" in key])
        found.append(torch.cat([tensor.flatten() for tensor in weights(job.model).values()]))
    assert len(losses[0]) == 5  # four steps and the held-out rows
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert apart(found[0], found[2]) < 1e-5
    assert torch.equal(found[0], found[1])


def test_what_stands_behind_an_example_changes_nothing_of_it(hybrid: MakeHybrid, examples: tuple[Example, ...]) -> None:
    base = hybrid()
    rows = encoded(base, examples)
    for batch in pack(rows, 400, isolate=False):
        ids = batch.input_ids.clone()
        inside = torch.cat([torch.arange(start, end) for start, end in batch.segments])
        padding = torch.ones(ids.numel(), dtype=torch.bool)
        padding[inside] = False
        ids.view(-1)[padding] = torch.arange(int(padding.sum())) % 300
        with torch.no_grad():
            plain, _ = trained_rows(base.model, batch)
            other, _ = trained_rows(base.model, replace(batch, input_ids=ids))
        assert torch.equal(plain, other)


def test_scores_are_those_of_each_row_alone(hybrid: MakeHybrid, examples: tuple[Example, ...]) -> None:
    base = hybrid()
    rows = encoded(base, examples)
    together, alone = (score_rows(base.model, rows, budget, isolate=False) for budget in (400, 1))
    assert [score.tokens for score in together] == [sum(row.loss_mask[1:]) for row in rows]
    assert [score.nll for score in together] == pytest.approx([score.nll for score in alone], rel=1e-5)


def test_noise_is_that_of_each_examples_own_length(
    convolution: MakeHybrid, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    found = []
    for plan in (TOGETHER, ALONE):
        base = convolution()
        adapter = AdapterSection(r=4, alpha=8.0, method="neftune")
        job = replace(make_job(base, encoded(base, examples)[:16], tmp_path / "none", SECTION, adapter), plan=plan)
        run(job)
        found.append(torch.cat([tensor.flatten() for tensor in weights(job.model).values()]))
    assert apart(found[0], found[1]) < 1e-5


def test_eva_looks_at_examples_and_not_at_padding(convolution: MakeHybrid, examples: tuple[Example, ...]) -> None:
    """What the first linear reads is each token's embedding, however the rows are laid out."""
    found = []
    for packs in (False, True):
        base = replace(convolution(), packs=packs)
        ids = [token for row in encoded(base, examples) for token in row.ids]
        rows = [Encoded(ids[100 * n : 100 * n + 70 - 5 * n], [1] * (70 - 5 * n), f"rows:{n}", 0) for n in range(5)]
        assert [len(batch.rows) for batch in pack(rows, 2048, isolate=packs)] == [5]
        model = attach(base, AdapterSection(r=4, alpha=8.0, method="eva"), 0, TrainingRows(rows))
        found.append(model.get_submodule("base_model.model.model.layers.0.conv.in_proj.lora_A.default").weight)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
