"""The closed form of memory against what real steps keep and allocate, and against published numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.allocations import peak_of
from finetune.model.attention import packed_attention
from finetune.model.base import Base
from finetune.model.blocks import _blocks
from finetune.model.dense import _scratch
from finetune.model.lora import attach, count_parameters, trained_parameters
from finetune.model.memory import (
    PER_STEP,
    SMALLEST_8BIT,
    Estimate,
    Workload,
    estimate,
    full_estimate,
    optimizer_state,
    saved_bytes,
)
from finetune.model.recompute import recompute_layers
from finetune.model.shapes import ModelShape, read_shape, shape_of
from finetune.recipe import AdapterSection, BaseSection, TrainSection
from finetune.training.loss import output_head, trained_nll
from finetune.training.optimizer import Optimizer
from tests.model.measuring import ANSWER, a_row, llama, saved_by

SMALL = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
DEEP = {**SMALL, "num_hidden_layers": 8}
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


class Case(NamedTuple):
    shape: dict[str, int]
    dtype: torch.dtype
    examples: int  # in the row
    length: int  # tokens of each
    r: int
    targets: str | tuple[str, ...] = "all-linear"
    recompute: int = 0
    method: Literal["lora", "dora"] = "lora"
    full: tuple[str, ...] = ()


CASES = {
    "blocks": Case(SMALL, torch.bfloat16, 8, 160, 8),
    "kernel": Case(SMALL, torch.bfloat16, 2, 600, 8),
    "float32": Case(SMALL, torch.float32, 8, 160, 8),
    "few targets": Case(SMALL, torch.bfloat16, 8, 160, 16, ("q_proj", "v_proj")),
    "upper layers": Case(SMALL, torch.bfloat16, 8, 160, 16, ("layers.2-3",)),
    "wide": Case({**SMALL, "intermediate_size": 1024}, torch.bfloat16, 16, 64, 32),
    "recomputed": Case(DEEP, torch.bfloat16, 8, 160, 8, recompute=1),
    "half recomputed": Case(DEEP, torch.bfloat16, 8, 160, 8, recompute=2),
    "dora": Case(SMALL, torch.bfloat16, 8, 160, 8, method="dora"),
    "dora, kernel": Case(SMALL, torch.bfloat16, 2, 600, 8, method="dora"),
    "dora, float32": Case(SMALL, torch.float32, 8, 160, 8, method="dora"),
    "dora, few targets": Case(SMALL, torch.bfloat16, 8, 160, 16, ("q_proj", "v_proj"), method="dora"),
    "dora, one short example": Case(
        {**SMALL, "hidden_size": 512, "intermediate_size": 1408}, torch.bfloat16, 1, 64, 8, method="dora"
    ),
    "dora, recomputed": Case(DEEP, torch.bfloat16, 8, 160, 8, recompute=1, method="dora"),
    "norms in full": Case(SMALL, torch.bfloat16, 8, 160, 8, full=NORMS),
    "norms in full, float32": Case(SMALL, torch.float32, 8, 160, 8, full=NORMS),
    "last norm in full": Case(SMALL, torch.bfloat16, 8, 160, 8, full=("norm",)),
    "embeddings in full": Case(SMALL, torch.bfloat16, 8, 160, 8, full=("embed_tokens",)),
    "large embeddings in full": Case({**SMALL, "vocab_size": 20480}, torch.bfloat16, 1, 64, 8, full=("embed_tokens",)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_is_what_a_step_keeps_and_allocates(name: str) -> None:
    case = CASES[name]
    model = llama(case.dtype, tie_word_embeddings="embed_tokens" not in case.full, **case.shape)
    adapter = AdapterSection(
        r=case.r, method=case.method, target_modules=case.targets, modules_to_save=case.full  # type: ignore[arg-type]
    )  # fmt: skip
    counted = shape_of(model, adapter)
    base = Base(model, None, None, "", None, {}, "none", torch.device("cpu"), True)  # type: ignore[arg-type]
    peft = attach(base, adapter, seed=0).train()
    head, row = output_head(model), a_row(case.examples, case.length)
    work = Workload(
        r=case.r,
        tokens=case.examples * case.length,
        longest=case.length,
        scored=case.examples * ANSWER,
        fill=1.0,
        precision="none",
        width=case.dtype.itemsize,
    )
    with packed_attention(model):
        if not case.recompute and case.method == "lora":  # PEFT's DoRA keeps more for a moment, and lets go of it
            assert saved_bytes(counted, work) == pytest.approx(saved_by(peft, head, row), rel=0.04)
        recompute_layers(model, case.recompute)
        trained_nll(model, head, row, 1.0).backward()  # from the second step on, gradients are there
        head.buffers.clear()
        _blocks.cache_clear()
        _scratch.clear()
        peak = peak_of(lambda: trained_nll(model, head, row, 1.0).backward())
    found = estimate(counted, replace(work, recompute=case.recompute))
    first = found.of(PER_STEP) - found.of(["attention masks"]) / 2  # there is no micro-batch before
    assert first == pytest.approx(peak, rel=0.10)


def test_the_optimizer_state_is_what_the_optimizers_make(base: Base) -> None:
    adapter = AdapterSection(r=64, method="dora", target_modules=("gate_proj", "q_proj"))
    shape, model = shape_of(base.model, adapter), attach(base, adapter, seed=0)
    named = trained_parameters(model)
    assert {p.numel() >= SMALLEST_8BIT for p in named.values()} == {True, False}
    kinds: tuple[Literal["adamw", "adamw_8bit"], ...] = ("adamw", "adamw_8bit")
    for kind in kinds:
        optimizer = Optimizer(named, TrainSection(optimizer=kind))
        for parameter in named.values():
            assert parameter.grad is not None
            parameter.grad.fill_(1e-3)
        optimizer.step(1e-3, torch.tensor(True))
        tables = {"qmap1", "qmap2", "step"}  # two tables of 256 numbers for all, and counters
        tensors = {name: t for name, t in optimizer.state_tensors().items() if name.split(".")[1] not in tables}
        state = optimizer_state(shape, Workload(r=64, tokens=1, longest=1, optimizer=kind))
        assert state == (sum(tensor.nbytes for tensor in tensors.values()), 0), kind


def test_pages_are_the_large_8_bit_moments_on_a_gpu_alone(tmp_path: Path) -> None:
    shape = llama_65b(tmp_path, 16)
    work = Workload(r=16, tokens=512, longest=512, optimizer="adamw_8bit", cpu=False)
    plain, paged = (
        optimizer_state(shape, replace(work, optimizer=kind)) for kind in ("adamw_8bit", "paged_adamw_8bit")
    )
    assert sum(plain) == sum(paged)
    assert plain.paged == 0
    assert paged.paged == 2 * shape.lora_numbers(16), "every A and B has at least 16 times 8,192 numbers"
    blocks = 8 * shape.lora_numbers(16) / 256
    assert paged.held == blocks
    on_cpu = replace(work, optimizer="paged_adamw_8bit", cpu=True)
    assert optimizer_state(shape, on_cpu) == plain


def test_parameters_and_bytes_are_those_of_a_loaded_model(base: Base, model_folder: Path) -> None:
    adapter = AdapterSection(r=4, alpha=8.0)
    shape = read_shape(BaseSection(model=str(model_folder)), adapter)
    assert shape == shape_of(base.model, adapter)
    found = count_parameters(attach(base, adapter, seed=0))
    assert shape.parameters + shape.lora_numbers(4) == found.total
    assert shape.lora_numbers(4) == found.trained
    work = Workload(r=4, tokens=1, longest=1, precision="nf4", width=4)
    parts = estimate(shape, work)
    resident = parts.of(["weights of linears", "embeddings, head, norms", "adapter"])
    # In matrices as small as these the constants' own tables show: 16 and 256 numbers for each of 14.
    assert resident + 14 * 4 * (16 + 256) == pytest.approx(found.bytes_now, rel=0.02)


def llama_65b(folder: Path, r: int) -> ModelShape:
    """The shape of LLaMA-65B, from a folder with nothing but its config."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=22016,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=64,
        architectures=["LlamaForCausalLM"],
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return read_shape(BaseSection(model=str(folder)), AdapterSection(r=r))


