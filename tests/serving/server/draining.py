"""Servers that are told to stop: run as `python -m tests.serving.server.draining STORE BASE TRIALS`.

One process imports everything once and forks for every trial, before it has any thread; start it with
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from finetune.model.base import Base, load_base
from finetune.recipe import BaseSection
from finetune.serving.bank import AdapterBank
from finetune.serving.engine import Engine
from finetune.serving.server.app import create_app
from finetune.serving.server.options import Options
from finetune.serving.server.run import Server, address, bind

PATIENCE = 600.0  # seconds; a clock goes on while a busy machine stops the processes, and no trial is about time


def serve(base: Base, store: Path, ready: int) -> None:
    bank = AdapterBank(base, store=store)
    bank.load(store / "a0")
    engine = Engine(base, bank)
    engine.start()
    bound = bind("127.0.0.1", 0)
    app = create_app(engine, store=store, options=Options(grace=PATIENCE))

    def tell() -> None:
        os.write(ready, address(bound).encode())

    Server(app, on_ready=tell).run([bound])


def trial(base: Base, store: Path, delay: float) -> tuple[int, bool, int]:
    """Return the exit code, whether the stream that was running came to its end, and what a new request got."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            serve(base, store, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    port = int(os.read(reading, 100).decode().rpartition(":")[2])
    os.close(reading)
    late = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    late.request("GET", "/health")
    late.getresponse().read()
    running = ask(port, max_tokens=150, stream=True, temperature=1.2, seed=3)
    answer = running.getresponse()
    answer.readline()
    time.sleep(delay)
    os.kill(child, signal.SIGTERM)
    status = after_the_signal(late)
    whole = answer.read().endswith(b"data: [DONE]\n\n")
    for connection in (running, late):
        connection.close()
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), whole, status


def after_the_signal(connection: http.client.HTTPConnection) -> int:
    """What a request gets once the signal is heard: 503, or 0 where the answer ended first and the server with it."""
    deadline = time.monotonic() + PATIENCE
    status = 200
    while status == 200 and time.monotonic() < deadline:
        try:
            connection.request("GET", "/v1/models")
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return 0
        status = answer.status
    return status


def ask(port: int, key: str = "", **options: object) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    told = {"model": "a0", "messages": [{"role": "user", "content": "How much is it?"}], **options}
    head = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(told), head)
    return connection


if __name__ == "__main__":
    folder, model, trials = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    section = BaseSection(model=model, quantization="none", dtype="float32")
    loaded, rng = load_base(section, torch.device("cpu")), random.Random(0)
    print(json.dumps([trial(loaded, folder, rng.uniform(0, 0.3)) for _ in range(trials)]))
