"""Train the same rows with the same model: finetune against TRL, transformers.Trainer, LLaMA-Factory and others.

    python benchmarks/training.py --python TRL=trl/bin/python --python LLaMA-Factory=lf/bin/python
    python benchmarks/training.py --shapes tiny --mixes pairs --contenders finetune Trainer --rounds 3
    python benchmarks/training.py --to-loss            time to the same held-out loss, tiny, pairs
    python benchmarks/training.py --sizes 1000 10000 100000      cost of a step as the training set grows
    python benchmarks/training.py --without packing segments     what single techniques of finetune are worth
    python benchmarks/training.py --compile            what finetune train --compile is worth
    python benchmarks/training.py --overhead           share of a step that is not forward, backward or optimizer
    python benchmarks/training.py --markdown           the tables of the JSON file; --plot PNG draws it

A contender is a process of its own per mix, in turn, in rounds; printed are medians and ratios. All train NF4 with
double quantisation and bf16 compute, r = 16, alpha = 32 on all linear layers but the head, the same examples in the
same order in each optimizer step, AdamW, constant rate, clipped at 1; everything else is at the contender's defaults.
`--python NAME=PATH` names the interpreter of an environment that has a contender ("TRL" stands for all three of it).

The timed steps are trained twice, and the clock runs the second time: kernels are compiled for every new shape of a
batch (oneDNN on a CPU), which a long training soon has behind it. --warm-up sets another number of steps before it.
Useful tokens are those of the rows, prompts included, padding excluded.
Memory is the peak above what was resident when the base had been loaded. Each contender proves that it trains: its
gradient norms, and its loss on the same 16 held-out rows after the same examples. Results are merged into --output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import training_report
import workloads
from recording import Row, Task
from utilisation import Shape, step_flops

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent
R, HELDOUT, TIMEOUT = 16, 16, 3600  # rank; rows; seconds of one process
SHAPES = (*workloads.SHAPES, workloads.LARGE)
PACKAGES = {  # of each contender
    "finetune": "finetune", "TRL": "trl", "TRL tuned": "trl", "TRL packed": "trl", "Trainer": "transformers",
    "LLaMA-Factory": "llamafactory", "Unsloth": "unsloth", "Axolotl": "axolotl",
}  # fmt: skip
GPU_ONLY = ("Unsloth", "Axolotl")
STEPS = {  # timed optimizer steps: a step of long rows takes a minute or two with the slowest contender
    "tiny": {"pairs": 20, "long-prompts": 4, "chats": 4},
    "smollm2-135m-shape": {"pairs": 6, "long-prompts": 1, "chats": 1},
    workloads.LARGE: {"pairs": 2, "long-prompts": 1, "chats": 1},
}
SWITCHES = ("packing", "segments", "rows-only-head", "layers", "fused", "lean", "dense-cache")
TO_LOSS_STEPS, TO_LOSS_EVERY = 60, 5
Found = dict[str, Any]


def interpreters(options: argparse.Namespace) -> dict[str, str]:
    """Which Python runs which contender."""
    given = dict(item.split("=", 1) for item in options.python)
    return {name: given.get(name) or given.get(name.partition(" ")[0]) or sys.executable for name in PACKAGES}


def environment(python: str) -> dict[str, str]:
    """For a process of a contender: nothing is fetched; peers do not see this project's packages."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = os.pathsep.join([str(HERE), *([str(ROOT)] if python == sys.executable else [])])
    return {**kept, "PYTHONPATH": where, "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}


def missing(name: str, python: str, device: str) -> str | None:
    """Why a contender cannot be measured here, or None."""
    if name in GPU_ONLY and device != "cuda":
        return "it needs a GPU"
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({PACKAGES[name]!r}) is None)"
    found = subprocess.run([python, "-c", code], env=environment(python), check=False).returncode == 0
    return None if found else f"{PACKAGES[name]} is not installed"


def measure(task: Task, python: str) -> Found | str:
    """Run one process; its numbers, or why it failed."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(asdict(task), file)
        file.flush()
        command = [python, str(HERE / "contenders.py"), file.name]
        try:
            done = subprocess.run(
                command, env=environment(python), capture_output=True, text=True, check=False, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return f"took more than {TIMEOUT} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:500]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def tokenised(mix: str, count: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and held-out ones that are none of them."""
    from finetune.model.tokenizer import load_chat_template
    from finetune.recipe import BaseSection

    template = load_chat_template(BaseSection(model="tiny"))
    different = min(count, 1000)  # larger sets repeat them: tokenising is not what is measured
    rows = [{"ids": r.ids, "mask": r.loss_mask} for r in workloads.encoded(mix, different + 8 * HELDOUT, template)]
    heldout = [row for row in rows[different:] if row not in rows[:different]][:HELDOUT]
    return [rows[number % different] for number in range(count)], heldout


