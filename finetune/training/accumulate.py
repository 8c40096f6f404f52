"""The gradients of one optimizer step: cut into micro-batches, forward, backward; smaller ones where memory ends.

However a step is cut, the same sum of the same terms comes out, so running out of memory costs time and nothing else.
Steps of several adapters are computed together: their micro-batches share rows, and each adapter acts on its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data.batches import MicroBatch, best_fit, join, pack, share_out, trained_tokens
from finetune.data.encoding import Encoded
from finetune.errors import TrainingError
from finetune.model.attention import ALIGN
from finetune.model.base import Base
from finetune.model.dense import keep_dense
from finetune.model.fused import Route, routed
from finetune.model.methods import ADAPTER
from finetune.model.recompute import recompute_layers
from finetune.training.budget import MemoryPlan, is_out_of_memory
from finetune.training.loss import output_head, shared_nll
from finetune.training.telemetry import Emit, NoticeEvent


@dataclass(frozen=True)
class Step:
    """The examples of one optimizer step, and this process's share of them as it is run."""

    batch: list[Encoded]
    count: int  # trained tokens of the batch
    mine: list[Encoded]
    micros: list[MicroBatch]
    tokens: int  # the budget that they were packed for
    adapter: str = ADAPTER  # whose step it is


class _Piece(NamedTuple):
    """One micro-batch of one of the steps that are computed together."""

    step: Step
    micro: MicroBatch


class Accumulator:
    """Adds up the gradients of steps under a memory plan, which it tightens where memory runs out."""

    def __init__(
        self,
        base: Base,
        parameters: Sequence[Tensor],
        plan: MemoryPlan,
        accelerator: Accelerator,
        emit: Emit,
        *,
        together: bool = False,
    ) -> None:
        """`together`: several adapters are on the model, so each step's own must be named to its layers."""
        self.base, self.parameters, self.emit, self.together = base, parameters, emit, together
        self.process = (accelerator.process_index, accelerator.num_processes)
        self.head = output_head(base.model)
        # In a shared row, an adapter's tokens begin and end at a multiple of this.
        self.align = ALIGN if base.device.type == "cpu" else 1
        self.plan = plan
        self._follow(plan)

    def collate(self, batch: list[Encoded], adapter: str = ADAPTER) -> Step:
        """Take this process's share of a step and pack it."""
        index, count = self.process
        mine, tokens = share_out(batch, count)[index], self.plan.tokens
        micros = pack(mine, tokens, isolate=self.base.packs)
        if self.base.device.type == "cuda":
            micros = [_pinned(micro) for micro in micros]
        return Step(batch, trained_tokens(batch), mine, micros, tokens, adapter)

    def alone(self, adapter: str) -> AbstractContextManager[None]:
        """Inside, this adapter acts and no other."""
        return routed([Route(adapter)]) if self.together else nullcontext()

    def add(self, steps: Sequence[Step]) -> list[Tensor]:
        """Add the gradients of this process's share of each step; return its part of each step's mean loss.

        Raises TrainingError if a single example does not fit into memory.
        """
        random = torch.get_rng_state(), torch.cuda.get_rng_state() if self.base.device.type == "cuda" else None
        while True:
            losses, failed = self._attempt(self._rows([self._packed(step) for step in steps]))
            if failed is None:
                return [losses[step.adapter] for step in steps]
            self._discard(random)
            self._tighten(failed)

    def close(self) -> None:
        """Leave the model as it was."""
        self._follow(MemoryPlan(self.plan.tokens))

    def _follow(self, plan: MemoryPlan) -> None:
        recompute_layers(self.base.model, plan.recompute)
        keep_dense(self.base.model, plan.dense_bytes)

    def _packed(self, step: Step) -> Step:
        """The step packed for the plan as it is now."""
        if step.tokens == self.plan.tokens:
            return step
        micros = pack(step.mine, self.plan.tokens, isolate=self.base.packs)
        return replace(step, micros=micros, tokens=self.plan.tokens)

    def _rows(self, steps: Sequence[Step]) -> list[list[_Piece]]:
        """Which micro-batches are computed in one row: each alone, or those of several adapters together."""
        pieces = [_Piece(step, micro) for step in steps for micro in step.micros]
        if not self.together:
            return [[piece] for piece in pieces]
        bins = best_fit([-(-piece.micro.tokens // self.align) * self.align for piece in pieces], self.plan.tokens)
        return [[pieces[i] for i in sorted(members)] for members in bins]

    def _attempt(self, rows: Sequence[list[_Piece]]) -> tuple[dict[str, Tensor], list[_Piece] | None]:
        """Run forward and backward; return the loss of each adapter and the row at which memory ran out."""
        losses: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.base.device))
        for row in rows:
            try:
                parts = self._forward_backward(row)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return losses, row
            for piece, part in zip(row, parts, strict=True):
                losses[piece.step.adapter] = losses[piece.step.adapter] + part
        return losses, None

    def _forward_backward(self, row: Sequence[_Piece]) -> Sequence[Tensor]:
        """Part of the mean loss of each piece's step; the gradients are added to what is there."""
        model, micros = self.base.model, [piece.micro for piece in row]
        if self.together:
            batch, bounds = join(micros, self.align)
            pairs = zip(row, bounds, strict=True)
            routes = [Route(piece.step.adapter, start, end) for piece, (start, end) in pairs]
            acting: AbstractContextManager[None] = routed(routes)
        else:
            (batch,), acting = micros, nullcontext()
        shares = [(piece.micro.trained, piece.step.count) for piece in row]
        with acting:
            with self._offloaded():
                losses = shared_nll(model, self.head, batch.to(self.base.device), shares)
            torch.stack(losses).sum().backward()
        return [loss.detach() for loss in losses]

    def _offloaded(self) -> AbstractContextManager[object]:
        return torch.autograd.graph.save_on_cpu(pin_memory=True) if self.plan.offload else nullcontext()

    def _discard(self, random: tuple[Tensor, Tensor | None]) -> None:
        """Put gradients and random state back to where the step began; between steps gradients are zero."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        torch.set_rng_state(random[0])
        if random[1] is not None:
            torch.cuda.set_rng_state(random[1])
            torch.cuda.empty_cache()

    def _tighten(self, failed: Sequence[_Piece]) -> None:
        """Ask for less memory next time. Raises TrainingError if there is nothing left to save."""
        size = sum(piece.micro.tokens for piece in failed)
        if self.plan.dense_bytes:
            self.plan = replace(self.plan, dense_bytes=0)
        elif sum(len(piece.micro.rows) for piece in failed) > 1:
            self.plan = replace(self.plan, tokens=size // 2)
        elif self.plan.recompute != 1:
            self.plan = replace(self.plan, recompute=1)
        elif self.base.device.type == "cuda" and not self.plan.offload:
            self.plan = replace(self.plan, offload=True)
        else:
            (step, micro), *_ = failed
            where = step.mine[micro.rows[0]].where
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
