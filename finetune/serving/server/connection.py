"""uvicorn's connection, with what it lacks: a time limit for a request's head, a limit on connections, an open ear."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from finetune.serving.server.options import Options


class Connection(H11Protocol):
    """One client; `abort` ends it at once, whatever is still to be written."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Options,
    ) -> None:
        super().__init__(config, server_state, {**app_state, "abort": self.abort}, _loop)
        self.limits = limits
        self._deadline: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_is_here()
            self._read_on()
        elif self._deadline is None:  # the first bytes of the next request of a kept connection
            self._expect_head()

    def _read_on(self) -> None:
        """Read on while an answer is being made, or nobody would see that its client has gone.

        uvicorn stops reading when more comes behind a request: an empty line, or the next request.
        """
        early, _ = self.conn.trailing_data
        if early and self.flow.read_paused and len(early) <= self.limits.max_body:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self._head_is_here()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.limits.header_timeout, self.abort)

    def _head_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