def prepare(
    options: argparse.Namespace, shape: str, mix: str, folder: Path, *, size: int = 0
) -> tuple[Task, list[Row]]:
    """What is the same for every contender, and the rows of the timed steps.

    `size`: rows of the training set; without it just what the steps take, the timed ones preceded by themselves.
    """
    from finetune.model.hub import local_path
    from finetune.recipe import BaseSection

    model = local_path(BaseSection(model=workloads.model_folder(shape, folder)))
    steps = options.steps or STEPS[shape][mix]
    warm_up = options.warm_up or steps
    before, timed = warm_up * options.batch, steps * options.batch
    if 0 < size < before + timed:
        raise SystemExit(f"--sizes: {size} rows are too few for {warm_up} + {steps} steps of {options.batch}")
    rows, heldout = tokenised(mix, size or timed)
    if not size:
        rows = [rows[(number - before) % timed] for number in range(before + timed)]
    path = folder / f"{mix}.json"
    path.write_text(json.dumps({"train": rows, "heldout": heldout}), encoding="utf-8")
    device, rate = options.device, options.learning_rate
    task = Task("", str(model), str(path), device, options.batch, warm_up, steps, rate, options.seed)
    return task, rows[before : before + timed]


def in_turn(tasks: dict[str, Task], options: argparse.Namespace) -> dict[str, list[Found] | str]:
    """Every task once per round; a contender that fails is told once and left out."""
    pythons = interpreters(options)
    found: dict[str, list[Found] | str] = {}
    for name, task in tasks.items():
        why = missing(task.contender, pythons[task.contender], task.device)
        found[name] = f"not measured: {why}" if why else []
    for _ in range(options.rounds):
        for name, task in tasks.items():
            runs = found[name]
            if isinstance(runs, list):
                outcome = measure(task, pythons[task.contender])
                if isinstance(outcome, str):
                    found[name] = f"not measured: {outcome}"
                else:
                    runs.append(outcome)
            print(f"  {name}: {_brief(found[name])}", flush=True)
    return found


def _brief(runs: list[Found] | str) -> str:
    if isinstance(runs, str):
        return runs
    last = runs[-1]
    return (
        f"{last['tokens_per_s']:,.0f} tokens/s, {last['seconds_per_step']:.3f} s a step, "
        f"{last['peak_above_base_mib']:,.0f} MiB above the base, held-out loss {last['heldout_loss']:.4f}"
    )


def medians(runs: list[Found]) -> Found:
    """Medians of the numbers over the rounds, and what the last round says of the rest."""
    last = runs[-1]
    numbers = {
        key: statistics.median(run[key] for run in runs) for key, value in last.items() if isinstance(value, float)
    }
    parts = {name: statistics.median(run["parts"][name] for run in runs) for name in last["parts"]}
    rates = [run["tokens_per_s"] for run in runs]
    return {**last, **numbers, "parts": parts, "tokens_per_s_of_each_round": rates}


def compared(found: dict[str, list[Found] | str], rows: list[Row], task: Task, rates: Found) -> Found:
    """Medians, utilisation, and how each compares with finetune."""
    table = {name: runs if isinstance(runs, str) else medians(runs) for name, runs in found.items()}
    lengths, trained = [len(row["ids"]) for row in rows], sum(sum(row["mask"][1:]) for row in rows)
    flops = step_flops(Shape.read(task.model), R, lengths, trained)
    ours = table.get("finetune")
    for row in table.values():
        if isinstance(row, str):
            continue
        for kind in ("square", "shapes"):
            row[f"utilisation_{kind}"] = flops / row["seconds"] / rates[f"{kind}_flops_per_s"]
        if isinstance(ours, dict):
            row["finetune_is_times_as_fast"] = ours["tokens_per_s"] / row["tokens_per_s"]
            row["finetune_takes_of_its_memory"] = ours["peak_above_base_mib"] / row["peak_above_base_mib"]
    sizes = {"tokens_per_step": sum(lengths) / task.steps, "trained_per_step": trained / task.steps}
    return {"contenders": table, "steps": task.steps, **sizes, "flops_per_step": flops / task.steps}


