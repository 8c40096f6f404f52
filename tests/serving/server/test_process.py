"""The server as a process: its start, its end, and clients that are slow on purpose."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune import cli
from finetune.cli import serve
from finetune.errors import FinetuneError
from finetune.recipe import BaseSection
from finetune.serving.choice import choose
from finetune.serving.server.limits import _bounded
from finetune.serving.server.options import check_exposure
from finetune.serving.server.run import bind
from finetune.serving.server.start import load
from finetune.serving.vllm import vllm_command
from finetune.store.folders import CARD, find_adapter
from tests.serving.server import draining
from tests.serving.server.conftest import KEY, LIMITS, OPTIONS, Live, wait_for

ROOT = Path(__file__).parents[3]


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`finetune serve` as a person starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "finetune", "serve", *arguments]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_it_starts_answers_drains_and_ends_with_0(store: Path, section: BaseSection) -> None:
    # The base comes from --base; that the adapters of this store were made over another precision is no hindrance.
    with command("--base", section.model, "--store", str(store), "--port", "0", "--grace", "20") as process:
        said = read_until(process, "ready:")
        assert "adapters: a0, a1, a2, a3, a4, a5, a6, a7" in said
        assert "curl http://127.0.0.1:" in said
        found = re.search(r"ready: http://127\.0\.0\.1:(\d+)/v1", said)
        assert found is not None
        port = int(found[1])
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        running = draining.ask(port, max_tokens=240, stream=True, temperature=1.2, n=8, seed=3)
        answer = running.getresponse()
        answer.readline()
        idle.request("GET", "/health")
        assert json.loads(idle.getresponse().read())["status"] == "ready"
        process.send_signal(signal.SIGTERM)
        assert draining.after_the_signal(idle) == 503
        late = draining.ask(port, max_tokens=1)
        refused = late.getresponse()
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert json.loads(refused.read())["error"]["code"] == "draining"
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(60) == 0
        for connection in (idle, running, late):
            connection.close()


@pytest.mark.slow
def test_it_drains_every_time(store: Path, section: BaseSection) -> None:
    line = [sys.executable, "-m", "tests.serving.server.draining", str(store), section.model, "50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = json.loads(done.stdout.splitlines()[-1])
    assert len(trials) == 50
    assert [trial for trial in trials if trial[:2] != [0, True] or trial[2] not in (0, 503)] == []
    assert any(trial[2] == 503 for trial in trials)


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(store: Path, section: BaseSection) -> None:
    with command("--base", section.model, "--store", str(store), "--port", "0", "--grace", "300") as process:
        port = int(re.findall(r"ready: http://127\.0\.0\.1:(\d+)/v1", read_until(process, "ready:"))[0])
        running = [draining.ask(port, max_tokens=240, temperature=1.2, n=16) for _ in range(8)]
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert time.monotonic() - began < 2
        for connection in running:
            connection.close()


def test_what_is_cut_off_by_the_end_of_the_grace_time_says_so(small: Live) -> None:
    connection = draining.ask(small.port, KEY, n=4, stream=True, seed=1)
    stream = connection.getresponse()
    first = stream.readline()
    assert first.startswith(b"data: ")
    done = asyncio.run_coroutine_threadsafe(small.app.lifecycle.drain(0.0), loop_of(small)).result(30)
    assert not done, "something was cut off"
    last = stream.read().decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
    connection.close()
    assert small.call("GET", "/health").status == 503
    assert small.call("GET", "/v1/models").status == 503


def loop_of(live: Live) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = live.server.servers[0].get_loop()
    return loop


def test_slow_clients_are_cut_off_and_stop_nobody(small: Live) -> None:
    heads = [socket.create_connection(("127.0.0.1", small.port), timeout=30) for _ in range(100)]
    for slow in heads:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    began = time.monotonic()
    assert small.call("GET", "/v1/models").status == 200
    assert time.monotonic() - began < 1
    for slow in heads:
        assert slow.recv(100) == b"", "closed without an answer"
        slow.close()
    assert time.monotonic() - began < 10
    wait_for(lambda: len(small.server.server_state.connections) == 0)


def test_a_body_that_never_ends_gets_408(small: Live) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as slow:
        slow.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
        answer = b"".join(iter(lambda: slow.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    ended: list[bool] = []

    async def never(_: object) -> None:
        await asyncio.sleep(3600)

    asyncio.run(_bounded(never, 0.01, lambda: ended.append(True))({"type": "http.response.body"}))  # type: ignore[arg-type]
    assert ended == [True]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_others_are_only_served_with_a_key(host: str) -> None:
    with pytest.raises(FinetuneError, match="no API key"):
        check_exposure(host, None, insecure=False)
    with pytest.raises(FinetuneError, match="no API key"):
        check_exposure(host, "", insecure=False)
    check_exposure(host, "key", insecure=False)
    check_exposure(host, None, insecure=True)
    for own in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        check_exposure(own, None, insecure=False)


def test_an_address_that_is_taken() -> None:
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(FinetuneError, match=r"cannot listen on 127\.0\.0\.1 port"):
            bind("127.0.0.1", bound.getsockname()[1])
    with pytest.raises(FinetuneError, match="no address"):
        bind("no such host.", 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "there is no API key"),
        (("--host", "0.0.0.0", "--engine", "vllm"), "there is no API key"),
        (("--max-body", "much"), "--max-body 'much' is no size"),
        (("nothing", "--port", "0"), "no adapter 'nothing'"),
        (("--needs",), 'pip install "finetune[serve]"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_served_is_said(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments == ("--needs",):
        monkeypatch.setattr(serve, "NEEDED", ("a_package_that_is_not_installed",))
        arguments = ()
    monkeypatch.delenv("FINETUNE_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["finetune", "serve", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert words in said


def test_what_a_store_holds_beside_good_adapters(store: Path, section: BaseSection, tmp_path: Path) -> None:
    """One that cannot be read is left out; one of another base is refused, or served with --force; both are said."""
    for name in ("a0", "a1"):
        shutil.copytree(store / name, tmp_path / name)
    (tmp_path / "a1" / CARD).write_text("{")
    card = find_adapter("a0", tmp_path).card
    other = card.base.model_copy(update={"fingerprint": {**card.base.fingerprint, "weights": "0" * 64}})
    (tmp_path / "a0" / CARD).write_text(card.model_copy(update={"base": other}).model_dump_json())
    for force, names in ((False, []), (True, ["a0"])):
        said: list[str] = []
        choice = choose([], section.model, tmp_path, force=force)
        app = load(choice, store=tmp_path, limits=LIMITS, options=OPTIONS, warn=said.append)
        app.lifecycle.engine.stop(0)
        assert app.catalogue.bank.names == names
        assert "a1/card.json: cannot be read" in said[0]
        assert said[1].startswith("--force: a0: its base" if force else "not served: ")


def test_the_command_line_for_vllm(store: Path) -> None:
    base = BaseSection(model="owner/model", revision="abc")
    found = [find_adapter(name, store) for name in ("a0", "a1")]
    line = vllm_command(base, found, host="127.0.0.1", port=1)
    assert line[:3] == ["vllm", "serve", "owner/model"]
    assert line[line.index("--revision") + 1] == "abc"
    assert line[line.index("--quantization") + 1] == "bitsandbytes"
    assert line[line.index("--max-lora-rank") + 1] == "8"
    modules = [json.loads(module) for module in line[line.index("--lora-modules") + 1 :]]
    assert [(module["name"], Path(module["path"]).is_dir()) for module in modules] == [("a0", True), ("a1", True)]
    assert "--enable-lora" not in vllm_command(base, [], host="127.0.0.1", port=1)
