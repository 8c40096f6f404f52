"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from finetune.serving.server.errors import ApiError
from finetune.serving.server.jobs import Job

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
CLIENT_GONE = 499  # in the metrics; nobody is left to read it


class EventStream(Response):
    """The chunks of one job as events, ended by [DONE], or by an event with the error envelope."""

    def __init__(self, job: Job, chunks: AsyncIterator[dict[str, Any]]) -> None:
        self.job, self.chunks = job, chunks
        self.status_code, self.background = 200, None
        # A proxy that collected the events would undo the streaming.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **job.stamp.headers})
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.job:
            await unless_gone(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.chunks:
                yield event(chunk)
        except ApiError as error:
            yield event(error.envelope())
        else:
            yield DONE


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Do the work; if the client goes away first, cancel it and return None."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
