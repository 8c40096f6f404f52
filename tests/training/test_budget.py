"""Which plan is chosen for which memory, and that looking for it leaves no trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune.data.examples import Example
from finetune.model.base import Base
from finetune.model.lora import attach, trained_parameters
from finetune.model.memory import LATER, Workload, estimate
from finetune.model.shapes import LinearShape, ModelShape, shape_of
from finetune.recipe import AdapterSection
from finetune.training.budget import (
    CPU_TOKENS,
    MemoryPlan,
    choose_plan,
    free_bytes,
    is_out_of_memory,
    plan_memory,
    probe,
)

SIDES = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "v_proj": (4096, 1024), "o_proj": (4096, 4096),
         "gate_proj": (4096, 14336), "up_proj": (4096, 14336), "down_proj": (14336, 4096)}  # fmt: skip
LLAMA_8B = ModelShape(
    linears=tuple(LinearShape(name, *sides, 32, 32) for name, sides in SIDES.items()),
    layers=32, moved=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128_256,
    parameters=8_030_261_248,
)  # fmt: skip
WORK = Workload(r=16, tokens=16_384, longest=512, cpu=False)
GB = 10**9


def test_a_whole_step_at_once_and_the_rest_for_dequantised_copies() -> None:
    plan = choose_plan(LLAMA_8B, WORK, 16_384, 120 * GB)
    assert (plan.tokens, plan.recompute, plan.offload) == (16_384, 0, False)
    assert plan.dense_bytes == 2 * LLAMA_8B.linear_parameters
    assert choose_plan(LLAMA_8B, replace(WORK, precision="none"), 16_384, 120 * GB).dense_bytes == 0


def test_less_memory_means_fewer_tokens_then_recomputation_then_host_memory() -> None:
    plans = [choose_plan(LLAMA_8B, WORK, 16_384, round(room * GB)) for room in (60, 20, 10, 6, 4, 3, 2, 1.3)]
    kinds = [(plan.recompute or 9, -plan.offload) for plan in plans]
    assert kinds == sorted(kinds, reverse=True), "never more of it with more memory"
    assert plans[0].recompute == plans[1].recompute == 0
    assert plans[1].tokens < plans[0].tokens
    assert plans[-1].offload
    assert all(plan.tokens >= 512 for plan in plans), "the longest example always goes"


@pytest.mark.parametrize("room", [60, 20, 10, 6])
def test_what_is_chosen_fits_by_the_closed_form(room: int) -> None:
    plan = choose_plan(LLAMA_8B, WORK, 16_384, room * GB)
    work = replace(WORK, tokens=plan.tokens, recompute=plan.recompute, dense_bytes=plan.dense_bytes)
    assert estimate(LLAMA_8B, work).of(LATER) <= room * GB * 1.001
    bigger = replace(work, tokens=plan.tokens + 64, dense_bytes=0)
    assert plan.tokens == 16_384 or estimate(LLAMA_8B, bigger).of(LATER) > room * GB


def test_what_a_probe_found_counts() -> None:
    once, twice = (choose_plan(LLAMA_8B, WORK, 16_384, 20 * GB, factor).tokens for factor in (1.0, 2.0))
    assert 0.4 * once < twice < 0.6 * once


def test_on_a_cpu_more_tokens_than_bring_speed_are_not_taken() -> None:
    work = replace(WORK, cpu=True)
    assert choose_plan(LLAMA_8B, work, 100_000, 500 * GB).tokens == CPU_TOKENS
    assert choose_plan(LLAMA_8B, replace(work, longest=3000), 100_000, 500 * GB).tokens == 3000


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_probe_measures_and_leaves_no_trace(base: Base, dropout: float) -> None:
    adapter = AdapterSection(r=4, alpha=8.0, dropout=dropout)
    shape = shape_of(base.model, adapter)
    model = attach(base, adapter, seed=0)
    work = Workload(r=4, tokens=256, longest=256, width=4)
    state, training = torch.get_rng_state(), model.training
    before = [parameter.clone() for parameter in model.parameters()]
    ratio = probe(base, model, shape, work)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == training
    assert all(parameter.grad is None for parameter in trained_parameters(model).values())
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    if dropout:
        assert ratio > 1.1, "dropout runs PEFT's own forward, which keeps more"
    else:
        assert ratio == pytest.approx(1, abs=0.1)


def test_a_probe_runs_only_where_it_could_change_the_plan(
    base: Base, examples: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = AdapterSection(r=4, alpha=8.0)
    shape = shape_of(base.model, adapter)
    model = attach(base, adapter, seed=0)
    work = Workload(r=4, tokens=2048, longest=100, width=4)
    passes: list[int] = []
    base.model.model.norm.register_forward_hook(lambda *_: passes.append(1))
    need = estimate(shape, work).of(LATER)
    for room, wanted in ((100 * need, 0), (round(1.5 * need), 1)):
        monkeypatch.setattr("finetune.training.budget.free_bytes", lambda device, cap, room=room: room)
        plan_memory(base, model, shape, work, 2048)
        assert len(passes) == wanted


def test_free_memory_is_what_the_machine_has_and_the_cap_bounds_it() -> None:
    cpu = torch.device("cpu")
    free = free_bytes(cpu)
    assert 0 < free < 2**46
    assert free_bytes(cpu, 1) == 0, "this process takes more already"
    assert free_bytes(cpu, 2**60) == pytest.approx(free, rel=0.2)


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = free_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_a_plan_says_what_it_is() -> None:
    assert MemoryPlan(2048).describe() == "micro-batches of 2,048 tokens, nothing is recomputed"
    assert MemoryPlan(512, 2).describe() == "micro-batches of 512 tokens, every 2nd layer is recomputed"
    assert MemoryPlan(512, 1, True).describe().endswith("every layer is recomputed, activations in host memory")
