"""From recipes to what the loop trains: one adapter, or several over one base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel

from finetune.data.batches import TrainingRows
from finetune.data.dataset import Dataset
from finetune.errors import RecipeError
from finetune.model.base import Base
from finetune.model.compiled import modules_with_regions
from finetune.model.lora import PLAIN, attach, attach_together
from finetune.model.methods import ADAPTER
from finetune.model.shapes import shape_of
from finetune.planning.load import Need, measure_load, share, workload
from finetune.recipe import Recipe
from finetune.records import run_key
from finetune.training.budget import MemoryPlan, plan_memory
from finetune.training.run import TrainingJob
from finetune.training.telemetry import Emit, NoticeEvent, tagged


class RunOptions(NamedTuple):
    checkpoint_every: int = 100  # optimizer steps between checkpoints
    memory: int | None = None  # bytes of the device that may be used; None: what is free
    compiled: bool = False  # torch.compile for what lies between a layer's matrix products: speed, no result


def checkpoint_of(recipe: Recipe) -> Path:
    """The folder that an interrupted run of this recipe goes on from."""
    return Path(recipe.output) / f"{recipe.name}.checkpoint"


def check_together(recipes: Sequence[Recipe]) -> None:
    """Raise RecipeError if these cannot be trained at once, naming the one that is in the way."""
    first, *others = recipes
    seen: set[Path] = set()
    for recipe in recipes:
        if (target := Path(recipe.output).resolve() / recipe.name) in seen:
            raise RecipeError(f"two recipes write {target.name!r}", where=str(target), fix="give each its own name")
        seen.add(target)
    for recipe in others:
        if recipe.base != first.base:
            mine, theirs = recipe.base.model_dump(), first.base.model_dump()
            differing = [f"base.{key} {mine[key]} and {theirs[key]}" for key in mine if mine[key] != theirs[key]]
            what = f"{recipe.name} and {first.name} are of two bases: {', '.join(differing)}"
            raise RecipeError(what, fix="train them one after the other")
    for recipe in recipes if others else ():
        if reason := _alone(recipe):
            what = f"{recipe.name}: {reason} cannot be trained together with other adapters"
            raise RecipeError(what, fix=f"train {recipe.name} on its own")


def _alone(recipe: Recipe) -> str:
    """Why an adapter is more than two matrices and a scale on rows of its own; empty if it is not."""
    if special := [method for method in recipe.adapter.methods if method not in PLAIN]:
        return f"adapter.method {', '.join(special)}"
    if recipe.adapter.dropout:
        return f"adapter.dropout {recipe.adapter.dropout:g}"
    return "adapter.modules_to_save" if recipe.adapter.modules_to_save else ""


def make_jobs(
    recipes: Sequence[Recipe], base: Base, datasets: Sequence[Dataset], options: RunOptions, emit: Emit
) -> dict[str, TrainingJob]:
    """Attach the adapters and plan memory; jobs by the recipes' names. Raises FinetuneError."""
    says = [tagged(emit, recipe.name if len(recipes) > 1 else "") for recipe in recipes]
    rows = [_rows_of(*parts, base) for parts in zip(recipes, datasets, says, strict=True)]
    if not base.packs:
        if len(recipes) > 1:
            what = f"{base.name} cannot keep packed examples apart, so several adapters cannot share its rows"
            raise RecipeError(what, fix="train them one after the other")
        how = "rows of one example each, padded in groups of like length, which is slower"
        emit(NoticeEvent(f"{base.name} cannot keep packed examples apart: {how}"))
    needs = [_need(recipe, base, dataset) for recipe, dataset in zip(recipes, datasets, strict=True)]
    adapters = [ADAPTER, *(f"adapter{number}" for number in range(1, len(recipes)))]
    if len(recipes) == 1:
        model = attach(base, recipes[0].adapter, recipes[0].seed, rows[0])
    else:
        pairs = zip(adapters, recipes, strict=True)
        model = attach_together(base, {name: (recipe.adapter, recipe.seed) for name, recipe in pairs})
    plan = _plan(base, model, needs, options.memory)
    emit(NoticeEvent(plan.describe()))
    if options.compiled:
        found = modules_with_regions(base.model)
        what = f"compiling what lies between the matrix products of {found} modules: the first steps take longer"
        emit(NoticeEvent(what if found else f"{base.name} has no layer of the kind that --compile compiles"))
    return {
        recipe.name: TrainingJob(
            base,
            model,
            own,
            dataset.heldout,
            recipe.train,
            recipe.seed,
            checkpoint_of(recipe),
            options.checkpoint_every,
            run_key(recipe, base, dataset),
            plan,
            recipe.adapter.methods,
            adapter,
            options.compiled,
        )
        for recipe, dataset, own, adapter in zip(recipes, datasets, rows, adapters, strict=True)
    }


def _rows_of(recipe: Recipe, dataset: Dataset, emit: Emit, base: Base) -> TrainingRows:
    limit = recipe.data.max_length
    if base.max_positions is not None and limit > base.max_positions:
        raise RecipeError(
            f"data.max_length {limit} is more than the {base.max_positions} positions of {base.name}",
            fix=f"set data.max_length to {base.max_positions} or less",
        )
    _report_dropped(dataset, limit, emit)
    return TrainingRows(dataset.train, tuple((mixed.rows, mixed.weight) for mixed in dataset.mix))


def _need(recipe: Recipe, base: Base, dataset: Dataset) -> Need:
    load = measure_load(recipe, dataset)
    work = workload(recipe, load, cpu=base.device.type == "cpu")
    return Need(shape_of(base.model, recipe.adapter), work, load)


def _plan(base: Base, model: PeftModel, needs: Sequence[Need], memory: int | None) -> MemoryPlan:
    """For the adapter that needs most, in rows that hold the steps of all; room is kept for the others."""
    shared = share(needs)
    shape, work, _ = shared.most
    return plan_memory(base, model, shape, work, shared.tokens, memory, reserved=shared.reserved)


def _report_dropped(dataset: Dataset, limit: int, emit: Emit) -> None:
    parts = [("training", dataset.train), ("held-out", dataset.heldout), *(("mixed-in", m.rows) for m in dataset.mix)]
    for name, rows in parts:
        if rows.dropped:
            what = f"{rows.dropped} of {len(rows.tokens)} {name} rows"
            emit(NoticeEvent(f"{what} exceed {limit} tokens and were dropped"))
