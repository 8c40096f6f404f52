"""Ask one HTTP server from several clients at once and note when what arrives: a process of its own.

    python benchmarks/serving_client.py TASK.json             prints one line of JSON

Every client is a coroutine that asks, reads its answer to the end and asks again (a closed loop); together they work
off one list of prompts. The clock of a client count runs from the first request to the end of the last answer, so
the last answers, when fewer clients are busy, are in it. Before it each client count has requests that count nothing.

Every request is a connection of its own.

Time to first token: from before the connection is made to the first chunk with text. Time between tokens: from one
chunk with text to the next one of the same answer, as they reach this process. A token is one of `usage` where the
server sends that, otherwise a chunk with text, and one for the stop token.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=300)  # seconds of one answer


@dataclass(frozen=True)
class Task:
    """What one process asks, and whom."""

    url: str  # of the server, without /v1
    models: list[str]  # asked in turn
    system: str
    prompts: list[str]  # asked in order, from the first again after the last
    levels: dict[str, int]  # concurrent clients (JSON knows no numbers as keys) -> counted requests
    max_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of a request

    def body(self, number: int) -> dict[str, Any]:
        """The request with this number."""
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": self.prompt(number)}]
        model = self.models[number % len(self.models)]
        fixed = {"temperature": 0, "max_tokens": self.max_tokens, "stream": True}
        return {"model": model, "messages": messages, **fixed, **self.extra}

    def prompt(self, number: int) -> str:
        """The prompt of the request with this number."""
        return self.prompts[number % len(self.prompts)]


@dataclass(frozen=True)
class Answer:
    """One answer as it came in; times in seconds."""

    number: int  # of the request
    text: str
    tokens: int
    first: float  # from the request to the first text
    gaps: list[float]  # from text to text
    by_usage: bool  # whether the server counted the tokens


class AskingError(Exception):
    """The server did not answer as it should."""


async def ask(session: aiohttp.ClientSession, task: Task, number: int) -> Answer:
    """Send one request and read its stream to the end. Raises AskingError."""
    began, times, text, usage, stopped = time.perf_counter(), list[float](), "", None, 0
    async with session.post(f"{task.url}/v1/chat/completions", json=task.body(number)) as response:
        if response.status != 200:
            raise AskingError(f"status {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            now, data = time.perf_counter(), line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise AskingError(f"the stream broke off: {chunk['error']}")
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                if piece := choice["delta"].get("content"):
                    times.append(now)
                    text += piece
                stopped |= choice.get("finish_reason") == "stop"
    if not times:
        raise AskingError(f"an empty answer to {task.prompt(number)!r}")
    tokens = usage["completion_tokens"] if usage else len(times) + stopped
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return Answer(number, text.strip(), tokens, times[0] - began, gaps, usage is not None)


async def ask_all(session: aiohttp.ClientSession, task: Task, clients: int, numbers: Iterator[int]) -> list[Answer]:
    """Work off requests with so many clients at once."""
    answers: list[Answer] = []

    async def client() -> None:
        for number in numbers:  # one iterator for all: whoever is free takes the next
            answers.append(await ask(session, task, number))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def measure(task: Task) -> dict[str, Any]:
    """Every client count in turn, after its warm-up. Raises AskingError."""
    levels, texts, begun, counted = {}, {}, 0, "usage"
    # Servers close connections that they keep at different times, and not always before the next request is sent.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:
        for name, count in task.levels.items():
            clients = int(name)
            warm_up = warming(clients)
            await ask_all(session, task, clients, iter(range(begun, begun + warm_up)))
            numbers = range(begun + warm_up, begun := begun + warm_up + count)
            cpu, start = time.process_time(), time.perf_counter()
            answers = await ask_all(session, task, clients, iter(numbers))
            seconds = time.perf_counter() - start
            levels[name] = summary(answers, seconds) | {"client_cpu": (time.process_time() - cpu) / seconds}
            texts |= {answer.number: answer.text for answer in answers}
            counted = counted if all(answer.by_usage for answer in answers) else "chunks"
    return {"levels": levels, "texts": texts, "counted": counted}


def warming(clients: int) -> int:
    """Requests before the clock runs: one of every client, at least four."""
    return max(4, clients)


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """Rates per second; percentiles in seconds. `answers` came within `seconds`."""
    firsts = [answer.first for answer in answers]
    gaps = [gap for answer in answers for gap in answer.gaps] or [math.nan]
    return {
        "requests_per_s": len(answers) / seconds,
        "tokens_per_s": sum(answer.tokens for answer in answers) / seconds,
        "first_p50": percentile(firsts, 50),
        "first_p99": percentile(firsts, 99),
        "between_p50": percentile(gaps, 50),
        "between_p99": percentile(gaps, 99),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least so many per cent of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def main() -> None:
    """Measure one task."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        print(json.dumps(asyncio.run(measure(task))))
    except (AskingError, aiohttp.ClientError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
