"""One run: what it trains, where it stands, what it says. The loop drives one or several (loop.py)."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from peft import PeftModel
from torch import Tensor

from finetune.data.batches import TrainingRows
from finetune.data.encoding import Encoded
from finetune.errors import TrainingError
from finetune.model.base import Base
from finetune.model.lora import trained_parameters
from finetune.model.methods import ADAPTER
from finetune.recipe import TrainSection
from finetune.training.accumulate import Accumulator, Ahead, Step
from finetune.training.budget import SCORING_TOKENS, MemoryPlan
from finetune.training.checkpoint import Progress, RunState, check_key, has_checkpoint, load_checkpoint, save_checkpoint
from finetune.training.noise import EmbeddingNoise
from finetune.training.optimizer import Optimizer, learning_rate
from finetune.training.scoring import score_rows
from finetune.training.stopping import Best, check_heldout
from finetune.training.telemetry import (
    Emit,
    HeldoutEvent,
    LogEntry,
    Meter,
    NoticeEvent,
    StepEvent,
    log_entry,
    peak_memory_bytes,
    tagged,
)

# Clips single steps that are far out of line. AdamW divides by the size of the gradients, so the exact threshold
# hardly matters, and 1.0 is the usual one.
MAX_GRAD_NORM = 1.0
SYNC_EVERY = 10  # steps between reads of a GPU's results; on the CPU reading costs nothing


@dataclass(frozen=True)
class TrainingJob:
    base: Base
    model: PeftModel
    rows: TrainingRows
    heldout: Sequence[Encoded]
    section: TrainSection
    seed: int
    checkpoint: Path  # folder to resume from
    checkpoint_every: int  # optimizer steps
    key: Mapping[str, str]  # what makes a checkpoint this run's
    plan: MemoryPlan  # how a step is cut into micro-batches
    methods: tuple[str, ...] = ()  # of the adapter: lora+ and neftune are the loop's part
    adapter: str = ADAPTER  # PEFT's name for it
    compiled: bool = False  # what lies between the matrix products runs compiled

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.section.batch_size)

    @property
    def steps(self) -> int:
        steps = math.ceil(self.section.epochs * self.steps_per_epoch)
        return min(steps, self.section.max_steps or steps)


@dataclass(frozen=True)
class TrainResult:
    progress: Progress
    log: list[LogEntry]
    peak_memory_bytes: int
    kept_step: int | None = None  # with early stopping: the step whose adapter was kept


@dataclass
class _Pending:
    """A step whose loss and gradient norm still lie on the device."""

    event_of: dict[str, float]
    loss: Tensor
    grad_norm: Tensor
    wheres: list[str] = field(default_factory=list)


class Run:
    """A job on its way: `next` gives what its next step trains on, `apply` takes what came of it."""

    def __init__(
        self, name: str, job: TrainingJob, accumulator: Accumulator, accelerator: Accelerator, emit: Emit
    ) -> None:
        """`name`: what its events and a tracker's numbers go by, empty where it is the only one."""
        check_heldout(job.section.patience, len(job.heldout))
        self.job, self.accumulator, self.accelerator, self.emit = job, accumulator, accelerator, tagged(emit, name)
        self.prefix = f"{name}/" if name else ""
        self.named = trained_parameters(job.model, job.adapter)
        # On a CPU packing takes about a millisecond a step, and a thread would take it from the same cores.
        self.ahead = Ahead(self._prepared, job.steps) if job.base.device.type == "cuda" else None
        self.optimizer = Optimizer(self.named, job.section, job.methods)
        self.noise = EmbeddingNoise(job.seed) if "neftune" in job.methods else None
        self.progress, self.log, self.best = Progress(), list[LogEntry](), Best(job.section.patience)
        self.pending: list[_Pending] = []
        self.sync_every = SYNC_EVERY if job.base.device.type == "cuda" else 1
        self.order: tuple[int, Sequence[int]] = (-1, ())
        self._resume()
        if accelerator.num_processes > 1:  # a start that comes from an SVD may differ from machine to machine
            broadcast(self.optimizer.values)
        self.meter = Meter(self.progress.seconds)

    @property
    def done(self) -> bool:
        return self.progress.step >= self.job.steps or self.best.done

    def noisy(self) -> AbstractContextManager[object]:
        """Inside, NEFTune's noise is added if the job asks for it."""
        return self.noise.on(self.job.base.model) if self.noise else nullcontext()

    def next(self) -> Step:
        """The examples of the next step, packed."""
        if self.noise:
            self.noise.step = self.progress.step
        return (self.ahead or self._prepared)(self.progress.step)

    def apply(self, step: Step, loss: Tensor, received: list[int]) -> int:
        """Apply the gradients of a step; return the signal that asks to stop, or 0."""
        stop = self._reduce(loss, received)
        norm = self.optimizer.clip(MAX_GRAD_NORM)
        rate = learning_rate(self.progress.step, self.job.steps, self.job.section)
        self.optimizer.step(rate, norm.isfinite() & loss.isfinite())
        self._note(step.batch, step.count, (loss, norm), rate)
        return stop

    def result(self) -> TrainResult:
        """What came out; with early stopping, the best adapter is put back first."""
        self._keep_best()
        return TrainResult(self.progress, self.log, peak_memory_bytes(self.job.base.device), self.best.step)

    def checkpoint(self) -> None:
        """Write what the run needs to go on."""
        if self.accelerator.is_main_process:
            state = RunState(self.progress, self.log, self.best)
            save_checkpoint(self.job.checkpoint, self.job.key, self.named, self.optimizer, state)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """End what runs beside it."""
        if self.ahead is not None:
            self.ahead.close()

    def _resume(self) -> None:
        if not has_checkpoint(self.job.checkpoint):
            return
        check_key(self.job.checkpoint, self.job.key)
        restored = load_checkpoint(self.job.checkpoint, self.named, self.optimizer, self.job.section.patience)
        self.progress, self.log, self.best = restored.progress, restored.log, restored.best
        self.emit(NoticeEvent(f"resuming at step {self.progress.step} of {self.job.steps} from {self.job.checkpoint}"))

    def _prepared(self, step: int) -> Step:
        return self.accumulator.collate(self._batch(step), self.job.adapter)

    def _batch(self, step: int) -> list[Encoded]:
        epoch, position = divmod(step, self.job.steps_per_epoch)
        if self.order[0] != epoch:
            self.order = (epoch, self.job.rows.epoch(epoch, self.job.seed))
        size = self.job.section.batch_size
        return self.job.rows.take(self.order[1][position * size : (position + 1) * size])

    def _reduce(self, loss: Tensor, received: list[int]) -> int:
        """Sum gradients, loss and the wish to stop over the processes, in one transfer."""
        signal_number = received[0] if received else 0
        if self.accelerator.num_processes == 1:
            return signal_number
        gradient, extra = self.optimizer.gradient, torch.stack([loss, loss.new_tensor(float(signal_number))])
        flat = self.accelerator.reduce(torch.cat([gradient, extra]), reduction="sum")
        gradient.copy_(flat[:-2])
        loss.copy_(flat[-2])
        # Processes may have got the signal a step apart: they all see the sum.
        return min(int(flat[-1]), signal.SIGTERM) and (signal_number or signal.SIGTERM)

    def _note(self, batch: Sequence[Encoded], count: int, result: tuple[Tensor, Tensor], rate: float) -> None:
        """Queue the step's facts; report them when it is time to read the device."""
        tokens = sum(len(row.ids) for row in batch)
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.trained_tokens += count
        facts = {
            "step": self.progress.step,
            "learning_rate": rate,
            "tokens": tokens,
            "trained_tokens": count,
            "epoch": self.progress.step / self.job.steps_per_epoch,
        }
        self.pending.append(_Pending(facts, *result, [row.where for row in batch]))
        epoch_done = self.progress.step % self.job.steps_per_epoch == 0
        last = self.progress.step == self.job.steps
        if len(self.pending) >= self.sync_every or epoch_done or last:
            self._flush()
        if (epoch_done or last) and self.job.heldout:
            self._score_heldout()
        self.progress.seconds = self.meter.seconds

    def _flush(self) -> None:
        """Read what lies on the device, report it, and stop at anything that is not finite."""
        rate = self.meter.rate(sum(int(p.event_of["tokens"]) for p in self.pending))
        memory = peak_memory_bytes(self.job.base.device)
        for item in self.pending:
            loss, norm = float(item.loss), float(item.grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"step {int(item.event_of['step'])}: loss {loss}, gradient norm {norm}; nothing of it was applied. "
                    f"Its examples: {', '.join(item.wheres)}",
                    fix="lower train.learning_rate, or look at these examples",
                )
            event = StepEvent(
                steps=self.job.steps,
                loss=loss,
                grad_norm=norm,
                tokens_per_second=rate,
                seconds=self.meter.seconds,
                memory_bytes=memory,
                **item.event_of,  # type: ignore[arg-type]
            )
            self._report(event)
        self.pending.clear()

    def _score_heldout(self) -> None:
        loss = torch.zeros((), dtype=torch.float64, device=self.job.base.device)
        if self.accelerator.is_main_process:
            model, isolate = self.job.base.model, self.job.base.packs
            with self.accumulator.alone(self.job.adapter):
                scores = score_rows(model, self.job.heldout, SCORING_TOKENS, isolate=isolate)
            loss += sum(s.nll for s in scores) / max(1, sum(s.tokens for s in scores))
            self._report(HeldoutEvent(self.progress.step, float(loss)))
        if self.best.patience is not None:  # whether to go on is decided by the same number everywhere
            if self.accelerator.num_processes > 1:
                loss = self.accelerator.reduce(loss, reduction="sum")
            self.best.note(self.progress.step, float(loss), self.named)

    def _keep_best(self) -> None:
        """With early stopping, make the best adapter the run's, and say which it is."""
        if self.best.step is None:
            return
        self.best.put_back(self.named)
        epoch, loss = self.best.step / self.job.steps_per_epoch, dict(self.best.losses)[self.best.step]
        stopped = f"stopped after step {self.progress.step} of {self.job.steps}; " if self.best.done else ""
        kept = f"the adapter of epoch {epoch:g} (step {self.best.step}) is kept, held-out loss {loss:.4f}"
        self.emit(NoticeEvent(stopped + kept))

    def _report(self, event: StepEvent | HeldoutEvent) -> None:
        entry = log_entry(event)
        self.log.append(entry)
        if self.accelerator.is_main_process:
            self.emit(event)
            self.accelerator.log({self.prefix + k: v for k, v in entry.items() if k != "step"}, step=event.step)
