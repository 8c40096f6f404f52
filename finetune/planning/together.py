"""What several adapters need and cost that are trained at once over one base, beside what each needs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune.model.memory import LATER, PER_STEP, Estimate, estimate
from finetune.planning.load import Need, share
from finetune.planning.plan import (
    Assumptions,
    Cost,
    applied,
    cost_of,
    device_of,
    plan_alone,
    read_need,
    training_flops,
)
from finetune.recipe import Recipe
from finetune.training.budget import MemoryPlan, choose_plan

_BASE, _STATES = ("weights of linears", "embeddings, head, norms"), ("adapter", "gradients", "optimizer")


class Member(NamedTuple):
    """One of the adapters, and what it would need alone."""

    name: str
    trained: int  # parameters
    need: Need
    plan: MemoryPlan
    alone: Estimate

    @property
    def states(self) -> int:
        """Bytes of the adapter, its gradients and its optimizer."""
        return self.alone.of(_STATES)

    @property
    def step(self) -> int:
        """Bytes of a micro-batch, were it trained alone."""
        return self.alone.of(PER_STEP)


@dataclass(frozen=True)
class TogetherReport:
    base: str
    parameters: int  # of the base
    device: str
    room: int  # bytes that training may use there
    members: tuple[Member, ...]
    plan: MemoryPlan  # of the rows that they share
    base_bytes: int
    states: int  # bytes of all adapters with their gradients and optimizers
    step: int  # bytes of a shared micro-batch
    flops: float
    cost: Cost | None

    @property
    def peak(self) -> int:
        """Bytes on the device when the most is there."""
        return self.base_bytes + self.states + self.step

    @property
    def fits(self) -> bool:
        return self.peak <= self.room

    @property
    def steps(self) -> int:
        """Rounds of the loop: in each, every adapter that is not done takes a step."""
        return max(member.need.load.steps for member in self.members)

    @property
    def tokens(self) -> float:
        return sum(member.need.load.tokens for member in self.members)


def plan_together(recipes: Sequence[Recipe], given: Assumptions = Assumptions()) -> TogetherReport:  # noqa: B008
    """Count what recipes need that `jobs.check_together` lets be trained at once. Raises FinetuneError as `make_plan`.

    As training does it: one base; of each adapter its own matrices, gradients and optimizer; rows that hold the steps
    of all, planned for the adapter that needs most.
    """
    device, room = device_of(given)
    needs = [read_need(recipe, cpu=device == "cpu") for recipe in recipes]
    members = []
    for recipe, need in zip(recipes, needs, strict=True):
        plan = plan_alone(*need, room)
        alone = estimate(need.shape, applied(need.work, plan))
        members.append(Member(recipe.name, need.shape.trained_numbers(recipe.adapter.r), need, plan, alone))
    shared = share(needs)
    shape, work, _ = shared.most
    whole = estimate(shape, work)
    plan = choose_plan(shape, work, shared.tokens, room - (whole.peak - whole.of(LATER)) - shared.others)
    peak = estimate(shape, applied(work, plan)).peak + shared.others
    base_bytes, states = whole.of(_BASE), sum(member.states for member in members)
    flops = sum(training_flops(need.shape, need.work, need.load, plan) for need in needs)
    return TogetherReport(
        base=recipes[0].base.model,
        parameters=shape.parameters,
        device=device,
        room=room,
        members=tuple(members),
        plan=plan,
        base_bytes=base_bytes,
        states=states,
        step=peak - base_bytes - states,
        flops=flops,
        cost=cost_of(flops, sum(need.load.tokens for need in needs), given),
    )
