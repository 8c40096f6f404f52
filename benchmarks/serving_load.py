"""HTTP servers under load: finetune serve against transformers serve and llama.cpp's, with the same model.

    python benchmarks/serving_load.py --python llama.cpp=lc/bin/python --python llama-cpp-python=lc/bin/python
    python benchmarks/serving_load.py --contenders finetune "transformers serve" --clients 8 --requests 64 --rounds 1
    python benchmarks/serving_load.py --precision fp32
    python benchmarks/serving_load.py --markdown       the tables of the kept results as text

Each server is a process of its own on a free port, in turn, in rounds; so are the clients, which are one process with
a coroutine each (serving_client.py says what is timed, and how). The clients run on the same machine and take CPU
that the servers lack; how much of a core is in the results. Printed are medians over the rounds, and ratios.

All answer the same held-out prompts of data/pizza with the system prompt of the adapter pizza, every prompt once per
server process, greedily, with at most 32 tokens, streamed. finetune serves the adapter over the NF4 base; in a second
row its requests are spread over the base, pizza, cheerful and grumpy in one server. The others, and finetune in a
third row, serve pizza merged into the base, without quantisation (`finetune merge`, `finetune export`). Everything
else is at the server's defaults, but for what serving_contenders.py says. `--python NAME=PATH` names the interpreter
of an environment that has a contender ("transformers" stands for both of it); llama-server lies beside it.

Same answers: the share of prompts to pizza, over all rounds and client counts, to which a server says what the first
one that was measured says. An empty answer, or an error, ends a contender's measurement. --output gets the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from serving_client import Task
from serving_contenders import (
    ADAPTER,
    CONTENDERS,
    HOST,
    STORE,
    Contender,
    Place,
    ServerError,
    free_port,
    missing,
    serving,
    version,
)
from training import HERE, ROOT, environment
from training_report import processor

OUTPUT = HERE / "results" / "serving-load-cpu.json"
PRECISIONS = {"bf16": ("bfloat16", "bf16"), "fp32": ("float32", "f32")}  # of finetune merge, of finetune export
HELDOUT = ROOT / "data" / "pizza" / "heldout.jsonl"
TIMEOUT = 900  # seconds of one process of clients
HEADS = ("", "requests/s", "finetune is", "tokens/s", "first token p50, p99", "between tokens p50, p99", "same answers")
Found = dict[str, Any]


def prepare(folder: Path, precision: str) -> None:
    """Write the merged model as a folder and as GGUF."""
    dtype, outtype = PRECISIONS[precision]
    start = [sys.executable, "-m", "finetune"]
    for command in (
        ["merge", ADAPTER, str(folder / "merged"), "--dtype", dtype, "--no-measure"],
        ["export", ADAPTER, str(folder / "merged.gguf"), "--outtype", outtype],
    ):
        done = subprocess.run(
            [*start, *command, "--store", str(STORE)],
            env=environment(sys.executable),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"finetune {command[0]} failed: {done.stderr.strip()}")


def tasks(options: argparse.Namespace) -> Task:
    """What every contender is asked; its address, models and further fields are still open."""
    lines = HELDOUT.read_text(encoding="utf-8").splitlines()
    prompts = [str(json.loads(line)["instruction"]) for line in lines]
    random.Random(0).shuffle(prompts)  # they lie sorted by kind
    system = json.loads((STORE / ADAPTER / "card.json").read_text(encoding="utf-8"))["system"]
    levels = dict(zip(map(str, options.clients), options.requests, strict=True))
    return Task("", [], system, prompts, levels, options.max_tokens)


def ask(task: Task) -> Found | str:
    """Let the clients run; what they measured, or why they did not."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(asdict(task), file)
        file.flush()
        command = [sys.executable, str(HERE / "serving_client.py"), file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"took more than {TIMEOUT} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:500]
    return dict(json.loads(done.stdout))


def measure(contender: Contender, place: Place, task: Task) -> Found | str:
    """Start a server, ask it, stop it."""
    task = replace(task, url=f"http://{HOST}:{place.port}", models=contender.models(place), extra=contender.extra or {})
    hello = replace(task, prompts=["Hello!"], max_tokens=1).body(0) | {"stream": False}
    hello.pop("stream_options", None)
    log = place.folder / "server.log"
    try:
        with serving(contender.command(place), place.python, hello, place.port, place.threads, log):
            found = ask(task)
    except ServerError as error:
        return str(error)
    if isinstance(found, dict) and ADAPTER in task.models:  # other models' answers are compared with nobody's
        asked = task.models
        found["texts"] = {n: text for n, text in found["texts"].items() if asked[int(n) % len(asked)] == ADAPTER}
    return found


def in_turn(options: argparse.Namespace, folder: Path) -> dict[str, list[Found] | str]:
    """Every contender once per round; one that fails is told once and left out."""
    task, found, pythons = tasks(options), dict[str, list[Found] | str](), interpreters(options)
    known: dict[str, Found] = {}
    for name in options.contenders:
        why = missing(CONTENDERS[name], pythons[name])
        found[name] = f"not measured: {why}" if why else []
        if not why:
            known[name] = {
                "settings": CONTENDERS[name].settings,
                "version": version(CONTENDERS[name], pythons[name]),
            }
    for _ in range(options.rounds):
        for name, runs in found.items():
            if isinstance(runs, list):
                place = Place(pythons[name], folder, free_port(), options.threads)
                outcome = measure(CONTENDERS[name], place, task)
                if isinstance(outcome, str):
                    found[name] = f"not measured: {outcome}"
                else:
                    runs.append(outcome | known[name])
            print(f"  {name}: {_brief(found[name])}", flush=True)
    return found


def interpreters(options: argparse.Namespace) -> dict[str, str]:
    """Which Python has which contender."""
    given = dict(item.split("=", 1) for item in options.python)
    return {name: given.get(name) or given.get(name.partition(" ")[0]) or sys.executable for name in CONTENDERS}


def _brief(runs: list[Found] | str) -> str:
    if isinstance(runs, str):
        return runs
    rates = [f"{level['requests_per_s']:.1f} with {clients}" for clients, level in runs[-1]["levels"].items()]
    return f"requests/s: {', '.join(rates)} clients"


def combined(runs: Sequence[Found]) -> Found:
    """Medians over the rounds, for each client count."""
    levels: Found = {}
    for clients, last in runs[-1]["levels"].items():
        rounds = [run["levels"][clients] for run in runs]
        levels[clients] = {key: statistics.median(each[key] for each in rounds) for key in last}
        levels[clients]["requests_per_s_of_each_round"] = [each["requests_per_s"] for each in rounds]
    return {"levels": levels, **{key: runs[-1][key] for key in ("counted", "settings", "version")}}


def same_answers(runs: Sequence[Found], others: Sequence[Found]) -> float:
    """Share of the prompts that both answer equally, round by round; 1.0 for a server and itself."""
    pairs = [
        (text, other["texts"][number])
        for run, other in zip(runs, others, strict=False)
        for number, text in run["texts"].items()
        if number in other["texts"]
    ]
    return statistics.mean(text == other for text, other in pairs)


def compared(found: dict[str, list[Found] | str]) -> Found:
    """Medians and ratios of every contender, or why there are none."""
    measured = {name: runs for name, runs in found.items() if isinstance(runs, list)}
    first = next(iter(measured.values()), [])
    table: Found = {name: runs if isinstance(runs, str) else combined(runs) for name, runs in found.items()}
    for name, runs in measured.items():
        table[name]["same_answers"] = same_answers(runs, first)
        for clients, level in table[name]["levels"].items():
            if "finetune" in measured:
                ours = table["finetune"]["levels"][clients]["requests_per_s"]
                level["finetune_is_times_as_fast"] = ours / level["requests_per_s"]
    return table


def write(options: argparse.Namespace, table: Found) -> Found:
    """Merge the results of this run into the file, with what they were measured with."""
    from finetune.files import atomic_write_text
    from finetune.provenance import versions

    found = read(options.output)
    found.setdefault("results", {}).setdefault(options.precision, {}).update(table)
    names = ("rounds", "threads", "clients", "requests", "max_tokens")
    found["machine"] = {
        "processor": processor("cpu"),
        **{name: getattr(options, name) for name in names},
        "versions": versions(),
        "day": time.strftime("%Y-%m-%d"),
        "command": command(sys.argv),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.output, json.dumps(found, indent=1) + "\n")
    return found


def command(arguments: Sequence[str]) -> str:
    """The command line; of paths elsewhere only what says which environment it is."""
    kept = [f"{name}={'/'.join(Path(path).parts[-3:])}" if path else name for name, _, path in _split(arguments[1:])]
    return " ".join(["python", "benchmarks/serving_load.py", *(f'"{part}"' if " " in part else part for part in kept)])


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    return (argument.partition("=") for argument in arguments)


def read(path: Path) -> Found:
    """What earlier runs have measured."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def markdown(found: Found) -> Iterator[str]:
    """A table for each precision and client count."""
    machine = found["machine"]
    for precision, table in found["results"].items():
        rows = [row for row in table.values() if isinstance(row, dict)]
        for clients in dict.fromkeys(clients for row in rows for clients in row["levels"]):
            yield f"**{clients} client{'s' if clients != '1' else ''}**, {precision}; times in milliseconds"
            yield ""
            yield f"| {' | '.join(HEADS)} |"
            yield f"|---{'|---:' * (len(HEADS) - 1)}|"
            yield from (f"| {name} | {' | '.join(_cells(row, clients))} |" for name, row in table.items())
            yield ""
        yield from (f"- {name}: {row['settings']}; {row['version']}" for name, row in table.items() if row in rows)
        yield ""
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if name != "finetune")
    rounds = f"{machine['rounds']} round{'s' if machine['rounds'] > 1 else ''}"
    threads = f"{machine['threads']} threads of {machine['processor']}"
    yield f"{threads}; {packages}; {rounds}; {machine['day']}. `{machine['command']}`"


def _cells(row: Found | str, clients: str) -> list[str]:
    if isinstance(row, str) or clients not in row["levels"]:
        return [row if isinstance(row, str) else "not measured", *[""] * (len(HEADS) - 2)]
    level = row["levels"][clients]
    ratio = f"{level['finetune_is_times_as_fast']:.2f} x" if "finetune_is_times_as_fast" in level else ""
    times = [f"{1e3 * level[f'{kind}_p50']:,.0f}, {1e3 * level[f'{kind}_p99']:,.0f}" for kind in ("first", "between")]
    rates = [f"{level['requests_per_s']:,.1f}", ratio, f"{level['tokens_per_s']:,.0f}"]
    return [*rates, *times, f"{row['same_answers']:.1%}"]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32], help="at the same time")
    parser.add_argument("--requests", nargs="+", type=int, default=[12, 32, 64], help="counted, of each client count")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the merged model")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--markdown", action="store_true", help="print what was measured before, and measure nothing")
    options = parser.parse_args()
    if len(options.requests) != len(options.clients):
        parser.error(f"--requests: {len(options.requests)} numbers for {len(options.clients)} client counts")
    return options


def main() -> None:
    """Measure, merge into the results and print them."""
    options = arguments()
    if options.markdown:
        print("\n".join(markdown(read(options.output))))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no server outlives this
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), options.precision)
        table = compared(in_turn(options, Path(name)))
    print("\n" + "\n".join(markdown(write(options, table))))


if __name__ == "__main__":
    main()