def machine_rates(model: str, options: argparse.Namespace) -> Found:
    """The machine's bf16 matmul rates, the best of the rounds, each in a process of its own."""
    command = [sys.executable, str(HERE / "utilisation.py"), model, "--device", options.device]
    found = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(options.rounds)
    ]
    return {key: max(run[key] for run in found) for key in found[0]}


def run_mixes(options: argparse.Namespace, folder: Path) -> Found:
    """The main table: every shape, mix and contender."""
    results: Found = {}
    for shape in options.shapes:
        results[shape] = {}
        for mix in options.mixes:
            print(f"{shape}, {mix}", flush=True)
            task, rows = prepare(options, shape, mix, folder)
            rates = machine_rates(task.model, options)
            tasks = {name: replace(task, contender=name) for name in options.contenders}
            results[shape][mix] = {**compared(in_turn(tasks, options), rows, task, rates), "rates": rates}
    return results


def run_variants(options: argparse.Namespace, folder: Path) -> Found:
    """finetune as it is and with one technique less each, or with the parts of its steps timed."""
    results: Found = {}
    for shape in options.shapes:
        results[shape] = {}
        for mix in options.mixes:
            print(f"{shape}, {mix}", flush=True)
            task, rows = prepare(options, shape, mix, folder)
            task = replace(task, contender="finetune", overhead=options.overhead)
            tasks = {"finetune": task}
            tasks |= {f"without {name}": replace(task, without=(name,)) for name in options.without}
            tasks |= {"with --compile": replace(task, compiled=True)} if options.compiled else {}
            results[shape][mix] = compared(in_turn(tasks, options), rows, task, machine_rates(task.model, options))
    return results


def run_sizes(options: argparse.Namespace, folder: Path) -> Found:
    """The same steps with training sets of several sizes."""
    results: Found = {}
    for size in options.sizes:
        print(f"{size} rows", flush=True)
        task, _ = prepare(options, options.shapes[0], "pairs", folder, size=size)
        tasks = {name: replace(task, contender=name) for name in options.contenders}
        found = in_turn(tasks, options)
        results[str(size)] = {name: runs if isinstance(runs, str) else medians(runs) for name, runs in found.items()}
    return {options.shapes[0]: results}


def run_to_loss(options: argparse.Namespace, folder: Path) -> Found:
    """Training time until the loss that all reach: the highest of the last ones; in between it is interpolated."""
    options.steps, options.warm_up = options.steps or TO_LOSS_STEPS, 1
    task, _ = prepare(options, "tiny", "pairs", folder)
    task = replace(task, evaluate_every=TO_LOSS_EVERY)
    found = in_turn({name: replace(task, contender=name) for name in options.contenders}, options)
    runs = {name: [run["curve"] for run in value] for name, value in found.items() if isinstance(value, list)}
    target = max(curve[-1][1] for curves in runs.values() for curve in curves)
    table: Found = {name: value for name, value in found.items() if isinstance(value, str)}
    for name, curves in runs.items():
        table[name] = {"seconds": statistics.median(time_to(target, curve) for curve in curves), "curve": curves[-1]}
        print(f"  {name}: {table[name]['seconds']:.1f} s to a held-out loss of {target:.4f}", flush=True)
    return {"loss": target, "contenders": table}


def time_to(target: float, curve: list[tuple[float, float]]) -> float:
    """Seconds at which a curve of (seconds, loss) first comes down to the target."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= target:
            return before + (after - before) * (high - target) / (high - low) if high > target else before
    return curve[-1][0]


def main() -> None:
    """Measure one kind of table and merge it into the JSON file, or show what is in it."""
    options = training_report.arguments(__doc__ or "", list(PACKAGES), SHAPES, SWITCHES)
    if options.markdown or options.plot:
        training_report.show(options)
        return
    kinds = {"to_loss": run_to_loss, "sizes": run_sizes, "without": run_variants, "overhead": run_variants}
    kind = "without" if options.compiled else next((name for name in kinds if getattr(options, name)), "mixes")
    with tempfile.TemporaryDirectory() as folder:
        found = kinds.get(kind, run_mixes)(options, Path(folder))
    training_report.write(options, kind, found)


if __name__ == "__main__":
    main()
