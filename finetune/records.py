"""What is written down about a run: when a checkpoint is its own, the adapter's card, the conditions
of an evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from finetune.data.dataset import Dataset
from finetune.evaluation.report import Heading, Versions, storable
from finetune.files import sha256_file
from finetune.model.base import Base, full_fingerprint
from finetune.model.lora import Parameters
from finetune.provenance import now, versions
from finetune.recipe import EvalSection, Recipe, dump_recipe
from finetune.store.cards import licence_of, portable, portable_names
from finetune.store.folders import BaseCard, Card
from finetune.training.run import TrainingJob, TrainResult


def run_key(recipe: Recipe, base: Base, dataset: Dataset) -> dict[str, str]:
    """What must be equal for a checkpoint to go on as if nothing had happened."""
    flat = _settings(recipe, {"eval", "generation"})
    return {
        **{name: json.dumps(value) for name, value in flat.items()},
        "seed": str(recipe.seed),
        **{f"contents of {name}": digest for name, digest in dataset.sha256.items()},
        "base": hashlib.sha256(json.dumps(base.fingerprint, sort_keys=True).encode()).hexdigest(),
    }


def hyperparameters(recipe: Recipe) -> dict[str, str | float | bool | None]:
    """What a tracker is told about a run; trackers take single values alone, so lists become JSON."""
    flat = _settings(recipe, {"eval"})
    single = {name: json.dumps(v) if isinstance(v, list | dict) else v for name, v in flat.items()}
    return {"name": recipe.name, "seed": recipe.seed, **single}


def described(recipes: Sequence[Recipe]) -> dict[str, str | float | bool | None]:
    """The hyperparameters of a run, by the recipes' names where there are several."""
    if len(recipes) == 1:
        return hyperparameters(recipes[0])
    return {f"{r.name}.{key}": value for r in recipes for key, value in hyperparameters(r).items() if key != "name"}


def _settings(recipe: Recipe, without: set[str]) -> dict[str, Any]:
    """The keys of the sections, dotted, and their values as JSON has them."""
    sections = recipe.model_dump(mode="json", exclude=without)
    return {f"{s}.{k}": v for s, keys in sections.items() if isinstance(keys, dict) for k, v in keys.items()}


def card_of(
    recipe: Recipe, base: Base, dataset: Dataset, job: TrainingJob, result: TrainResult, parameters: Parameters
) -> Card:
    losses = [entry["loss"] for entry in result.log if "loss" in entry]
    heldout = [
        entry["heldout_loss"]
        for entry in result.log
        if "heldout_loss" in entry and result.kept_step in (None, entry["step"])
    ]
    return Card(
        name=recipe.name,
        base=BaseCard(
            model=portable(base.name),
            revision=base.revision,
            quantization=base.quantization,
            fingerprint=base.fingerprint,
            weights_sha256=full_fingerprint(recipe.base),
            licence=licence_of(recipe.base),
        ),
        system=recipe.data.system,
        method=", ".join(recipe.adapter.methods),
        r=recipe.adapter.r,
        alpha=recipe.adapter.alpha,
        seed=recipe.seed,
        data={name: dataset.sha256[path] for path, name in portable_names(dataset.sha256).items()},
        recipe_sha256=hashlib.sha256(dump_recipe(recipe).encode()).hexdigest(),
        train_rows=len(job.rows),
        heldout_rows=len(job.heldout),
        steps=result.progress.step,
        kept_step=result.kept_step,
        trained_tokens=result.progress.trained_tokens,
        seconds=round(result.progress.seconds, 1),
        peak_memory_bytes=result.peak_memory_bytes,
        parameters={"trained": parameters.trained, "total": parameters.total},
        loss={"first": losses[0], "last": losses[-1], **({"heldout": heldout[-1]} if heldout else {})},
        versions=versions(),
        created=now(),
    )


def heading_of(recipe: Recipe, name: str, base: Base, dataset: Dataset) -> Heading:
    """What a report says about itself before anything is measured."""
    return Heading(
        name=storable(name),
        base=storable(base.name),
        created=now(),
        versions=Versions(**versions()),
        seed=recipe.seed,
        generation=recipe.generation,
        data={storable(file): digest for file, digest in _evaluated_files(dataset, recipe.eval).items()},
        conditions=_conditions(recipe, base, dataset),
    )


def _conditions(recipe: Recipe, base: Base, dataset: Dataset) -> dict[str, str]:
    """What changes the answers, the scored tokens or both, the adapter apart."""
    general = recipe.eval.general
    settings = {
        "base.model": base.name,
        **{f"base.{name}": getattr(recipe.base, name) for name in ("quantization", "dtype")},
        **{f"base's {name}": digest for name, digest in base.fingerprint.items()},
        "seed": recipe.seed,
        **{f"generation.{name}": value for name, value in recipe.generation.model_dump().items()},
        "data.system": recipe.data.system,
        "held-out rows": dataset.heldout.digest,
        "general rows": sha256_file(general) if general else None,
    }
    return {name: str(value) for name, value in settings.items()}


def _evaluated_files(dataset: Dataset, section: EvalSection) -> dict[str, str]:
    extra = [name for name in (section.prompts, section.general) if name]
    return {**dataset.sha256, **{name: sha256_file(name) for name in extra}}
