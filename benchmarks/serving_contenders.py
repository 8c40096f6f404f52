"""The servers that benchmarks/serving_load.py compares: how each is started, stopped and asked.

    python benchmarks/serving_contenders.py FOLDER PORT

serves a model folder by finetune without quantisation, until it is told to stop: `finetune serve` has no option for
that, because a base without quantisation is what an adapter's card says.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training import ROOT, environment

HOST = "127.0.0.1"
START, STOP, POLL = 300.0, 20.0, 0.1  # seconds for a server to begin and to end; between two looks
STORE = ROOT / "adapters"
ADAPTER, OTHERS = "pizza", ("cheerful", "grumpy")
BASE = "tiny"
ROWS, CONTEXT = 32, 256  # answers at once and tokens of each, for those that must be told
USAGE = {"stream_options": {"include_usage": True}}


class Place(NamedTuple):
    """What a server is started with."""

    python: str  # interpreter of the environment that has it
    folder: Path  # holds `merged`, the model folder, and `merged.gguf`
    port: int
    threads: int

    @property
    def merged(self) -> str:
        return str(self.folder / "merged")

    @property
    def gguf(self) -> str:
        return str(self.folder / "merged.gguf")

    def program(self, name: str) -> str:
        """A program of the environment; it lies beside the interpreter."""
        return str(Path(self.python).with_name(name))


@dataclass(frozen=True)
class Contender:
    """One way to serve."""

    settings: str
    command: Callable[[Place], list[str]]
    models: Callable[[Place], list[str]]  # asked in turn
    needs: tuple[str, ...] = ()  # modules of its environment
    program: str = ""  # of its environment, if it is no module
    extra: dict[str, Any] | None = None  # further fields of a request


def _finetune(*adapters: str) -> Callable[[Place], list[str]]:
    command = ["-m", "finetune", "serve", *adapters, "--store", str(STORE), "--host", HOST]
    return lambda place: [place.python, *command, "--port", str(place.port)]


def _plain(place: Place) -> list[str]:
    return [place.python, str(Path(__file__)), place.merged, str(place.port)]


def _transformers(*options: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        where = ["--host", HOST, "--port", str(place.port)]
        return [place.program("transformers"), "serve", place.merged, *where, "--device", "cpu", *options]

    return command


def _llama_server(place: Place) -> list[str]:
    """llama-server divides its context among the answers at once."""
    size = ["--parallel", str(ROWS), "--ctx-size", str(ROWS * CONTEXT)]
    threads = ["--threads", str(place.threads), "--threads-batch", str(place.threads)]
    where = ["--host", HOST, "--port", str(place.port)]
    return [place.program("llama-server"), "--model", place.gguf, "--alias", ADAPTER, *where, *size, *threads]


def _llama_cpp_python(place: Place) -> list[str]:
    """By default a new request ends the one before it, which is nothing for several clients."""
    threads = ["--n_threads", str(place.threads), "--n_threads_batch", str(place.threads)]
    where = ["--host", HOST, "--port", str(place.port)]
    rest = ["--interrupt_requests", "false", "--logits_all", "false", "--verbose", "false"]
    command = [place.python, "-m", "llama_cpp.server", "--model", place.gguf, "--model_alias", ADAPTER]
    return [*command, *where, *threads, *rest]


# 64 blocks of 256 tokens: two for each of 32 answers. By default it takes most of the machine's memory.
PAGED = ("--continuous-batching", "--cb-num-blocks", "64", "--cb-block-size", "256")
_SERVE = ("transformers", "fastapi", "uvicorn", "openai")
CONTENDERS = {
    "finetune": Contender(
        "the adapter over the NF4 base", _finetune(ADAPTER), lambda _: [ADAPTER], ("finetune",), extra=USAGE
    ),
    "finetune, 4 models": Contender(
        "the same; every fourth request for the base, pizza, cheerful and grumpy",
        _finetune(ADAPTER, *OTHERS),
        lambda _: [BASE, ADAPTER, *OTHERS],
        ("finetune",),
        extra=USAGE,
    ),
    "finetune, merged": Contender(
        "the merged model, no quantisation", _plain, lambda _: ["merged"], ("finetune",), extra=USAGE
    ),
    "transformers serve": Contender(
        "the merged model; one answer after the other", _transformers(), lambda place: [place.merged], _SERVE
    ),
    "transformers serve, batched": Contender(
        "the merged model, --continuous-batching", _transformers(*PAGED), lambda place: [place.merged], _SERVE
    ),
    "llama.cpp": Contender(
        f"llama-server, the merged model as GGUF, --parallel {ROWS}",
        _llama_server,
        lambda _: [ADAPTER],
        program="llama-server",
        extra=USAGE,
    ),
    "llama-cpp-python": Contender(
        "its server, the merged model as GGUF; one answer after the other",
        _llama_cpp_python,
        lambda _: [ADAPTER],
        ("llama_cpp", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"),
    ),
}


def missing(contender: Contender, python: str) -> str | None:
    """Why a contender cannot be measured here, or None."""
    if contender.program:
        found = Path(python).with_name(contender.program).exists()
        return None if found else f"{contender.program} is not installed"
    code = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n) is None))"
    command = [python, "-c", code, *contender.needs]
    done = subprocess.run(command, env=environment(python), capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{python} does not run"
    names = done.stdout.split()
    return f"{' and '.join(names)} not installed" if names else None


def version(contender: Contender, python: str) -> str:
    """Which one is measured."""
    if contender.program:
        command = [str(Path(python).with_name(contender.program)), "--version"]
    else:
        name = {"llama_cpp": "llama_cpp_python"}.get(contender.needs[0], contender.needs[0])
        command = [python, "-c", f"import importlib.metadata as m; print({name!r}, m.version({name!r}))"]
    done = subprocess.run(command, env=environment(python), capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def free_port() -> int:
    """A port that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class ServerError(Exception):
    """A server did not begin."""


@contextmanager
def serving(command: list[str], python: str, body: dict[str, Any], port: int, threads: int, log: Path) -> Iterator[int]:
    """Run a server from its first answer to `body` until the block ends; yields its process id. Raises ServerError."""
    # On a CPU, whatever else the machine has.
    settings = environment(python) | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=settings, cwd=ROOT)
    try:
        _wait(process, f"http://{HOST}:{port}/v1/chat/completions", body, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, body: dict[str, Any], log: Path) -> None:
    """Ask again and again until there is an answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    deadline, said = time.monotonic() + START, "nothing"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it says nothing"]
            raise ServerError(f"ended with {process.returncode}: {lines[-1][:300]}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
                return
        except urllib.error.HTTPError as error:
            said = f"status {error.code}: {error.read().decode(errors='replace')[:300]}"
        except OSError as error:
            said = str(error)
        time.sleep(POLL)
    raise ServerError(f"not ready after {START:.0f} s; it last said {said}")


def serve_plain(folder: str, port: int) -> None:
    """Serve a model folder as a base without quantisation and without adapters."""
    from finetune.recipe import BaseSection
    from finetune.serving.choice import Choice
    from finetune.serving.limits import EngineLimits
    from finetune.serving.server.options import Options
    from finetune.serving.server.run import Server, bind
    from finetune.serving.server.start import load

    choice = Choice(BaseSection(model=folder, quantization="none"), (), asked=False)
    with bind(HOST, port) as bound:
        app = load(choice, store=STORE, limits=EngineLimits(), options=Options(), warn=print)
        Server(app).run([bound])


if __name__ == "__main__":
    serve_plain(sys.argv[1], int(sys.argv[2]))
