"""The gradients of one optimizer step: cut into micro-batches, forward, backward; smaller ones where memory ends.

However a step is cut, the same sum of the same terms comes out, so running out of memory costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data.batches import MicroBatch, pack, share_out, trained_tokens
from finetune.data.encoding import Encoded
from finetune.errors import TrainingError
from finetune.model.attention import packed_attention
from finetune.model.base import Base
from finetune.model.dense import keep_dense
from finetune.model.recompute import recompute_layers
from finetune.training.budget import MemoryPlan, is_out_of_memory
from finetune.training.loss import output_head, trained_nll
from finetune.training.telemetry import Emit, NoticeEvent


@dataclass(frozen=True)
class Step:
    """The examples of one optimizer step, and this process's share of them as it is run."""

    batch: list[Encoded]
    count: int  # trained tokens of the batch
    mine: list[Encoded]
    micros: list[MicroBatch]
    tokens: int  # the budget that they were packed for


class Accumulator:
    """Adds up the gradients of steps under a memory plan, which it tightens where memory runs out."""

    def __init__(
        self, base: Base, parameters: Sequence[Tensor], plan: MemoryPlan, accelerator: Accelerator, emit: Emit
    ) -> None:
        self.base, self.parameters, self.emit = base, parameters, emit
        self.process = (accelerator.process_index, accelerator.num_processes)
        self.head = output_head(base.model)
        self.plan = plan
        self._follow(plan)

    def collate(self, batch: list[Encoded]) -> Step:
        """Take this process's share of a step and pack it."""
        index, count = self.process
        mine, tokens = share_out(batch, count)[index], self.plan.tokens
        micros = pack(mine, tokens, isolate=self.base.packs)
        if self.base.device.type == "cuda":
            micros = [_pinned(micro) for micro in micros]
        return Step(batch, trained_tokens(batch), mine, micros, tokens)

    def add(self, step: Step) -> Tensor:
        """Add the gradients of this process's share; return its part of the step's mean loss.

        Raises TrainingError if a single example does not fit into memory.
        """
        missing = [parameter.grad is None for parameter in self.parameters]
        random = torch.get_rng_state(), torch.cuda.get_rng_state() if self.base.device.type == "cuda" else None
        while True:
            micros = step.micros
            if step.tokens != self.plan.tokens:  # packed before memory ran out
                micros = pack(step.mine, self.plan.tokens, isolate=self.base.packs)
            loss, failed = self._attempt(micros, step.count)
            if failed is None:
                return loss
            self._discard(missing, random)
            self._tighten(failed, step.mine)

    def close(self) -> None:
        """Leave the model as it was."""
        self._follow(MemoryPlan(self.plan.tokens))

    def _follow(self, plan: MemoryPlan) -> None:
        recompute_layers(self.base.model, plan.recompute)
        keep_dense(self.base.model, plan.dense_bytes)

    def _attempt(self, micros: Sequence[MicroBatch], count: int) -> tuple[Tensor, MicroBatch | None]:
        """Run forward and backward; return the loss and the micro-batch at which memory ran out."""
        loss = torch.zeros((), device=self.base.device)
        with packed_attention(self.base.model):
            for micro in micros:
                try:
                    with self._offloaded():
                        part = trained_nll(self.base.model, self.head, micro.to(self.base.device), count)
                    part.backward()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    return loss, micro
                loss += part.detach()
        return loss, None

    def _offloaded(self) -> AbstractContextManager[object]:
        return torch.autograd.graph.save_on_cpu(pin_memory=True) if self.plan.offload else nullcontext()

    def _discard(self, missing: Sequence[bool], random: tuple[Tensor, Tensor | None]) -> None:
        """Put gradients and random state back to where the step began; between steps gradients are zero."""
        for parameter, absent in zip(self.parameters, missing, strict=True):
            if absent:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()
        torch.set_rng_state(random[0])
        if random[1] is not None:
            torch.cuda.set_rng_state(random[1])
            torch.cuda.empty_cache()

    def _tighten(self, failed: MicroBatch, mine: Sequence[Encoded]) -> None:
        """Ask for less memory next time. Raises TrainingError if there is nothing left to save."""
        size = failed.input_ids.shape[1]
        if self.plan.dense_bytes:
            self.plan = replace(self.plan, dense_bytes=0)
        elif len(failed.rows) > 1:
            self.plan = replace(self.plan, tokens=size // 2)
        elif self.plan.recompute != 1:
            self.plan = replace(self.plan, recompute=1)
        elif self.base.device.type == "cuda" and not self.plan.offload:
            self.plan = replace(self.plan, offload=True)
        else:
            where = mine[failed.rows[0]].where
            raise TrainingError(
                f"an example of {size:,} tokens does not fit into memory, alone and with every layer recomputed",
                where=where,
                fix="lower data.max_length (with data.too_long: drop) or adapter.r, use quantization: nf4, "
                "or a smaller base; `finetune plan` says what fits",
            )
        self._follow(self.plan)
        self.emit(NoticeEvent(f"out of memory at {size:,} tokens; going on with {self.plan.describe()}: same result"))


class Ahead:
    """Prepares the next step in a thread while this one runs; what goes wrong there is raised here."""

    def __init__(self, make: Callable[[int], Step], steps: int) -> None:
        self.make, self.steps = make, steps
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="collate")
        self.next: tuple[int, Future[Step]] | None = None

    def __call__(self, number: int) -> Step:
        """Return the step of this number and begin with the one after it."""
        if self.next is None or self.next[0] != number:
            self.next = (number, self.pool.submit(self.make, number))
        step = self.next[1].result()
        if number + 1 < self.steps:
            self.next = (number + 1, self.pool.submit(self.make, number + 1))
        return step

    def close(self) -> None:
        """End the thread."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def _pinned(micro: MicroBatch) -> MicroBatch:
    """In memory that a GPU copies from while it computes."""
    return replace(
        micro,
        input_ids=micro.input_ids.pin_memory(),
        labels=micro.labels.pin_memory(),
        position_ids=micro.position_ids.pin_memory(),
    )
