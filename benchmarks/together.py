"""Several adapters trained at once over one base, against one after the other: the same recipes, in one run.

    python benchmarks/together.py                                     both shapes, three adapters, about 5 minutes
    python benchmarks/together.py --output benchmarks/results/together-cpu.json

Each process trains three adapters (r 16 on all linears, NF4, bf16, 8 pairs a step, data of their own) alone, one
after the other, or together. Time is from the end of an adapter's second step, when kernels are compiled, to the end
of its last; of those trained alone it is added up. Loading and writing are left out of both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import workloads
from training_report import processor

ROOT = Path(__file__).parent.parent
WARM = 2  # steps that are not timed
STEPS = {"tiny": 32, "smollm2-135m-shape": 10}
SHAPES = tuple(STEPS)


def write_rows(folder: Path, adapters: int, count: int) -> list[Path]:
    """One file of pairs for each adapter, none with rows of another."""
    every = workloads.MIXES["pairs"](random.Random("together"))
    files = [folder / f"rows{number}.jsonl" for number in range(adapters)]
    for file in files:
        rows = [{"messages": [{"role": r, "content": c} for r, c in turns]} for turns in islice(every, count)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def run_one(options: argparse.Namespace) -> None:
    """The measured process: seconds, tokens and the last losses."""
    from finetune.pipeline import train_together
    from finetune.recipe import load_recipe
    from finetune.training.telemetry import Event, StepEvent

    folder, steps = Path(options.folder), STEPS[options.shapes[0]]
    recipes = []
    for number, rows in enumerate(write_rows(folder, options.adapters, 8 * steps)):
        text = (
            f"name: run{number}\nseed: {number}\nbase: {{model: {workloads.model_folder(options.shapes[0], folder)}}}\n"
        )
        text += f"data: {{path: {rows}, format: messages, max_length: 512}}\nadapter: {{r: 16, alpha: 32}}\n"
        text += f"train: {{batch_size: 8, max_steps: {steps}}}\n"
        (folder / f"{number}.yaml").write_text(text, encoding="utf-8")
        recipes.append(load_recipe(folder / f"{number}.yaml", [f"output={folder / options.run}"]))
    clock = {"began": 0.0, "ended": 0.0, "tokens": 0.0}

    def note(event: Event) -> None:
        if isinstance(event, StepEvent):
            clock["ended"] = time.perf_counter()
            if event.step <= WARM:
                clock["began"] = clock["ended"]
            else:
                clock["tokens"] += event.tokens

    seconds = 0.0
    for group in [recipes] if options.run == "together" else [[recipe] for recipe in recipes]:
        train_together(group, emit=note, fresh=True)
        seconds += clock["ended"] - clock["began"]
    print(json.dumps({"seconds": seconds, "tokens": clock["tokens"], "tokens_per_s": clock["tokens"] / seconds}))


def measure(shape: str, options: argparse.Namespace) -> dict[str, object]:
    """Both ways in turn, each round in processes of their own."""
    runs: dict[str, list[float]] = {"alone": [], "together": []}
    for _ in range(options.rounds):
        for run, found in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                settings = ["--shapes", shape, "--folder", folder, "--adapters", str(options.adapters)]
                command = [sys.executable, __file__, "--run", run, *settings]
                environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{run} failed:\n{done.stderr[-3000:]}")
                found.append(json.loads(done.stdout.splitlines()[-1])["tokens_per_s"])
    medians = {run: statistics.median(found) for run, found in runs.items()}
    return {"tokens_per_s": runs, "medians": medians, "times_as_fast": medians["together"] / medians["alone"]}


def main() -> None:
    """Print a line per shape; write all as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--adapters", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", choices=["alone", "together"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_one(options)
        return
    results = {}
    for shape in options.shapes:
        results[shape] = found = measure(shape, options)
        print(
            f"{shape:20} {options.adapters} adapters together: {found['times_as_fast']:.2f} times as fast  {found}",
            flush=True,
        )
    if options.output:
        from finetune.provenance import versions

        facts = {"machine": processor("cpu"), "versions": versions(), "adapters": options.adapters}
        options.output.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
