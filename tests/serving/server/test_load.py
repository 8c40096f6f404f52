"""Many clients at once: nobody gets another's answer, nobody waits for ever, nothing is left behind."""

from __future__ import annotations

import gc
import http.client
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune.model.base import weights_sha256
from tests.serving.server import draining
from tests.serving.server.conftest import ADAPTERS, KEY, Live, wait_for

QUESTIONS = ("How much is it?", "Two large pizzas, please.", "Hello there!", "What does a medium margherita cost?")
NEXT = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATH = "/v1/chat/completions"


def body(model: str, question: str = QUESTIONS[0], **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 10, **options}


def text(live: Live, model: str, question: str, **options: Any) -> str:
    reply = live.call("POST", PATH, body(model, question, **options))
    assert reply.status == 200, reply.body
    assert reply.json["model"] == model
    found: str = reply.json["choices"][0]["message"]["content"]
    return found


@pytest.mark.parametrize(
    ("requests", "threads"), [(40, 16), pytest.param(2000, 32, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_nobody_gets_the_answer_of_another(live: Live, requests: int, threads: int) -> None:
    voices = [*ADAPTERS, live.model, "a0+0.5*a1"]
    expected = {(voice, question): text(live, voice, question) for voice in voices for question in QUESTIONS[:2]}
    assert len(set(expected.values())) > len(voices), "the voices differ"
    rng = random.Random(0)
    asked = [rng.choice(list(expected)) for _ in range(requests)]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda case: text(live, *case), asked))
    assert [n for n, case in enumerate(asked) if found[n] != expected[case]] == []


def fill(small: Live, told: dict[str, Any]) -> None:
    """Send until the queue is full."""
    while small.engine.stats.waiting < small.engine.limits.max_waiting:
        threading.Thread(target=small.call, args=("POST", PATH, told)).start()
        time.sleep(0.02)


def test_ten_times_what_fits_is_answered_or_refused_at_once(small: Live) -> None:
    text(small, "a0", QUESTIONS[0])
    told = body("a0", max_tokens=40, temperature=1.5)
    times: list[tuple[int, float]] = []

    def one(_: int) -> None:
        began = time.monotonic()
        reply = small.call("POST", PATH, told)
        times.append((reply.status, time.monotonic() - began))
        if reply.status == 429:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.error["code"] == "rate_limit_exceeded"

    fill(small, told)
    with ThreadPoolExecutor(80) as pool:
        list(pool.map(one, range(80)))
    refused = sorted(seconds for status, seconds in times if status == 429)
    assert {status for status, _ in times} <= {200, 429}
    assert refused, "8 fit, 80 came"
    wait_for(lambda: small.engine.stats.running + small.engine.stats.waiting == 0)
    began = time.monotonic()
    text(small, "a0", QUESTIONS[0])
    assert time.monotonic() - began < 1.0, "it recovers"
    assert wait_for(lambda: small.app.lifecycle.in_flight == 0) < 1.0


def test_a_refusal_comes_within_a_tenth_of_a_second(small: Live) -> None:
    told = body("a0", max_tokens=160, temperature=1.5)
    fill(small, told)
    seconds: list[float] = []
    while small.engine.stats.waiting >= 4 and len(seconds) < 8:
        began = time.monotonic()
        status = small.call("POST", PATH, told).status
        seconds.append(time.monotonic() - began) if status == 429 else None
    assert sorted(seconds)[len(seconds) // 2] < 0.1
    wait_for(lambda: small.app.lifecycle.in_flight == 0)


@pytest.mark.parametrize("cycles", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_loading_and_unloading_leaves_nothing_behind(live: Live, cycles: int) -> None:
    def cycle() -> None:
        assert live.unload("a5").status == 200
        assert live.load("a5").status == 200
        text(live, "a5", QUESTIONS[1])

    before = text(live, "a5", QUESTIONS[1])
    digest = weights_sha256(live.app.catalogue.base.model)
    for _ in range(3):
        cycle()
    files, memory = resources()
    for _ in range(cycles):
        cycle()
    wait_for(lambda: resources()[0] <= files)  # the last connections are closed a moment later
    assert resources()[1] <= memory * 1.01 + (8 << 20)
    assert text(live, "a5", QUESTIONS[1]) == before
    assert weights_sha256(live.app.catalogue.base.model) == digest


def resources() -> tuple[int, int]:
    """Open files and resident bytes of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE")  # noqa: PTH208 (names are enough)


def test_an_adapter_is_unloaded_under_its_answers(live: Live) -> None:
    told = {"max_tokens": 40, "temperature": 1.3}
    with ThreadPoolExecutor(16) as pool:
        expected = list(pool.map(lambda seed: text(live, "a4", QUESTIONS[0], seed=seed, **told), range(16)))
    answers: dict[int, str] = {}

    def one(seed: int) -> None:
        answers[seed] = text(live, "a4", QUESTIONS[0], seed=seed, **told)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(16)]
    before = live.engine.stats
    for thread in threads:
        thread.start()

    def begun() -> int:
        stats = live.engine.stats
        return stats.running + stats.waiting + stats.finished - before.finished

    wait_for(lambda: begun() >= 16)
    in_flight = live.engine.stats.running + live.engine.stats.waiting
    assert live.unload("a4").status == 200
    assert in_flight > 0
    assert live.call("POST", PATH, body("a4")).error["code"] == "model_not_found"
    for thread in threads:
        thread.join()
    assert live.load("a4").status == 200
    assert [answers[seed] for seed in range(16)] == expected


def test_what_a_client_leaves_unread_does_not_stop_others(live: Live) -> None:
    told = body("a0", max_tokens=100, temperature=1.5, n=4, stream=True, logprobs=True, top_logprobs=20)
    connections = []
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", PATH, json.dumps(told), head)
        connections.append(connection)
    text(live, "a1", QUESTIONS[0])
    for connection in connections:
        connection.close()
    wait_for(lambda: live.app.lifecycle.in_flight == 0)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("early", [b"", b"\r\n", NEXT], ids=["", "line", "next"])
def test_a_client_that_goes_away_stops_its_answer(live: Live, stream: bool, early: bytes) -> None:
    """Even one that has sent something behind its request."""
    wait_for(lambda: live.engine.stats.running + live.engine.stats.waiting == 0)
    text(live, "a0", QUESTIONS[0])  # what was cancelled before it has been counted
    before = live.engine.stats.cancelled
    with held(live):
        connection = draining.ask(live.port, KEY, stream=stream, max_tokens=240, n=4, temperature=1.5)
        wait_for(lambda: live.engine.stats.running + live.engine.stats.waiting == 4)
        if stream:
            assert connection.getresponse().status == 200
        connection.sock.sendall(early)
        connection.close()
        wait_for(lambda: live.app.lifecycle.in_flight == 0)
    wait_for(lambda: live.engine.stats.cancelled == before + 4)


@contextmanager
def held(live: Live) -> Iterator[None]:
    """Let the model compute nothing inside the block: no answer can end before its client has gone."""
    gate = threading.Event()

    def wait(*_: object) -> None:
        gate.wait()

    handle = live.app.catalogue.base.model.register_forward_pre_hook(wait)
    try:
        yield
    finally:
        gate.set()
        handle.remove()
