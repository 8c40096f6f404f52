"""Ready, draining, stopped: what is in flight, and the order in which a server ends."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from finetune.serving.engine import Engine
from finetune.serving.server.errors import draining

LAST_WORDS = 2.0  # seconds for responses to be written after their answers have ended
POLL = 0.02


class Lifecycle:
    """Counts requests in flight and turns new ones down once the server drains."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.draining = False
        self.in_flight = 0

    async def drain(self, grace: float) -> bool:
        """Let what is in flight end within `grace` seconds, then cancel it; say whether all of it ended by itself."""
        self.draining = True
        began = time.monotonic()
        whole = await self._idle(began + grace)
        left = max(0.0, began + grace - time.monotonic())
        whole = await asyncio.to_thread(self.engine.stop, left) and whole
        await self._idle(time.monotonic() + LAST_WORDS)
        return whole

    async def _idle(self, deadline: float) -> bool:
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(POLL)
        return not self.in_flight


class InFlight:
    """Counts requests to the API while they run; 503 once the server drains."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app, self.lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        if self.lifecycle.draining:
            await draining().response()(scope, receive, send)
            return
        self.lifecycle.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.in_flight -= 1
