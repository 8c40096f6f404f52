"""Several adapters trained at once: each comes out as if it had been alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data.batches import TrainingRows
from finetune.data.examples import Example
from finetune.model.base import Base, weights_sha256
from finetune.model.lora import attach, attach_together, trained_parameters
from finetune.recipe import AdapterSection, TrainSection
from finetune.training.budget import MemoryPlan
from finetune.training.loop import train, train_together
from finetune.training.run import TrainingJob, TrainResult
from finetune.training.telemetry import Event, HeldoutEvent, NoticeEvent, StepEvent
from tests.conftest import MakeBase
from tests.training.helpers import encoded
from tests.training.test_accumulate import memory_ends

ADAPTERS = {
    "default": (AdapterSection(r=4, alpha=8.0), 0),
    "adapter1": (AdapterSection(r=3, alpha=8.0, method="rslora", target_modules=("q_proj", "down_proj")), 1),
    "adapter2": (AdapterSection(r=4, alpha=4.0, method="lora+"), 2),
}
SECTIONS = {
    "default": TrainSection(epochs=2.0, batch_size=4, learning_rate=5e-3),
    "adapter1": TrainSection(epochs=1.0, batch_size=3, learning_rate=1e-2),
    "adapter2": TrainSection(epochs=4.0, batch_size=6, learning_rate=2e-3, patience=1),
}
Trained = tuple[dict[str, Tensor], TrainResult]


class Stopped(Exception):
    pass


def jobs_of(base: Base, examples: tuple[Example, ...], folder: Path, names: list[str]) -> dict[str, TrainingJob]:
    """The jobs of these adapters, on one model."""
    rows = encoded(base, examples)
    sections = {name: ADAPTERS[name] for name in names}
    model = attach_together(base, sections) if len(names) > 1 else attach(base, *sections[names[0]])
    parts = dict(zip(ADAPTERS, (rows[:8], rows[8:14], rows[14:20]), strict=True))
    heldout = {"adapter2": rows[20:]}
    return {
        name: TrainingJob(
            base,
            model,
            TrainingRows(parts[name]),
            heldout.get(name, []),
            SECTIONS[name],
            ADAPTERS[name][1],
            folder / name,
            2,
            {"run": name},
            MemoryPlan(256),
            ADAPTERS[name][0].methods,
            name if len(names) > 1 else "default",
        )
        for name in names
    }


def run(jobs: dict[str, TrainingJob], events: list[Event] | None = None, stop_at: int | None = None) -> list[Trained]:
    def note(event: Event) -> None:
        if events is not None:
            events.append(event)
        if isinstance(event, StepEvent) and event.step == stop_at:
            raise Stopped

    results = train_together(jobs, Accelerator(cpu=True), note)
    pairs = zip(jobs.values(), results, strict=True)
    return [({n: p.detach().clone() for n, p in trained_parameters(j.model, j.adapter).items()}, r) for j, r in pairs]


def assert_equal(one: Trained, other: Trained, **tolerance: float) -> None:
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        torch.testing.assert_close(tensor, other[0][name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
    assert one[1].kept_step == other[1].kept_step
    assert one[1].progress.step == other[1].progress.step
    keys = ("loss", "heldout_loss", "grad_norm", "learning_rate", "tokens")
    for mine, theirs in zip(one[1].log, other[1].log, strict=True):
        numbers = ([entry[key] for key in keys if key in entry] for entry in (mine, theirs))
        assert next(numbers) == pytest.approx(next(numbers), rel=1e-4)


@pytest.fixture
def alone(make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path) -> list[Trained]:
    return [run(jobs_of(make_base(), examples, tmp_path / "alone", [name]))[0] for name in ADAPTERS]


def test_each_adapter_comes_out_as_if_trained_alone(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path, alone: list[Trained]
) -> None:
    base, events = make_base(), list[Event]()
    jobs = jobs_of(base, examples, tmp_path, list(ADAPTERS))
    before = weights_sha256(jobs["default"].model)
    found = run(jobs, events)
    for one, other in zip(found, alone, strict=True):
        assert_equal(one, other, rtol=5e-3, atol=2e-5)
    assert weights_sha256(jobs["default"].model) == before
    assert {event.run for event in events if isinstance(event, StepEvent)} == set(ADAPTERS)
    assert {event.run for event in events if isinstance(event, HeldoutEvent)} == {"adapter2"}
    assert any(isinstance(event, NoticeEvent) and event.text.startswith("adapter2: ") for event in events)


def test_a_stopped_run_goes_on_together_or_alone(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    whole = run(jobs_of(make_base(), examples, tmp_path / "whole", list(ADAPTERS)))
    with pytest.raises(Stopped):
        run(jobs_of(make_base(), examples, tmp_path / "parts", list(ADAPTERS)), stop_at=3)
    base = make_base()
    rest = run(jobs_of(base, examples, tmp_path / "parts", list(ADAPTERS)))
    for one, other in zip(rest, whole, strict=True):
        assert_equal(one, other, rtol=0, atol=0)
    lone = run(jobs_of(make_base(), examples, tmp_path / "parts", ["adapter1"]))[0]
    assert_equal(lone, whole[1], rtol=5e-3, atol=2e-5)


def test_where_memory_ends_the_rows_get_shorter_and_the_result_stays(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path, alone: list[Trained]
) -> None:
    base, events = make_base(), list[Event]()
    jobs = jobs_of(base, examples, tmp_path, list(ADAPTERS))
    with memory_ends(
        base.model, lambda number, tokens: number < 2 and tokens > 130, torch.OutOfMemoryError("out of memory")
    ):
        found = run(jobs, events)
    for one, other in zip(found, alone, strict=True):
        assert_equal(one, other, rtol=5e-3, atol=2e-5)
    assert any(isinstance(event, NoticeEvent) and "same result" in event.text for event in events)


def test_one_job_is_the_plain_loop(make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path) -> None:
    """No routes, no name: what `train` does."""
    events: list[Event] = []
    jobs = jobs_of(make_base(), examples, tmp_path / "one", ["default"])
    first = run(jobs, events)[0]
    job = jobs_of(make_base(), examples, tmp_path / "two", ["default"])["default"]
    result = train(replace(job, checkpoint=tmp_path / "three"), Accelerator(cpu=True), events.append)
    second = {n: p.detach() for n, p in trained_parameters(job.model).items()}, result
    assert_equal(first, second, rtol=0, atol=0)
    assert {event.run for event in events if isinstance(event, StepEvent)} == {""}
