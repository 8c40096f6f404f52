"""The loop: schedule, non-finite losses, checkpoints, signals."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from finetune.data.examples import Example
from finetune.errors import AdapterError, TrainingError
from finetune.model.base import Base
from finetune.recipe import TrainSection
from finetune.training.checkpoint import check_key, has_checkpoint
from finetune.training.optimizer import learning_rate
from finetune.training.telemetry import Event, StepEvent, smooth
from tests.training.helpers import SECTION, encoded, make_job, run, weights


def test_the_learning_rate_rises_then_falls() -> None:
    section = TrainSection(learning_rate=1.0, schedule="cosine")
    rates = [learning_rate(step, 200, section) for step in range(200)]
    assert rates[:6] == pytest.approx([(n + 1) / 6 for n in range(6)])  # 3 % of 200
    assert rates[6] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[6:]))
    assert rates[199] < 0.001
    assert learning_rate(103, 200, section) == pytest.approx(0.5)
    linear = section.model_copy(update={"schedule": "linear"})
    assert learning_rate(103, 200, linear) == pytest.approx(0.5)
    constant = section.model_copy(update={"schedule": "constant"})
    assert learning_rate(199, 200, constant) == 1.0
    assert learning_rate(0, 5, section) == 1.0  # one step of warm-up at least


def test_every_step_is_reported_and_the_loss_falls(base: Base, examples: tuple[Example, ...], tmp_path: Path) -> None:
    events: list[Event] = []
    section = SECTION.model_copy(update={"epochs": 6.0})
    result = run(make_job(base, encoded(base, examples), tmp_path / "none", section), events)
    steps = [e for e in events if isinstance(e, StepEvent)]
    assert [e.step for e in steps] == list(range(1, 6 * 4 + 1))
    assert steps[-1].loss < 0.8 * steps[0].loss
    assert all(e.grad_norm > 0 for e in steps)
    assert result.progress.trained_tokens == sum(e.trained_tokens for e in steps)
    assert result.progress.tokens == sum(e.tokens for e in steps)


def test_a_non_finite_loss_stops_before_it_is_applied_and_names_the_examples(
    base: Base, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    job = make_job(base, encoded(base, examples), tmp_path / "none")
    before = weights(job.model)
    with torch.no_grad():
        base.model.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(TrainingError, match=r"step 1: loss nan.*examples:\d+") as error:
        run(job)
    assert error.value.exit_code == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(job.model).items())


def test_a_checkpoint_of_another_run_is_refused_and_so_is_a_damaged_one(
    base: Base, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run.checkpoint"
    run(make_job(base, encoded(base, examples), folder, checkpoint_every=2))
    assert has_checkpoint(folder)
    with pytest.raises(AdapterError, match="run changed since it was written"):
        check_key(folder, {"run": "another"})
    state = folder / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-3] ^= 1
    state.write_bytes(content)
    with pytest.raises(AdapterError, match=r"damaged: state\.safetensors"):
        check_key(folder, {"run": "test"})


def test_smoothing_has_no_bias_at_the_start() -> None:
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([]) == []
