"""One HTTP request's answers while the engine works on them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from finetune.serving.engine import Engine
from finetune.serving.requests import Event, Failure, Finish, Piece, Request
from finetune.serving.server.errors import ApiError, draining
from finetune.serving.tickets import Ticket

NOTE = "X-Finetune-Note"


@dataclass(frozen=True)
class Stamp:
    """What every body and every event of one answer repeats."""

    model: str  # as the client wrote it
    fingerprint: str  # of base and adapter: other weights, another fingerprint
    voice: str | None
    note: str = ""  # what is special about how it is served
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def headers(self) -> dict[str, str]:
        return {NOTE: self.note.encode("ascii", "replace").decode()} if self.note else {}


def submit_all(engine: Engine, requests: Sequence[Request]) -> list[Ticket]:
    """Hand in all requests or none of them."""
    tickets: list[Ticket] = []
    try:
        for request in requests:
            tickets.append(engine.submit(request))
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    return tickets


class Job:
    """Tickets of one request as one stream of events; leaving the context cancels what is unfinished."""

    def __init__(
        self, stamp: Stamp, tickets: Sequence[Ticket], *, prompts: int, timeout: float, done: Callable[[Job], None]
    ) -> None:
        self.stamp, self.tickets, self.prompts = stamp, tickets, prompts
        self.began = time.monotonic()
        self.first: float | None = None  # when the first piece came
        self.finished: dict[int, Finish] = {}
        self._timeout, self._done = timeout, done
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number, ticket in enumerate(tickets):
            ticket.listen(_Listener(loop, self._queue, number))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._done(self)

    def cancel(self) -> None:
        for number, ticket in enumerate(self.tickets):
            if number not in self.finished:
                ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield (choice, event) until every choice has ended. Raises ApiError when time is up or the server stops."""
        open_ends = len(self.tickets)
        while open_ends:
            left = self.began + self._timeout - time.monotonic()
            try:
                number, event = await asyncio.wait_for(self._queue.get(), max(0.0, left))
            except TimeoutError:
                message = f"The answer took longer than {self._timeout:g} s"
                raise ApiError(504, message, kind="server_error", code="timeout") from None
            if isinstance(event, Finish):
                if event.reason == "cancelled":
                    raise draining()
                self.finished[number] = event
            if self.first is None and isinstance(event, Piece):
                self.first = time.monotonic()
            open_ends -= isinstance(event, Finish | Failure)
            yield number, event


@dataclass(frozen=True)
class _Listener:
    """Carries events from the engine's thread to the server's."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[tuple[int, Event]]
    number: int

    def __call__(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who could read
            self.loop.call_soon_threadsafe(self.queue.put_nowait, (self.number, event))
