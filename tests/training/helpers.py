"""Runs of the training loop in a test, without a recipe around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor

from finetune.data.batches import TrainingRows
from finetune.data.encoding import Encoded, encode
from finetune.data.examples import Example
from finetune.model.base import Base
from finetune.model.lora import attach
from finetune.recipe import AdapterSection, TrainSection
from finetune.training.budget import MemoryPlan
from finetune.training.loop import train
from finetune.training.run import TrainingJob, TrainResult
from finetune.training.telemetry import Event

SECTION = TrainSection(epochs=2.0, batch_size=8, learning_rate=5e-3)
PLAN = MemoryPlan(tokens=128)


def encoded(base: Base, examples: Sequence[Example]) -> list[Encoded]:
    return [encode(example, base.template) for example in examples]


def make_job(
    base: Base,
    rows: Sequence[Encoded],
    checkpoint: Path,
    section: TrainSection = SECTION,
    adapter: AdapterSection | None = None,
    checkpoint_every: int = 100,
) -> TrainingJob:
    adapter = adapter or AdapterSection(r=4, alpha=8.0)
    model = attach(base, adapter, 0, TrainingRows(rows))
    key = {"run": "test"}
    return TrainingJob(
        base,
        model,
        TrainingRows(rows),
        [],
        section,
        0,
        checkpoint,
        checkpoint_every,
        key,
        PLAN,
        adapter.methods,
    )


def run(job: TrainingJob, events: list[Event] | None = None) -> TrainResult:
    return train(job, Accelerator(cpu=True), (events if events is not None else []).append)


def weights(model: PeftModel) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
