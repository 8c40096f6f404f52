"""The contender `finetune` of benchmarks/training.py, with switches that turn single techniques off."""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from recording import Recorder, Row, Task
from torch import Tensor, nn

import finetune.model.base as model_base
from finetune import jobs
from finetune.data.batches import IGNORED, MicroBatch, TrainingRows, pack
from finetune.data.dataset import Dataset, Rows
from finetune.data.encoding import Encoded
from finetune.data.tokens import Tokens, TokenWriter
from finetune.model import attention, decoder, lora
from finetune.model.base import Base, load_base
from finetune.recipe import BaseSection, DataSection, Recipe, TrainSection
from finetune.training import accumulate, loop
from finetune.training import run as training_run
from finetune.training.run import TrainingJob
from finetune.training.telemetry import Event, StepEvent


class InOrder(TrainingRows):
    """Rows in the order in which they were handed over, the same for every contender."""

    def epoch(self, number: int, seed: int) -> array[int]:
        return array("q", range(len(self.main)))


def run(task: Task, recorder: Recorder) -> Any:
    """Load, attach and train as `finetune train` does."""
    for name in task.without:
        WITHOUT[name]()
    recipe = recipe_of(task, recorder.rows)
    base = load_base(recipe.base, torch.device(task.device))
    recorder.loaded()
    if task.overhead:
        _time_parts(recorder)
    job = replace(job_of(recipe, base, recorder), compiled=task.compiled)
    if "dense-cache" in task.without:
        job = replace(job, plan=replace(job.plan, dense_bytes=0))
    train(job, recorder)
    return job.model


def recipe_of(task: Task, rows: Sequence[Row]) -> Recipe:
    """The task as a user would write it down."""
    return Recipe(
        name="benchmark",
        seed=task.seed,
        base=BaseSection(model=task.model, dtype="bfloat16"),
        data=DataSection(path=task.rows, max_length=max(len(row["ids"]) for row in rows)),
        train=TrainSection(
            epochs=1,
            max_steps=task.warm_up + task.steps,
            batch_size=task.batch,
            learning_rate=task.learning_rate,
            schedule="constant",
        ),
    )


def job_of(recipe: Recipe, base: Base, recorder: Recorder, *, memory: int | None = None) -> TrainingJob:
    """The job that `finetune train` makes of a recipe, with the rows in their order; `memory`: bytes it may use."""
    options = jobs.RunOptions(1 << 30, memory)
    job = jobs.make_jobs([recipe], base, [dataset_of(recipe, recorder)], options, lambda event: None)[recipe.name]
    return replace(job, rows=InOrder(job.rows.main), heldout=(), checkpoint=Path(tempfile.mkdtemp()) / "checkpoint")


def dataset_of(recipe: Recipe, recorder: Recorder) -> Dataset:
    """Training and held-out rows as they come from the token cache."""
    return Dataset(*(Rows(_on_disk(rows), recipe.data.max_length, {}) for rows in (recorder.rows, recorder.heldout)))


def train(job: TrainingJob, recorder: Recorder) -> None:
    """Run the training loop with a recorder looking on."""
    rate, plan = job.section.learning_rate, job.plan
    training_run.learning_rate = lambda *_: rate  # from the first step on, as for everybody
    dtype = {str(p.dtype).removeprefix("torch.") for p in job.model.parameters() if p.requires_grad}
    recorder.settings = f"packed, {'/'.join(sorted(dtype))} adapter, bf16 compute, {plan.describe()}"

    def emit(event: Event) -> None:
        if isinstance(event, StepEvent):
            with _plain_attention(job.base.model) if recorder.task.evaluate_every else nullcontext():
                recorder.step(event.grad_norm, job.model)

    loop.train(job, Accelerator(cpu=job.base.device.type == "cpu"), emit)


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """For the held-out loss in the middle of a training, which is computed as for everybody."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    yield
    model.set_attn_implementation(before)


def _on_disk(rows: Sequence[Row]) -> Tokens:
    """The rows as training reads them: memory-mapped."""
    folder = Path(tempfile.mkdtemp())
    writer = TokenWriter(folder)
    for number, row in enumerate(rows):
        writer.append(Encoded(row["ids"], row["mask"], f"row {number}", 0))
    writer.close()
    return Tokens(folder)


def _time_parts(recorder: Recorder) -> None:
    """Time forward, backward and optimizer, so that what is left is the framework's own."""
    recorder.parts = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            out = work(*args, **kwargs)
            if recorder.task.device == "cuda":
                torch.cuda.synchronize()
            recorder.parts[name] += time.perf_counter() - start
            return out

        return run

    accumulate.shared_nll = timed("forward", accumulate.shared_nll)
    Tensor.backward = timed("backward", Tensor.backward)
    torch.optim.AdamW.step = timed("optimizer", torch.optim.AdamW.step)


def _all_rows_through_the_head(
    model: Any, head: Any, batch: MicroBatch, shares: Sequence[tuple[int, float]]
) -> list[Tensor]:
    """Logits of every row at once, as transformers computes them, and the mean of those that are trained."""
    hidden = attention.hidden_states(model, batch.input_ids, batch.position_ids, batch.segments)
    logits = F.linear(hidden[0], head.weight, head.bias).float()
    ((_, denominator),) = shares
    return [F.cross_entropy(logits, batch.labels[0], ignore_index=IGNORED, reduction="sum") / denominator]


@lru_cache(maxsize=1)
def _mask(segments: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    owner = torch.repeat_interleave(torch.tensor([end - start for start, end in segments]))
    return ((owner[:, None] == owner[None, :]) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()).to(device)


def _masked_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """One call of PyTorch's kernel with a mask over the whole row."""
    grouped = query.shape[1] != key.shape[1]
    mask = _mask(given["segments"], query.device)
    out = F.scaled_dot_product_attention(query, key, value, mask, scale=given.get("scaling"), enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


def _rows_only_head() -> None:
    accumulate.shared_nll = _all_rows_through_the_head


def _segments() -> None:
    attention.AttentionInterface.register(attention.NAME, _masked_attention)
    decoder.segment_attention = _masked_attention


def _packing() -> None:
    accumulate.pack = lambda rows, budget, isolate: pack(rows, 0)


def _layers() -> None:
    model_base.make_lean_layers = lambda model: 0


def _fused() -> None:
    _layers()  # they bring linears of their own
    lora.register_fused = lambda config: config


def _lean() -> None:
    _layers()  # and norms
    model_base.make_lean = lambda model: 0


WITHOUT: dict[str, Callable[[], None]] = {
    "packing": _packing,  # one example per row
    "dense-cache": lambda: None,  # weights are dequantised whenever they are used; see run
    "segments": _segments,  # a mask over the packed row instead of attention per example
    "rows-only-head": _rows_only_head,  # logits of all rows at once instead of a chunk of the trained ones
    "layers": _layers,  # transformers' own decoder layers, over our linears and norms
    "fused": _fused,  # these over PEFT's own LoRA layers
    "lean": _lean,  # these with transformers' own RMSNorm and SwiGLU
}
