"""What a run will need and cost, before anything but a config and a tokenizer is loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from finetune.data.dataset import load_dataset
from finetune.errors import FinetuneError
from finetune.model.device import pick_device
from finetune.model.memory import LATER, Estimate, Precision, Workload, estimate, full_estimate, optimizer_state
from finetune.model.shapes import ModelShape, read_shape
from finetune.model.tokenizer import load_chat_template
from finetune.planning.load import Load, Need, measure_load, workload
from finetune.recipe import Recipe
from finetune.training.budget import HEADROOM, MemoryPlan, choose_plan, free_bytes

# Assumed share of the measured matmul rate; the true one depends on machine and rows (docs/performance.md).
UTILISATION = 0.5
_SIDE, _ROWS = 2048, 1024  # of the matrices that measure the rate


class Assumptions(NamedTuple):
    """What the machine itself cannot say."""

    gpu: int | None = None  # bytes of another GPU than this machine's
    tokens_per_second: float | None = None
    price: float | None = None  # per hour, in any currency
    watts: float | None = None


class Option(NamedTuple):
    """One precision: what training takes under the recipe's plan, and under the plan that suits it best."""

    name: str
    estimate: Estimate
    own: bool  # what the recipe asks for
    plan: MemoryPlan
    needs: int  # bytes with that plan
    fits: bool


class Cost(NamedTuple):
    seconds: float
    basis: str  # what the seconds are computed from
    kilowatt_hours: float | None
    price: float | None


@dataclass(frozen=True)
class PlanReport:
    name: str
    base: str
    device: str
    room: int  # bytes that training may use there
    shape: ModelShape
    trained: int  # parameters
    load: Load
    plan: MemoryPlan
    options: tuple[Option, ...]
    flops: float
    cost: Cost | None  # None where nothing is known about the speed
    paged: int  # bytes of the optimizer that are not counted: they go to the host when memory is short

    @property
    def fits(self) -> bool:
        """Whether what the recipe asks for fits."""
        return all(option.fits for option in self.options if option.own)


def make_plan(recipe: Recipe, given: Assumptions = Assumptions()) -> PlanReport:  # noqa: B008 (immutable)
    """Count parameters, memory, steps, tokens, time and cost of a recipe.

    Reads the data as training does, through the token cache. Raises FinetuneError as training would for the recipe's
    data and the base's config, and for a negative assumption.
    """
    device, room = device_of(given)
    shape, work, load = read_need(recipe, cpu=device == "cpu")
    plan = plan_alone(shape, work, load, room)
    flops = training_flops(shape, work, load, plan)
    return PlanReport(
        name=recipe.name,
        base=recipe.base.model,
        device=device,
        room=room,
        shape=shape,
        trained=shape.trained_numbers(recipe.adapter.r),
        load=load,
        plan=plan,
        options=tuple(_options(shape, work, load, plan, room)),
        flops=flops,
        cost=cost_of(flops, load.tokens, given),
        paged=optimizer_state(shape, work).paged,
    )


def read_need(recipe: Recipe, *, cpu: bool) -> Need:
    """What a recipe's adapter takes, from the base's config and the data. Raises FinetuneError."""
    shape = read_shape(recipe.base, recipe.adapter)
    load = measure_load(recipe, load_dataset(recipe.data, load_chat_template(recipe.base)))
    return Need(shape, workload(recipe, load, cpu=cpu), load)


def training_flops(shape: ModelShape, work: Workload, load: Load, plan: MemoryPlan) -> float:
    """Floating-point operations of a whole run, the exact count for a frozen base.

    2 per weight and token forward and 2 backward above the lowest adapted layer (nothing for the frozen weights
    themselves), 6 for adapters, 7 d S per causal segment of S tokens and attention layer, 4 per weight of the head and
    trained token; recomputed layers run forward twice.
    """
    share = shape.moved / max(1, shape.layers)
    again = share / plan.recompute if plan.recompute else 0.0
    matmul = 2 * shape.linear_parameters * (1 + share + again)
    adapters = shape.lora_numbers(work.r) * (6 + 2 * bool(again) / max(1, plan.recompute))
    attention = shape.heads * shape.head_dim * shape.layers * (2 + 5 * share + 2 * again)
    head = 4 * shape.vocabulary * shape.hidden
    return load.tokens * (matmul + adapters) + load.squares * attention + load.trained * head


def measure_rate(device: torch.device, seconds: float = 0.5) -> float:
    """Floating-point operations per second of bf16 matrix products on a device."""
    side = _SIDE if device.type == "cpu" else 4 * _SIDE
    a = torch.randn(_ROWS, side, dtype=torch.bfloat16, device=device)
    b = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 4 * 2 * _ROWS * side * side / (time.perf_counter() - start))
    return best


def device_of(given: Assumptions) -> tuple[str, int]:
    """Kind of the device that is planned for, and the bytes that training may use there.

    Raises FinetuneError for an assumption that is not above 0.
    """
    for name, value in given._asdict().items():
        if value is not None and value <= 0:
            raise FinetuneError(f"--{name.replace('_', '-')} is {value:g}", fix="give a number above 0")
    if given.gpu is not None:
        return "cuda", round(given.gpu * (1 - HEADROOM["cuda"]))
    device = pick_device()
    return device.type, free_bytes(device)


def plan_alone(shape: ModelShape, work: Workload, load: Load, room: int) -> MemoryPlan:
    """What training will choose, when the weights lie on the device."""
    found = estimate(shape, work)
    return choose_plan(shape, work, load.step_tokens, room - (found.peak - found.of(LATER)))


def _options(shape: ModelShape, work: Workload, load: Load, plan: MemoryPlan, room: int) -> list[Option]:
    options = []
    kinds: list[tuple[str, Precision]] = [("4-bit", "nf4"), ("8-bit", "int8"), (f"{8 * work.width}-bit", "none")]
    kind = "DoRA" if shape.dora else "LoRA"
    for name, precision in kinds:
        lora = replace(work, precision=precision)
        under = estimate(shape, applied(lora, plan))
        best = plan_alone(shape, lora, load, room)
        needs = estimate(shape, applied(lora, best)).peak
        options.append(Option(f"{name} {kind}", under, precision == work.precision, best, needs, needs <= room))
    full = replace(work, precision="none", width=2)
    under = full_estimate(shape, applied(full, plan))
    least = plan if under.peak <= room else MemoryPlan(load.longest, recompute=1)
    needs = full_estimate(shape, applied(full, least)).peak
    return [*options, Option("16-bit full", under, False, least, needs, needs <= room)]


def applied(work: Workload, plan: MemoryPlan) -> Workload:
    """The workload under a plan, without the copies that only fill what is free."""
    return replace(work, tokens=plan.tokens, recompute=plan.recompute, offload=plan.offload)


def cost_of(flops: float, tokens: float, given: Assumptions) -> Cost | None:
    """Time, energy and money of so many operations over so many tokens; None where nothing says how fast."""
    if given.tokens_per_second is not None:
        seconds, basis = tokens / given.tokens_per_second, f"at {given.tokens_per_second:,.0f} tokens/s"
    elif given.gpu is None:
        rate = measure_rate(pick_device())
        seconds = flops / (UTILISATION * rate)
        basis = f"at {UTILISATION:.0%} of the {rate / 1e12:,.2f} TFLOP/s in bf16 measured here"
    else:
        return None
    hours = seconds / 3600
    energy = None if given.watts is None else hours * given.watts / 1000
    return Cost(seconds, basis, energy, None if given.price is None else hours * given.price)
