"""A real server on a loopback port, in a thread: a random Llama, eight adapters, two keys."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI

from finetune.model.base import Base, load_base
from finetune.recipe import BaseSection
from finetune.serving.bank import AdapterBank
from finetune.serving.engine import Engine
from finetune.serving.limits import EngineLimits
from finetune.serving.server.app import App, create_app
from finetune.serving.server.options import Options, host_names
from finetune.serving.server.run import Server, address, bind
from finetune.store.folders import CARD
from tests.serving.making import card, write_adapter

KEY, ADMIN = "sk-test", "sk-admin"
ADAPTERS = tuple(f"a{number}" for number in range(8))
SYSTEM = "Be short."  # what a7 was trained with
OPTIONS = Options(api_key=KEY, admin_key=ADMIN, hosts=host_names("127.0.0.1"), max_body=64 * 1024, grace=20.0)
SIZE = 0.1  # of an adapter's numbers: every one has a voice of its own
POLL = 0.01  # seconds
LIMITS = EngineLimits(max_rows=16, max_waiting=64)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The envelope's inside; every field of it is there."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error


@dataclass(frozen=True)
class Live:
    app: App
    engine: Engine
    server: Server
    port: int

    @property
    def model(self) -> str:
        return self.app.catalogue.base_id

    @property
    def store(self) -> Path:
        return self.app.catalogue.store

    @contextmanager
    def client(self, key: str = KEY) -> Iterator[OpenAI]:
        url = f"http://127.0.0.1:{self.port}/v1"
        with OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
            yield client

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        key: str | None = KEY,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request by hand; a body that is no bytes is sent as JSON, an iterator in chunks."""
        sent: Any = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body).encode()
        head = {"Content-Type": "application/json", **(headers or {})}
        if key is not None:
            head["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, sent, head)
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def load(self, name: str) -> Reply:
        return self.call("POST", "/v1/load_lora_adapter", {"lora_name": name}, ADMIN)

    def unload(self, name: str) -> Reply:
        return self.call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, ADMIN)


Begin = Callable[[Options, EngineLimits], Live]


@pytest.fixture(scope="session")
def section(model_folder: Path) -> BaseSection:
    return BaseSection(model=str(model_folder), quantization="none", dtype="float32")


@pytest.fixture(scope="session")
def bare(section: BaseSection) -> Base:
    """The base alone, for reading."""
    return load_base(section, torch.device("cpu"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, bare: Base) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for seed, name in enumerate(ADAPTERS, 1):
        write_adapter(folder / name, bare, seed, size=SIZE)
    (folder / "a7" / CARD).write_text(card("a7", bare, SYSTEM).model_dump_json())
    return folder


@contextmanager
def served(base: Base, store: Path, options: Options = OPTIONS, limits: EngineLimits = LIMITS) -> Iterator[Live]:
    """Serve until the block ends."""
    bank = AdapterBank(base, store=store)
    for name in ADAPTERS:
        bank.load(store / name)
    engine = Engine(base, bank, limits)
    engine.start()
    app = create_app(engine, store=store, options=options)
    bound = bind("127.0.0.1", 0)
    port = int(address(bound).rpartition(":")[2])
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Live(app, engine, server, port)
    finally:
        server.should_exit = True
        thread.join()
        engine.stop(0)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> float:
    """Wait until something is true and return how long it took; while the process is stopped, no time passes."""
    began = time.monotonic()
    for _ in range(int(seconds / POLL)):
        if condition():
            return time.monotonic() - began
        time.sleep(POLL)
    raise AssertionError("it did not happen")


@pytest.fixture(scope="session")
def live(section: BaseSection, store: Path) -> Iterator[Live]:
    with served(load_base(section, torch.device("cpu")), store) as live:
        yield live


@pytest.fixture(scope="session")
def client(live: Live) -> Iterator[OpenAI]:
    with live.client() as client:
        yield client


@pytest.fixture
def small(section: BaseSection, store: Path) -> Iterator[Live]:
    """A server that is full with four answers running and four waiting, and that tests may break."""
    base = load_base(section, torch.device("cpu"))
    with served(
        base, store, replace(OPTIONS, header_timeout=1.0, body_timeout=1.0), EngineLimits(max_rows=4, max_waiting=4)
    ) as live:
        yield live
