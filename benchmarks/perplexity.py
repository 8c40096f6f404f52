"""Perplexity of the same rows with the same model: finetune against transformers.Trainer and the evaluate library.

    python benchmarks/perplexity.py                               the built-in base
    python benchmarks/perplexity.py --model smollm2-135m-shape    random weights in the shape of SmolLM2-135M
    python benchmarks/perplexity.py --output benchmarks/results/perplexity-cpu.json

Each contender is a process of its own, in turn, in fp32; time starts when model and rows are loaded and a
few rows have been scored. Trainer is `Trainer.evaluate` with its defaults (batches of 8, padded), whose
exp(eval_loss) is the number that most people call perplexity: a mean of the means of its batches.
`evaluate` is the perplexity metric of that library in batches of 8; it knows texts only, so it scores
prompts, too, reports the mean over texts, and is "not measured" where it is not installed.
Memory is the peak while scoring above what was resident when the model had been loaded.
"""

from __future__ import annotations

import argparse
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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.data.encoding import Encoded
    from finetune.model.base import Base

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data" / "general" / "train.jsonl"
BATCH, WARM_UP = 8, 16
SMOLLM2_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
}  # fmt: skip
MODELS = ("tiny", "smollm2-135m-shape")
Outcome = tuple[float, int]  # perplexity, tokens that it is a mean over
Measure = Callable[[Sequence["Encoded"]], Outcome]


def run_finetune(base: Base, budget: int) -> Measure:
    from finetune.training.scoring import score_rows

    def measure(chosen: Sequence[Encoded]) -> Outcome:
        scores = score_rows(base.model, chosen, budget, isolate=base.packs)
        tokens = sum(score.tokens for score in scores)
        return math.exp(math.fsum(score.nll for score in scores) / tokens), tokens

    return measure


def run_trainer(base: Base, budget: int) -> Measure:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    folder = tempfile.mkdtemp(dir=os.environ["BENCHMARK_FOLDER"])
    settings = TrainingArguments(output_dir=folder, report_to=[], use_cpu=True, disable_tqdm=True)
    assert settings.per_device_eval_batch_size == BATCH
    trainer = Trainer(base.model, settings, data_collator=DataCollatorForSeq2Seq(base.tokenizer))

    def measure(chosen: Sequence[Encoded]) -> Outcome:
        data = [{"input_ids": r.ids, "attention_mask": [1] * len(r.ids), "labels": _labels(r)} for r in chosen]
        loss = trainer.evaluate(data)["eval_loss"]
        return math.exp(loss), sum(sum(row.loss_mask[1:]) for row in chosen)

    return measure


def _labels(row: Encoded) -> list[int]:
    return [token if trained else -100 for token, trained in zip(row.ids, row.loss_mask, strict=True)]


def run_evaluate(base: Base, budget: int) -> Measure:
    import evaluate

    folder = tempfile.mkdtemp(dir=os.environ["BENCHMARK_FOLDER"])
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    metric = evaluate.load("perplexity", module_type="metric")

    def measure(chosen: Sequence[Encoded]) -> Outcome:
        texts = [base.tokenizer.decode(row.ids) for row in chosen]
        found = metric.compute(
            model_id=folder, predictions=texts, batch_size=BATCH, add_start_token=False, device="cpu"
        )
        return float(found["mean_perplexity"]), sum(len(row.ids) - 1 for row in chosen)

    return measure


CONTENDERS: dict[str, Callable[[Base, int], Measure]] = {
    "finetune": run_finetune,
    "Trainer": run_trainer,
    "evaluate": run_evaluate,
}


def load(model: str, count: int) -> tuple[Base, list[Encoded]]:
    """The base in fp32 without quantisation, and the first rows of general conversation."""
    import torch

    from finetune.data.dataset import load_rows
    from finetune.data.examples import general_source
    from finetune.model.base import load_base
    from finetune.recipe import BaseSection

    section = BaseSection(model="tiny", quantization="none", dtype="float32", device="cpu")
    base = load_base(section, torch.device("cpu"))
    if model != "tiny":
        base = _reshaped(base)
    rows = load_rows(general_source(str(DATA)), base.template, 1024)
    return base, [rows[i] for i in range(min(count, len(rows)))]


