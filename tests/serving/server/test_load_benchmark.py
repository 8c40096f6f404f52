"""The benchmark of servers under load: its numbers, and that it measures a live server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.model.base import load_base
from finetune.recipe import BaseSection
from tests.serving.server.conftest import ADAPTERS, OPTIONS, Live, served

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
PROMPTS = [f"Tell me about {thing}." for thing in ("cheese", "the sea", "a wheel", "rain", "maps", "a lamp", "salt")]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def keyless(section: BaseSection, store: Path) -> Iterator[Live]:
    """Other servers under load have no key either."""
    with served(load_base(section, torch.device("cpu")), store, replace(OPTIONS, api_key=None)) as live:
        yield live


def test_percentiles_are_values_that_were_measured() -> None:
    from serving_client import percentile

    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 1, 50, 99, 100)] == [1.0, 1.0, 50.0, 99.0, 100.0]
    assert [percentile([3.0, 1.0, 2.0], percent) for percent in (33, 34, 50, 99)] == [1.0, 2.0, 2.0, 3.0]
    assert percentile([7.0], 99) == 7.0


def test_rates_and_times_of_answers() -> None:
    from serving_client import Answer, summary

    answers = [Answer(0, "a b", 3, 0.2, [0.1], True), Answer(1, "a b c", 5, 0.4, [0.3, 0.2], True)]
    assert summary(answers, 2.0) == {
        "requests_per_s": 1.0, "tokens_per_s": 4.0, "first_p50": 0.2, "first_p99": 0.4,
        "between_p50": 0.2, "between_p99": 0.3,
    }  # fmt: skip


def test_rounds_are_combined_and_compared() -> None:
    from serving_load import compared

    def run(rate: float, *texts: str) -> dict[str, object]:
        level = {"requests_per_s": rate, "tokens_per_s": 10 * rate}
        said = {"counted": "usage", "settings": "a server", "version": "server 1"}
        return {"levels": {"8": level}, "texts": dict(enumerate(texts)), **said}

    ours, theirs = (
        [run(9.0, "x", "y"), run(8.0, "x", "y"), run(1.0, "x", "y")],
        [run(2.0, "x", "z"), run(4.0, "x", "y")],
    )
    table = compared({"finetune": ours, "other": theirs, "absent": "not measured: absent is not installed"})
    assert table["absent"] == "not measured: absent is not installed"
    level = table["finetune"]["levels"]["8"]
    assert (level["requests_per_s"], level["tokens_per_s"]) == (8.0, 80.0)
    assert level["requests_per_s_of_each_round"] == [9.0, 8.0, 1.0]
    assert table["finetune"]["same_answers"] == 1.0
    assert table["other"]["same_answers"] == 0.75
    assert table["other"]["levels"]["8"]["finetune_is_times_as_fast"] == pytest.approx(8.0 / 3.0)


def test_a_live_server_is_measured(keyless: Live) -> None:
    """The clients are a process of their own, as in the benchmark; everything they count can be counted here, too."""
    from serving_client import Task, warming
    from serving_contenders import USAGE
    from serving_load import ask

    url, models = f"http://127.0.0.1:{keyless.port}", [keyless.model, ADAPTERS[0]]
    found = ask(Task(url, models, "Be short.", PROMPTS, {"1": 3, "4": 5}, 6, USAGE))
    assert isinstance(found, dict), found
    requests = warming(1) + 3 + warming(4) + 5
    stats = keyless.engine.stats
    assert stats.finished == requests
    assert found["counted"] == "usage"
    begun = warming(1) + 3 + warming(4)
    assert sorted(map(int, found["texts"])) == [*range(warming(1), warming(1) + 3), *range(begun, begun + 5)]
    assert all(found["texts"].values())
    for level in found["levels"].values():
        assert 0 < level["first_p50"] <= level["first_p99"]
        assert 0 <= level["between_p50"] <= level["between_p99"]
        assert 0 < level["requests_per_s"] < level["tokens_per_s"] <= 6 * level["requests_per_s"] * (1 + 1e-9)


def test_a_server_that_refuses_is_not_measured(live: Live) -> None:
    """It wants a key."""
    from serving_client import Task
    from serving_load import ask

    found = ask(Task(f"http://127.0.0.1:{live.port}", [live.model], "", PROMPTS, {"1": 1}, 4))
    assert isinstance(found, str)
    assert found.startswith("AskingError: status 401")


def test_tables_show_every_contender() -> None:
    from serving_load import markdown

    level = {
        "requests_per_s": 12.34, "finetune_is_times_as_fast": 2.0, "tokens_per_s": 150.0, "first_p50": 0.01,
        "first_p99": 0.02, "between_p50": 0.003, "between_p99": 0.004,
    }  # fmt: skip
    row = {"levels": {"1": level}, "same_answers": 0.995, "settings": "a server", "version": "server 1"}
    table = {"server": row, "other": "not measured: other is not installed"}
    machine = {"processor": "p", "threads": 2, "rounds": 3, "day": "2026-01-01", "versions": {}, "command": "python x"}
    text = "\n".join(markdown({"results": {"bf16": table}, "machine": machine}))
    assert "**1 client**" in text
    assert "| server | 12.3 | 2.00 x | 150 | 10, 20 | 3, 4 | 99.5% |" in text
    assert "| other | not measured: other is not installed |" in text
    assert "- server: a server; server 1" in text


def test_the_kept_command_names_no_folder_of_the_machine() -> None:
    from serving_load import command

    kept = command(["x.py", "--python", "llama.cpp=/home/me/lc/bin/python", "--contenders", "finetune, merged"])
    assert kept == (
        'python benchmarks/serving_load.py --python llama.cpp=lc/bin/python --contenders "finetune, merged"'
    )


def test_tokens_without_usage_are_chunks_and_the_stop_token() -> None:
    """A small server that streams as those do that send no usage."""
    from serving_client import Task, measure

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(size.partition(b":")[2]))
        chunks = [
            ({"role": "assistant"}, None),
            ({"content": "Two"}, None),
            ({"content": " pizzas"}, None),
            ({}, "stop"),
        ]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: ping\n\n")
        for delta, reason in chunks:
            data = json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
            writer.write(f"data: {data}\n\n".encode())
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    async def run() -> dict[str, object]:
        async with await asyncio.start_server(stream, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await measure(Task(f"http://127.0.0.1:{port}", ["m"], "", PROMPTS, {"2": 4}, 8))

    found = asyncio.run(run())
    level = found["levels"]["2"]  # type: ignore[index]
    assert level["tokens_per_s"] == pytest.approx(3 * level["requests_per_s"])
    assert found["counted"] == "chunks"
    assert set(found["texts"].values()) == {"Two pizzas"}  # type: ignore[attr-defined]
