"""Bodies that are too large or too slow, and clients that do not read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.serving.server.errors import ApiError
from finetune.serving.server.options import Options

LINGER = 2.0  # seconds of reading on after a refusal, so that a client still sending gets to see it
LINGER_BODIES = 8  # and at most this many times the limit
_CLOSE = {"Connection": "close"}


class Limits:
    """Reads the body within its limits before the app is called, and bounds every write."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        bounded = _bounded(send, self.options.write_timeout, scope.get("state", {}).get("abort"))
        headers = Headers(scope=scope)
        if _length(headers) > self.options.max_body:
            if headers.get("expect", "").lower() != "100-continue":
                await self._linger(receive)
            await self._too_large().response()(scope, receive, bounded)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self.options.body_timeout)
        except TimeoutError:
            message = f"The body did not arrive within {self.options.body_timeout:g} s"
            error = ApiError(408, message, code="request_timeout", headers=_CLOSE)
            await error.response()(scope, receive, bounded)
            return
        except ApiError as error:
            await error.response()(scope, receive, bounded)
            return
        if body is not None:
            await self.app(scope, _replayed(body, receive), bounded)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, or None if the client went away. Raises ApiError 413."""
        parts, total = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            total += len(parts[-1])
            if total > self.options.max_body:
                if message.get("more_body"):
                    await self._linger(receive)
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)

    async def _linger(self, receive: Receive) -> None:
        """Read on for a moment and keep nothing: closing at once would reset the connection before the refusal."""
        deadline, left = time.monotonic() + LINGER, LINGER_BODIES * self.options.max_body
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(receive(), seconds)
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    def _too_large(self) -> ApiError:
        message = f"The body is larger than {self.options.max_body} bytes"
        return ApiError(413, message, code="request_too_large", headers=_CLOSE)


def _length(headers: Headers) -> int:
    """Bytes that the head announces; the parser has refused what is no number."""
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() and len(length) < 20 else 0


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give the body out once, then what comes after it: the news that the client has gone."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _bounded(send: Send, seconds: float, abort: Callable[[], None] | None) -> Send:
    """End the connection of a client that does not take what is written."""

    async def write(message: Message) -> None:
        try:
            await asyncio.wait_for(send(message), seconds)
        except TimeoutError:
            if abort is None:
                raise
            abort()

    return write