def _reshaped(base: Base) -> Base:
    from dataclasses import replace

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SMOLLM2_135M, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config).eval()
    return replace(base, model=model.requires_grad_(False))


def run_one(name: str, options: argparse.Namespace) -> None:
    """The measured process."""
    import logging

    import torch

    logging.disable(logging.WARNING)
    base, rows = load(options.model, options.rows)
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    measure = CONTENDERS[name](base, options.budget)
    loading = _timed(lambda: measure(rows[:WARM_UP]))[0]
    again = _timed(lambda: measure(rows[:WARM_UP]))[0] if name == "evaluate" else 0.0
    seconds, (value, counted) = _timed(lambda: measure(rows))
    copy = sum(p.numel() * p.element_size() for p in base.model.parameters()) if name == "evaluate" else 0
    result = {
        # The metric loads the model within its call: what it takes for a few rows is taken off, memory too.
        "seconds": seconds - min(loading, again) * (name == "evaluate"),
        "perplexity": value,
        "scored_tokens": counted,
        "tokens": sum(len(row.ids) for row in rows),
        "peak_mib": (_status("VmHWM") - resident) / 1024 - copy / 2**20,
        "resident_mib": resident / 1024,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


def _timed(work: Callable[[], Outcome]) -> tuple[float, Outcome]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _status(key: str) -> int:
    """KiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def measure_in_turn(options: argparse.Namespace, folder: str) -> dict[str, list[dict[str, float]]]:
    """Every contender once per round, each in a process of its own."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "FINETUNE_CACHE": folder,
        "BENCHMARK_FOLDER": folder,
    }  # fmt: skip
    names = [name for name in CONTENDERS if name != "evaluate" or find_spec("evaluate")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    settings = [f"--{key}={getattr(options, key)}" for key in ("model", "rows", "budget")]
    for _ in range(options.rounds):
        for name, results in found.items():
            command = [sys.executable, __file__, "--run", name, *settings]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    """Medians of each contender, and how the others compare with finetune."""
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    ours = medians["finetune"]
    table: dict[str, object] = {"evaluate": "not measured"}
    for name, row in medians.items():
        table[name] = {
            **row,
            "tokens_per_s": row["tokens"] / row["seconds"],
            "seconds_of_each_round": [run["seconds"] for run in found[name]],
            "times_as_long_as_finetune": row["seconds"] / ours["seconds"],
            "times_the_memory_of_finetune": row["peak_mib"] / ours["peak_mib"],
            "perplexity_against_finetune": row["perplexity"] / ours["perplexity"] - 1,
        }
    return {name: table[name] for name in CONTENDERS}


def main() -> None:
    """Print the table; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=4096, help="tokens of a packed row: train.micro_batch_tokens")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_one(options.run, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        results = summary(measure_in_turn(options, folder))
    for name, row in results.items():
        if not isinstance(row, dict):
            print(f"{name:>9} {row}")
            continue
        print(f"{name:>9} {row['tokens_per_s']:9,.0f} tokens/s, {row['times_as_long_as_finetune']:5.2f} x the time, "
              f"{row['peak_mib']:6.0f} MiB above the base ({row['times_the_memory_of_finetune']:.2f} x), "
              f"perplexity {row['perplexity']:.4f} ({row['perplexity_against_finetune']:+.3%})")  # fmt: skip
    if options.output:
        _write(options, results)


def _write(options: argparse.Namespace, results: dict[str, object]) -> None:
    from finetune.provenance import versions

    settings = {key: getattr(options, key) for key in ("model", "rows", "rounds", "budget")}
    text = json.dumps({"machine": _processor(), "versions": versions(), **settings, "results": results}, indent=1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n", encoding="utf-8")


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores of {names[0].partition(':')[2].strip()}" if names else platform.processor()


if __name__ == "__main__":
    main()