def test_65b_takes_less_than_48_gb_in_4_bits_and_780_in_full(tmp_path: Path) -> None:
    shape = llama_65b(tmp_path, 16)
    assert shape.parameters == 65_285_660_672
    work = Workload(r=16, tokens=512, longest=512, scored=128, cpu=False, recompute=1)
    lora = estimate(shape, work)
    assert 38e9 < lora.peak < 46e9
    assert full_estimate(shape, work).peak == pytest.approx(783e9, rel=0.01)
    eight, sixteen = (estimate(shape, replace(work, precision=precision)) for precision in ("int8", "none"))
    assert weights(lora) == pytest.approx(0.516 * 64.8e9, rel=0.01)
    assert weights(eight) == pytest.approx(64.8e9, rel=0.01)
    assert weights(sixteen) == pytest.approx(2 * 64.8e9, rel=0.01)


def weights(found: Estimate) -> int:
    return found.of(["weights of linears"])


def test_each_saving_saves(tmp_path: Path) -> None:
    shape = llama_65b(tmp_path, 16)
    work = Workload(r=16, tokens=4096, longest=512, cpu=False)
    peaks = [estimate(shape, replace(work, recompute=every)).peak for every in (0, 4, 2, 1)]
    assert peaks == sorted(peaks, reverse=True)
    assert estimate(shape, replace(work, recompute=1, offload=True)).peak < peaks[-1]
    assert estimate(shape, replace(work, optimizer="adamw_8bit")).peak < peaks[0]
    assert estimate(shape, replace(work, dense_bytes=10**9)).peak == peaks[0] + 10**9
    assert estimate(shape, replace(work, dense_bytes=10**15)).peak < peaks[0] + 2 * shape.linear_parameters + 1
