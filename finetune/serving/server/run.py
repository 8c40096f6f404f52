"""From options to a running server: bind, load, answer, drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn

from finetune.errors import FinetuneError
from finetune.serving.server.app import App
from finetune.serving.server.connection import Connection

MAX_HEAD = 16 * 1024  # bytes of a request's line and headers
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn, which drains on the first signal and ends at once on the second."""

    def __init__(self, app: App, on_ready: Callable[[], None] = lambda: None) -> None:
        self.app, self.on_ready = app, on_ready
        self._drain: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, limits=app.limits),  # type: ignore[arg-type]
                loop="asyncio",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=app.limits.keep_alive,
                timeout_graceful_shutdown=2,
                h11_max_incomplete_event_size=MAX_HEAD,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    async def drain(self) -> None:
        """Finish what is in flight, then end."""
        await self.app.lifecycle.drain(self.app.limits.grace)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on a signal; without uvicorn's habit of raising it again at the end, so that the exit code is 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _signalled(self, number: int) -> None:
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self.drain())
            return
        # Threads may wait for the engine; nothing is on disk, so nothing can be left half done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number)


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything slow is loaded. Raises FinetuneError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise FinetuneError(f"--host {host} is no address of this machine ({error})") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        fix = "stop what listens there, or take another --port (0: any free one)"
        raise FinetuneError(f"cannot listen on {host} port {port} ({error.strerror})", fix=fix) from None
    return bound


def address(bound: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
