"""What is written down about a run: when a checkpoint is its own, the adapter's card, the conditions
of an evaluation."""

from __future__ import annotations

import hashlib
import json

from finetune.data.dataset import Dataset
from finetune.files import sha256_file
from finetune.model.base import Base
from finetune.model.lora import Parameters
from finetune.model.store import BaseCard, Card
from finetune.provenance import now, versions
from finetune.recipe import EvalSection, Recipe
from finetune.training.loop import TrainingJob, TrainResult


def run_key(recipe: Recipe, base: Base, dataset: Dataset) -> dict[str, str]:
    """What must be equal for a checkpoint to go on as if nothing had happened."""
    sections = recipe.model_dump(mode="json", exclude={"eval", "generation", "output", "name"})
    sections["train"].pop("trackers")
    sections["train"].pop("checkpoint_every")
    flat = {f"{s}.{k}": v for s, keys in sections.items() if isinstance(keys, dict) for k, v in keys.items()}
    return {
        **{name: json.dumps(value) for name, value in flat.items()},
        "seed": str(recipe.seed),
        **{f"contents of {name}": digest for name, digest in dataset.sha256.items()},
        "base": hashlib.sha256(json.dumps(base.fingerprint, sort_keys=True).encode()).hexdigest(),
    }


def card_of(
    recipe: Recipe, base: Base, dataset: Dataset, job: TrainingJob, result: TrainResult, parameters: Parameters
) -> Card:
    losses = [entry["loss"] for entry in result.log if "loss" in entry]
    heldout = [entry["heldout_loss"] for entry in result.log if "heldout_loss" in entry]
    return Card(
        name=recipe.name,
        base=BaseCard(
            model=base.name, revision=base.revision, quantization=base.quantization, fingerprint=base.fingerprint
        ),
        system=recipe.data.system,
        method=recipe.adapter.method,
        r=recipe.adapter.r,
        alpha=recipe.adapter.alpha,
        seed=recipe.seed,
        data=dataset.sha256,
        train_rows=len(job.rows),
        heldout_rows=len(job.heldout),
        steps=result.progress.step,
        trained_tokens=result.progress.trained_tokens,
        seconds=round(result.progress.seconds, 1),
        peak_memory_bytes=result.peak_memory_bytes,
        parameters={"trained": parameters.trained, "total": parameters.total},
        loss={"first": losses[0], "last": losses[-1], **({"heldout": heldout[-1]} if heldout else {})},
        versions=versions(),
        created=now(),
    )


def conditions_of(recipe: Recipe, base: Base, dataset: Dataset) -> dict[str, str]:
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


def evaluated_files(dataset: Dataset, section: EvalSection) -> dict[str, str]:
    extra = [name for name in (section.prompts, section.general) if name]
    return {**dataset.sha256, **{name: sha256_file(name) for name in extra}}
