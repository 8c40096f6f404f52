"""Many requests at once over one model: each with its own adapter, settings and place in its answer.

`submit` from any thread, one thread does the work (`start`), or the caller's own (`run`). Requests join and leave
at every step; one that fails does not disturb the others.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from finetune.errors import AdapterError, FinetuneError, ModelError
from finetune.model.base import Base
from finetune.serving.bank import AdapterBank, Lease
from finetune.serving.forward import Forward, evaluating
from finetune.serving.generation import make_rows
from finetune.serving.lanes import nowhere
from finetune.serving.limits import DEFAULT, ContextTooLong, EngineLimits, EngineStats, EngineStopped, QueueFull
from finetune.serving.prefix import PrefixCache
from finetune.serving.requests import Failure, Finish, Request
from finetune.serving.rows import Row
from finetune.serving.sampling import NOT_FINITE, Choice, Draws
from finetune.serving.scheduler import Scheduler
from finetune.serving.structured import Grammars, JsonConstraint, SchemaError
from finetune.serving.text import AnswerReader
from finetune.serving.tickets import Narrator, Ticket, TokenTexts

PART = {"cpu": 512}  # tokens of prompts that are read between two tokens of the running answers
PART_ELSEWHERE = 4096


@dataclass(eq=False)
class _Job:
    """A request that waits or runs."""

    ticket: Ticket
    row: Row
    lease: Lease | None
    narrator: Narrator
    began: float


class Engine:
    """Answers requests with the base or any adapter of the bank."""

    def __init__(self, base: Base, bank: AdapterBank | None, limits: EngineLimits = DEFAULT) -> None:
        self.base, self.bank, self.limits = base, bank, limits
        self._forward = Forward(base.model)
        self._prefix = PrefixCache(limits.prefix_bytes) if limits.prefix_bytes else None
        self._scheduler = Scheduler(
            self._forward,
            bank.routed if bank is not None else nowhere,
            max_rows=limits.max_rows,
            part=PART.get(base.device.type, PART_ELSEWHERE),
            budget=limits.cache_tokens,
            prefix=self._prefix,
        )
        self._grammars = Grammars(base.tokenizer, self._forward.vocabulary, base.template.stop_ids)
        self._texts = TokenTexts(base.tokenizer)
        self._changed = threading.Condition()  # guards what follows
        self._arrived: deque[_Job] = deque()
        self._cancelled: list[Ticket] = []
        self._stopping = self._aborting = False
        self._totals: Counter[str] = Counter()
        self._seconds = 1.0  # that an answer takes, about
        self._thread: threading.Thread | None = None
        self._turns = threading.Lock()  # who holds it drives the model
        self._jobs: dict[Row, _Job] = {}  # of whoever drives

    def submit(self, request: Request) -> Ticket:
        """Queue a request and return its ticket. Any thread.

        Raises QueueFull, EngineStopped, ContextTooLong, ModelError (a wrong prompt), AdapterError (an unknown
        adapter) or SchemaError.
        """
        self._refuse_if_full()
        job = self._job(request, told=True)
        try:
            with self._changed:
                self._refuse_if_full()
                self._arrived.append(job)
                self._changed.notify_all()
        except FinetuneError:
            _release(job)
            raise
        return job.ticket

    def run(self, requests: Sequence[Request]) -> list[Finish]:
        """Answer requests in the caller's thread, in order, without the queue's limit.

        Raises what `submit` raises, and the error of a request that fails.
        """
        jobs = self._all_or_none(requests)
        with self._changed:
            alone = self._thread is None
            if not alone:
                self._arrived.extend(jobs)
                self._changed.notify_all()
        if alone:
            self._drive(jobs)
        ends = [list(job.ticket.events())[-1] for job in jobs]
        for end in ends:
            if isinstance(end, Failure):
                raise end.error
        return [end for end in ends if isinstance(end, Finish)]

    def start(self) -> None:
        """Let a thread of the engine's own do the work."""
        with self._changed:
            if self._thread is None:
                self._stopping = self._aborting = False
                self._thread = threading.Thread(target=self._work, name="finetune-engine", daemon=True)
                self._thread.start()

    def stop(self, grace: float) -> bool:
        """Take no more requests, finish those that are here within `grace` seconds, cancel the rest.

        Returns whether all were finished.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(grace)
        drained = thread is None or not thread.is_alive()
        with self._changed:
            self._aborting = True
            self._changed.notify_all()
        if thread is not None:
            thread.join()
            self._thread = None
        with self._changed:
            left = list(self._arrived)
            self._arrived.clear()
        for job in left:
            self._end(job, job.narrator.finish("cancelled"))
        return drained and not left

    @property
    def stats(self) -> EngineStats:
        with self._changed:
            waiting, totals = self._waiting, dict(self._totals)
        prefix_tokens = self._prefix.tokens if self._prefix is not None else 0
        return EngineStats(len(self._scheduler.running), waiting, prefix_tokens=prefix_tokens, **totals)

    @property
    def _waiting(self) -> int:
        return len(self._arrived) + len(self._scheduler.waiting)

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            self._cancelled.append(ticket)
            self._changed.notify_all()

    def _refuse_if_full(self) -> None:
        with self._changed:
            if self._stopping:
                raise EngineStopped("the engine is being stopped and takes no more requests")
            if (waiting := self._waiting) >= self.limits.max_waiting:
                raise QueueFull(waiting, max(1.0, self._seconds * (waiting + 1) / self.limits.max_rows))

    def _job(self, request: Request, told: bool) -> _Job:
        """Check a request and take its adapter. Raises what `submit` raises, but for the queue."""
        context = self._forward.context
        if context is not None and len(request.prompt) >= context:
            what = f"the prompt has {len(request.prompt)} tokens, the model's context has {context}"
            raise ContextTooLong(what, fix="shorten the prompt: the answer needs room, too")
        constraint = None if request.schema is None else self._grammars.constraint(request.schema)
        draws = Draws(request.settings, request.seed, request.prompt, request.logprobs, constraint)
        reader = AnswerReader(self.base.tokenizer, request.settings.stop)
        (row,) = make_rows(self._forward, [draws], self.base.template.stop_ids, reader)
        lease = self._lease(request.voice)
        if lease is not None:
            row.slot, row.digest, row.mixes = lease.slot, lease.digest, lease.mixes
        ticket = Ticket(request, self._cancel)
        return _Job(ticket, row, lease, Narrator(row, self._texts, told=told), time.monotonic())

    def _all_or_none(self, requests: Sequence[Request]) -> list[_Job]:
        jobs: list[_Job] = []
        try:
            for request in requests:
                jobs.append(self._job(request, told=False))
        except BaseException:
            for job in jobs:
                _release(job)
            raise
        return jobs

    def _lease(self, voice: str | None) -> Lease | None:
        if self.bank is not None:
            return self.bank.lease(voice)
        if voice is not None:
            raise AdapterError(f"no adapter {voice!r}: the base alone is loaded")
        return None

    def _work(self) -> None:
        with self._turns, evaluating(self.base.model), self._cleared():
            while self._wait():
                self._turn()

    def _drive(self, jobs: Sequence[_Job]) -> None:
        with self._turns, evaluating(self.base.model), self._cleared():
            with self._changed:
                self._take(jobs)
            while any(job.ticket.end is None for job in jobs):
                self._turn()

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """Whoever stops driving, for whatever reason, leaves nobody waiting."""
        try:
            yield
        finally:
            self._scheduler.drop_lanes()
            for job in list(self._jobs.values()):
                self._leave(job, job.narrator.finish("cancelled"))

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the engine is to stop and nothing is left, or at once."""
        with self._changed:
            while not (self._arrived or self._cancelled or self._jobs or self._stopping):
                self._changed.wait()
            return not self._aborting and bool(self._arrived or self._jobs or not self._stopping)

    def _turn(self) -> None:
        """Take what came, let go what was cancelled, run one step, tell what it gave."""
        with self._changed:
            cancelled = set(self._cancelled)
            self._cancelled.clear()
            self._take(self._arrived)
            self._arrived.clear()
        try:
            for job in [job for job in self._jobs.values() if job.ticket in cancelled] if cancelled else ():
                self._leave(job, job.narrator.finish("cancelled"))
            if self._jobs:
                self._totals["steps"] += 1
                for row, choice in self._scheduler.step():
                    self._advance(self._jobs[row], choice)
        except Exception as error:
            self._fail_running(error)

    def _take(self, jobs: Iterable[_Job]) -> None:
        for job in jobs:
            self._jobs[job.row] = job
            self._scheduler.waiting.append(job.row)

    def _advance(self, job: _Job, choice: Choice) -> None:
        row = job.row
        if choice.token == NOT_FINITE:
            who = f"adapter {job.ticket.request.voice!r}" if job.ticket.request.voice else "the base"
            what = f"{who} gives NaN or infinite logits at token {row.tokens + 1} of an answer"
            self._leave(job, Failure(ModelError(what, fix="load a sound one, or the base in float32")), sound=False)
            return
        row.append(choice.token)
        self._totals["completion_tokens"] += 1
        job.narrator.tell(job.ticket, choice)
        constraint = row.draws.constraint
        if isinstance(constraint, JsonConstraint) and constraint.error is not None:
            self._leave(job, Failure(SchemaError(f"the answer cannot follow its JSON schema: {constraint.error}")))
        elif row.finished:
            self._leave(job, job.narrator.finish("stop" if row.stopped else "length"))

    def _fail_running(self, error: Exception) -> None:
        """What a step was working on is lost, what waits is not."""
        self._scheduler.drop_lanes()
        shown = error
        if not isinstance(error, FinetuneError):
            shown = ModelError(f"a step of the engine failed: {type(error).__name__}: {error}")
            shown.__cause__ = error
        waiting = set(self._scheduler.waiting)
        for job in [job for row, job in self._jobs.items() if row not in waiting]:
            self._leave(job, Failure(shown))

    def _leave(self, job: _Job, end: Finish | Failure, sound: bool = True) -> None:
        del self._jobs[job.row]
        try:
            self._scheduler.leave([job.row], sound)
        finally:
            self._end(job, end)

    def _end(self, job: _Job, end: Finish | Failure) -> None:
        _release(job)
        row, kind = job.row, "failed" if isinstance(end, Failure) else "finished"
        kind = "cancelled" if isinstance(end, Finish) and end.reason == "cancelled" else kind
        self._totals.update({kind: 1, "prompt_tokens": len(row.prompt), "cached_tokens": row.cached})
        if kind == "finished":
            self._seconds += 0.1 * (time.monotonic() - job.began - self._seconds)
        job.narrator.close(job.ticket, end)


def _release(job: _Job) -> None:
    if job.lease is not None:
        job.lease.release()
