"""Perplexity of the same rows with the same model: finetune against transformers.Trainer and the evaluate library.

    python benchmarks/perplexity.py                                    both shapes, NF4 and bf16, about 9 minutes
    python benchmarks/perplexity.py --shapes tiny --precision fp32     without quantisation, in fp32
    python benchmarks/perplexity.py --metric perplexity.py             with the evaluate library, too
    python benchmarks/perplexity.py --output benchmarks/results/perplexity-cpu.json

Measured is what `finetune eval` does: the rows are scored with the base and again with an adapter on it, by finetune
and by `Trainer.evaluate` (its defaults: batches of 8, padded) with the same weights as transformers and PEFT load
them, each round in a process of its own, in turn. Trainer's exp(eval_loss), the number that most people call
perplexity, is a mean of the means of its batches.

The perplexity script of the `evaluate` library lies on the Hub and not in its package: --metric names a copy of
huggingface/evaluate's measurements/perplexity/perplexity.py. It loads a plain folder in bf16, without quantisation or
adapter, and scores prompts, too, once, in batches of 8. It is held against `plain`: finetune with that model, one pass.

Tokens per second count the tokens of the rows, prompts included, padding excluded, once per pass.
Time starts when model and rows are loaded and a few rows have been scored. Memory is the peak of the process while
a mix is scored above what was resident when the base had been loaded (what evaluate loads by itself is taken off).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import workloads

if TYPE_CHECKING:
    from peft import PeftModel

    from finetune.data.encoding import Encoded
    from finetune.model.base import Base

ROOT = Path(__file__).parent.parent
BATCH, WARM_UP, BUDGET = 8, 4, 4096  # rows; rows; tokens: the default of train.micro_batch_tokens
PLAIN = "plain"  # finetune with the model that evaluate loads: no quantisation, no adapter, one pass
ROWS = {  # at least one full batch of Trainer's for the long ones
    "tiny": {"pairs": 768, "long-prompts": 48, "chats": 48},
    "smollm2-135m-shape": {"pairs": 128, "long-prompts": 8, "chats": 8},
}
PRECISIONS = {"nf4": ("nf4", "bfloat16"), "fp32": ("none", "float32")}


class Outcome(NamedTuple):
    perplexity: float  # of the adapter's pass, or of the only one
    passes: int


Measure = Callable[[Sequence["Encoded"]], Outcome]
Round = dict[str, dict[str, float]]  # what was measured of each mix


def run_finetune(base: Base, model: PeftModel | None, options: argparse.Namespace) -> Measure:
    from finetune.evaluation.perplexity import score_model

    def measure(rows: Sequence[Encoded]) -> Outcome:
        if model is not None:
            with model.disable_adapter():
                score_model(base, rows, BUDGET)
        scores = score_model(base, rows, BUDGET)
        return Outcome(math.exp(math.fsum(scores.nll) / sum(scores.tokens)), 1 if model is None else 2)

    return measure


def run_trainer(base: Base, model: PeftModel, options: argparse.Namespace) -> Measure:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    folder = tempfile.mkdtemp(dir=options.folder)
    settings = TrainingArguments(output_dir=folder, report_to=[], use_cpu=True, disable_tqdm=True)
    assert settings.per_device_eval_batch_size == BATCH
    trainer = Trainer(model, settings, data_collator=DataCollatorForSeq2Seq(base.tokenizer))

    def measure(rows: Sequence[Encoded]) -> Outcome:
        data = [{"input_ids": r.ids, "attention_mask": [1] * len(r.ids), "labels": _labels(r)} for r in rows]
        with model.disable_adapter():
            trainer.evaluate(data)
        return Outcome(math.exp(trainer.evaluate(data)["eval_loss"]), 2)

    return measure


def _labels(row: Encoded) -> list[int]:
    return [token if trained else -100 for token, trained in zip(row.ids, row.loss_mask, strict=True)]


def run_evaluate(base: Base, model: PeftModel, options: argparse.Namespace) -> Measure:
    import evaluate

    from finetune.model.hub import local_path
    from finetune.recipe import BaseSection

    folder = local_path(BaseSection(model=base.name))
    metric = evaluate.load(str(options.metric), module_type="measurement")

    def measure(rows: Sequence[Encoded]) -> Outcome:
        texts = [base.tokenizer.decode(row.ids) for row in rows]
        found = metric.compute(model_id=folder, data=texts, batch_size=BATCH, add_start_token=False, device="cpu")
        return Outcome(float(found["mean_perplexity"]), 1)

    return measure


CONTENDERS: dict[str, Callable[[Base, Any, argparse.Namespace], Measure]] = {
    "finetune": run_finetune,
    "Trainer": run_trainer,
    PLAIN: run_finetune,
    "evaluate": run_evaluate,
}


def load(options: argparse.Namespace) -> tuple[Base, PeftModel | None]:
    """The base as `finetune eval` loads it, and an adapter on it that changes what it says."""
    import torch

    from finetune.model.base import load_base
    from finetune.model.lora import attach
    from finetune.recipe import AdapterSection, BaseSection

    quantization, dtype = PRECISIONS[options.precision] if options.run != PLAIN else ("none", "bfloat16")
    name = workloads.model_folder(options.shapes[0], Path(options.folder))
    section = BaseSection.model_validate({"model": name, "quantization": quantization, "dtype": dtype})
    base = load_base(section, torch.device("cpu"))
    if options.run == PLAIN:
        return base, None
    if options.run == "Trainer":
        stock = workloads.stock_model(section)
        return replace(base, model=stock), stock
    return base, workloads.changed(attach(base, AdapterSection(), seed=0))


def run_one(options: argparse.Namespace) -> None:
    """The measured process: every mix of one shape."""
    import logging

    import torch

    logging.disable(logging.WARNING)
    base, model = load(options)
    measure = CONTENDERS[options.run](base, model, options)
    counts = ROWS[options.shapes[0]]
    mixes = {mix: workloads.encoded(mix, counts[mix], base.template) for mix in options.mixes}
    first = mixes[options.mixes[0]][:1]
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    resident = _status("VmRSS")
    loads = _timed(lambda: measure(first))[0] if options.run == "evaluate" else 0.0
    copy = sum(p.numel() for p in base.model.get_input_embeddings().parameters()) if options.run == "evaluate" else 0
    copy = 2 * (copy + _linear_weights(base)) if copy else 0
    found = {}
    for mix, rows in mixes.items():
        measure(rows[:WARM_UP])
        if options.run == "evaluate":  # it loads the model within its call: the least time of that is taken off
            loads = min(loads, _timed(lambda: measure(first))[0])
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
        seconds, outcome = _timed(lambda rows=rows: measure(rows))
        seconds -= loads
        tokens = sum(len(row.ids) for row in rows)
        found[mix] = {
            "tokens_per_s": outcome.passes * tokens / seconds,
            "peak_mib": (_status("VmHWM") - resident) / 1024 - copy / 2**20,
            "perplexity": outcome.perplexity,
            "seconds": seconds,
            "passes": outcome.passes,
            "rows": len(rows),
            "tokens": tokens,
            "trained_share": sum(sum(row.loss_mask[1:]) for row in rows) / tokens,
            "resident_mib": resident / 1024,
            "threads": torch.get_num_threads(),
        }
    print(json.dumps(found))


def _linear_weights(base: Base) -> int:
    from finetune.model.base import linear4bit_layers

    return sum(layer.in_features * layer.out_features for layer in linear4bit_layers(base.model))


def _timed(work: Callable[[], Outcome]) -> tuple[float, Outcome]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _status(key: str) -> int:
    """KiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def measure_in_turn(options: argparse.Namespace, shape: str, folder: str) -> dict[str, list[Round]]:
    """Every contender once per round, each in a process of its own: [contender][round][mix]."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": folder}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    names = [name for name in CONTENDERS if name != "evaluate" or (options.metric and find_spec("evaluate"))]
    found: dict[str, list[Round]] = {name: [] for name in names}
    workloads.model_folder(shape, Path(folder))
    settings = ["--folder", folder, "--shapes", shape, "--precision", options.precision]
    settings += ["--mixes", *options.mixes]
    settings += ["--metric", str(options.metric)] if options.metric else []
    for _ in range(options.rounds):
        for name, results in found.items():
            command = [sys.executable, __file__, "--run", name, *settings]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def summary(found: dict[str, list[Round]], mix: str) -> dict[str, object]:
    """Medians of each contender over the rounds, and how they compare with finetune."""
    medians = {
        name: {key: statistics.median(run[mix][key] for run in runs) for key in runs[0][mix]}
        for name, runs in found.items()
    }
    table = {}
    for name, row in medians.items():
        ours = medians[PLAIN if name == "evaluate" else "finetune"]  # the same model
        table[name] = {
            **row,
            "tokens_per_s_of_each_round": [run[mix]["tokens_per_s"] for run in found[name]],
            "peak_mib_of_each_round": [run[mix]["peak_mib"] for run in found[name]],
            "finetune_is_times_as_fast": ours["tokens_per_s"] / row["tokens_per_s"],
            "finetune_takes_of_its_memory": ours["peak_mib"] / row["peak_mib"],
            "perplexity_against_finetune": row["perplexity"] / ours["perplexity"] - 1,
        }
    return {name: table.get(name, "not measured: no --metric, or evaluate is not installed") for name in CONTENDERS}


def show(shape: str, mix: str, results: dict[str, object]) -> None:
    """Print one line per contender."""
    for name, row in results.items():
        if not isinstance(row, dict):
            print(f"{shape:18} {mix:12} {name:8} {row}")
            continue
        print(
            f"{shape:18} {mix:12} {name:8} {row['tokens_per_s']:8,.0f} tokens/s (finetune: "
            f"{row['finetune_is_times_as_fast']:5.2f} x), {row['peak_mib']:6.0f} MiB above the base (finetune: "
            f"{row['finetune_takes_of_its_memory']:5.2f} x), perplexity {row['perplexity']:.4f}",
            flush=True,
        )


def main() -> None:
    """Print the table; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=workloads.SHAPES, default=list(workloads.SHAPES))
    parser.add_argument("--mixes", nargs="+", choices=list(workloads.MIXES), default=list(workloads.MIXES))
    parser.add_argument("--precision", choices=list(PRECISIONS), default="nf4", help="nf4: with bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--metric", type=Path, help="the perplexity script of the evaluate library")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_one(options)
        return
    results: dict[str, dict[str, dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            found = measure_in_turn(options, shape, folder)
            results[shape] = {mix: summary(found, mix) for mix in options.mixes}
            for mix, table in results[shape].items():
                show(shape, mix, table)
    if options.output:
        _write(options, results)


def _write(options: argparse.Namespace, results: dict[str, dict[str, dict[str, object]]]) -> None:
    from finetune.provenance import versions

    settings = {"precision": options.precision, "rounds": options.rounds, "budget": BUDGET}
    text = json.dumps({"machine": _processor(), "versions": versions(), **settings, "results": results}, indent=1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n", encoding="utf-8")


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores of {names[0].partition(':')[2].strip()}" if names else platform.processor()


if __name__ == "__main__":
    main()
