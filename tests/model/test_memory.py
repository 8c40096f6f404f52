"""The closed form of memory against what real steps keep and allocate, and against published numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.allocations import peak_of
from finetune.model.attention import packed_attention
from finetune.model.base import Base
from finetune.model.blocks import _blocks
from finetune.model.dense import _scratch
from finetune.model.lora import attach, count_parameters
from finetune.model.memory import PER_STEP, Estimate, Workload, estimate, full_estimate, saved_bytes
from finetune.model.recompute import recompute_layers
from finetune.model.shapes import ModelShape, read_shape, shape_of
from finetune.recipe import AdapterSection, BaseSection
from finetune.training.loss import output_head, trained_nll
from tests.model.measuring import ANSWER, a_row, llama, saved_by

SMALL = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
# Shape, dtype, examples in the row, tokens of each, rank, targets, recomputation.
CASES = {
    "blocks": (SMALL, torch.bfloat16, 8, 160, 8, "all-linear", 0),
    "kernel": (SMALL, torch.bfloat16, 2, 600, 8, "all-linear", 0),
    "float32": (SMALL, torch.float32, 8, 160, 8, "all-linear", 0),
    "few targets": (SMALL, torch.bfloat16, 8, 160, 16, ("q_proj", "v_proj"), 0),
    "upper layers": (SMALL, torch.bfloat16, 8, 160, 16, ("layers.2-3",), 0),
    "wide": ({**SMALL, "intermediate_size": 1024}, torch.bfloat16, 16, 64, 32, "all-linear", 0),
    "recomputed": ({**SMALL, "num_hidden_layers": 8}, torch.bfloat16, 8, 160, 8, "all-linear", 1),
    "half recomputed": ({**SMALL, "num_hidden_layers": 8}, torch.bfloat16, 8, 160, 8, "all-linear", 2),
}


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_is_what_a_step_keeps_and_allocates(name: str) -> None:
    shape, dtype, examples, length, r, targets, recompute = CASES[name]
    model = llama(dtype, **shape)
    adapter = AdapterSection(r=r, target_modules=targets)
    counted = shape_of(model, adapter)
    base = Base(model, None, None, "", None, {}, "none", torch.device("cpu"), True)  # type: ignore[arg-type]
    peft = attach(base, adapter, seed=0).train()
    head, row = output_head(model), a_row(examples, length)
    tokens, scored = examples * length, examples * ANSWER
    work = Workload(r=r, tokens=tokens, longest=length, scored=scored, fill=1.0, precision="none", width=dtype.itemsize)
    with packed_attention(model):
        if not recompute:
            assert saved_bytes(counted, work) == pytest.approx(saved_by(peft, head, row), rel=0.03)
        recompute_layers(model, recompute)
        head.buffers.clear()
        _blocks.cache_clear()
        _scratch.clear()
        peak = peak_of(lambda: trained_nll(model, head, row, 1.0).backward())
    found = estimate(counted, replace(work, recompute=recompute))
    first = found.of(PER_STEP) - found.of(["attention masks"]) / 2  # there is no micro-batch before
    assert first == pytest.approx(peak, rel=0.10)


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
    assert estimate(shape, replace(work, moments=2)).peak < peaks[0]
    assert estimate(shape, replace(work, dense_bytes=10**9)).peak == peaks[0] + 10**9
    assert estimate(shape, replace(work, dense_bytes=10**15)).peak < peaks[0] + 2 * shape.linear_parameters + 1
