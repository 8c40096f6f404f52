"""The training loop. One optimizer step: sum of NLL over all its micro-batches and processes,
divided by its trained tokens, whichever way it is cut, and whatever other adapters are trained beside it."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from accelerate import Accelerator

from finetune.errors import Interrupted
from finetune.model.attention import packed_attention
from finetune.model.base import assert_trainable_through
from finetune.model.compiled import compiled_regions
from finetune.model.lora import trained_parameters
from finetune.training.accumulate import Accumulator
from finetune.training.run import Run, TrainingJob, TrainResult
from finetune.training.signals import collect_signals
from finetune.training.telemetry import Emit


def train(job: TrainingJob, accelerator: Accelerator, emit: Emit) -> TrainResult:
    """Train the adapter, resuming from a checkpoint of the same run if there is one.

    Raises TrainingError at a non-finite loss or gradient, before it is applied; Interrupted after
    SIGINT or SIGTERM, with a checkpoint left behind.
    """
    return train_together({"": job}, accelerator, emit)[0]


def train_together(jobs: Mapping[str, TrainingJob], accelerator: Accelerator, emit: Emit) -> list[TrainResult]:
    """Train several adapters of one model at once, by their names; each comes out as `train` alone makes it.

    Every adapter takes its own steps over its own examples; what the base computes is computed for all of them in
    one go. Raises as `train`.
    """
    first, *_ = jobs.values()
    assert_trainable_through(first.base.model)
    with ExitStack() as stack:
        received = stack.enter_context(collect_signals())
        stack.enter_context(compiled_regions(first.compiled))
        parameters = [p for job in jobs.values() for p in trained_parameters(job.model, job.adapter).values()]
        accumulator = Accumulator(first.base, parameters, first.plan, accelerator, emit, together=len(jobs) > 1)
        stack.callback(accumulator.close)
        runs = []
        for name, job in jobs.items():
            runs.append(Run(name if len(jobs) > 1 else "", job, accumulator, accelerator, emit))
            stack.callback(runs[-1].close)
            stack.enter_context(runs[-1].noisy())
        first.model.train()
        stack.enter_context(packed_attention(first.base.model, first.base.packs))
        while active := [run for run in runs if not run.done]:
            steps = [run.next() for run in active]
            losses = accumulator.add(steps)
            done = zip(active, steps, losses, strict=True)
            stops = [run.apply(step, loss, received) for run, step, loss in done]
            if any(stops):
                _interrupt(max(stops), active)
            for run in active:
                if run.progress.step % run.job.checkpoint_every == 0:
                    run.checkpoint()
    assert_trainable_through(first.base.model)
    return [run.result() for run in runs]


def _interrupt(signal_number: int, runs: Sequence[Run]) -> None:
    for run in runs:
        run.checkpoint()
    name = signal.Signals(signal_number).name
    steps = " and ".join(f"step {run.progress.step} of {run.job.steps}" for run in runs)
    folders = " and ".join(str(run.job.checkpoint) for run in runs)
    raise Interrupted(
        signal_number,
        f"stopped by {name} after {steps}; everything so far is in {folders}",
        fix="run the same command again to go on from there",
    )
