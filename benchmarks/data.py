"""Prepare a data set side by side: finetune against `datasets.map` and against TRL's SFTTrainer.

    python benchmarks/data.py                                  finetune and datasets.map, 10 k to 1 M rows
    python benchmarks/data.py --trl-python trl/bin/python      TRL, too; it lives in an environment of its own

Each contender is a process of its own, in turn, on the same rows, tokenizer and chat template (the
built-in base's). "check" reads, looks at, compares, splits and tokenises every row and leaves the
tokens in the cache; "prepare" does the same without looking; "pack" makes every micro-batch of an epoch.
datasets.map renders the chat template and tokenises in batches; TRL tokenises, masks and packs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = ROOT / "finetune" / "model" / "tiny"
MAX_LENGTH, BATCH_SIZE, BUDGET = 512, 16, 4096
PROMPT_WORDS, ANSWER_WORDS = (10, 60), (20, 75)  # a row has about 500 bytes


def write_rows(path: Path, count: int) -> None:
    """Write `count` instruction rows of ordinary words; the same for the same count."""
    text = (ROOT / "data" / "general" / "train.jsonl").read_text(encoding="utf-8")
    words = sorted({word for word in text.replace('"', " ").split() if word.isalpha()})
    pick = random.Random(count)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            prompt, answer = (
                " ".join(pick.choices(words, k=pick.randint(*span))) for span in (PROMPT_WORDS, ANSWER_WORDS)
            )
            file.write(json.dumps({"instruction": prompt, "output": answer}) + "\n")


def run_finetune(path: Path, *, look: bool) -> dict[str, float]:
    from finetune.data.batches import TrainingRows, pack
    from finetune.data.dataset import load_dataset
    from finetune.data.lint.check import check_data
    from finetune.data.lint.findings import Findings
    from finetune.model.tokenizer import load_chat_template
    from finetune.recipe import BaseSection, DataSection

    started = time.perf_counter()
    template = load_chat_template(BaseSection(model="tiny"))
    section = DataSection(path=str(path), heldout=0.01, max_length=MAX_LENGTH)
    if look:
        check_data(section, template, Findings())
    dataset = load_dataset(section, template)
    prepared = time.perf_counter()
    rows = TrainingRows(dataset.train)
    order = rows.epoch(0, 0)
    tokens = 0
    for start in range(0, len(order), BATCH_SIZE):
        tokens += sum(b.input_ids.numel() for b in pack(rows.take(order[start : start + BATCH_SIZE]), BUDGET))
    packed = time.perf_counter()
    return {"prepare_s": prepared - started, "pack_s": packed - prepared, "tokens": tokens}


def run_map(path: Path) -> dict[str, float]:
    from datasets import load_dataset
    from transformers import AutoTokenizer

    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(TINY)

    def encode(rows: dict[str, list[str]]) -> dict[str, object]:
        pairs = zip(rows["instruction"], rows["output"], strict=True)
        talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
        texts = tokenizer.apply_chat_template(talks, tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    data = load_dataset("json", data_files=str(path), split="train")
    data = data.map(encode, batched=True, remove_columns=data.column_names)
    return {"prepare_s": time.perf_counter() - started, "pack_s": 0.0, "tokens": 0}


def run_trl(path: Path, processes: int | None) -> dict[str, float]:
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    started = time.perf_counter()
    data = load_dataset("json", data_files=str(path), split="train")
    data = data.rename_columns({"instruction": "prompt", "output": "completion"})

    def as_talk(row: dict[str, str]) -> dict[str, object]:
        question = [{"role": "user", "content": row["prompt"]}]
        return {"prompt": question, "completion": [{"role": "assistant", "content": row["completion"]}]}

    data = data.map(as_talk, num_proc=processes)
    folder = str(path.parent / "trl")
    settings = SFTConfig(
        output_dir=folder, packing=True, max_length=MAX_LENGTH, dataset_num_proc=processes, use_cpu=True, bf16=False
    )
    trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    assert trainer.train_dataset is not None
    return {"prepare_s": time.perf_counter() - started, "pack_s": 0.0, "tokens": 0}


CONTENDERS = {
    "finetune check": lambda path: run_finetune(path, look=True),
    "finetune prepare": lambda path: run_finetune(path, look=False),
    "datasets.map": run_map,
    "TRL": lambda path: run_trl(path, None),
    "TRL, 2 processes": lambda path: run_trl(path, 2),
}


def measure(name: str, path: Path, python: str) -> dict[str, object]:
    """Run one contender in a process of its own, with caches of its own."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"FINETUNE_CACHE": folder, "HF_DATASETS_CACHE": f"{folder}/datasets", "HF_HUB_OFFLINE": "1"}
        environment = {**os.environ, **caches, "PYTHONPATH": str(ROOT)}
        command = [python, __file__, "--run", name, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))


def run_one(name: str, path: Path) -> None:
    """The measured process."""
    result: dict[str, object] = dict(CONTENDERS[name](path))
    rss = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result["peak_rss_mib"] = round(rss / 1024)
    result["versions"] = {p: _version(p) for p in ("finetune", "tokenizers", "transformers", "datasets", "trl")}
    print(json.dumps(result))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores of {names[0].partition(':')[2].strip()}" if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--trl-python", help="interpreter of an environment with trl; without it TRL is left out")
    parser.add_argument(
        "--most", type=int, default=100_000, help="rows at most for the contenders that are not finetune"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "data-cpu.json")
    parser.add_argument("--run", nargs=2, metavar=("CONTENDER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_one(options.run[0], Path(options.run[1]))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for count in options.rows:
            path = Path(folder) / f"rows-{count}.jsonl"
            write_rows(path, count)
            for name in options.contenders:
                theirs = not name.startswith("finetune")
                if (name.startswith("TRL") and not options.trl_python) or (theirs and count > options.most):
                    continue
                python = options.trl_python if name.startswith("TRL") else sys.executable
                found = measure(name, path, python)
                seconds = float(str(found["prepare_s"])) + float(str(found["pack_s"]))
                row = {"contender": name, "rows": count, "mb": path.stat().st_size / 1e6, "rows_per_s": count / seconds}
                results.append({**row, **found})
                print(f"{name:>18} {count:>9,} rows {seconds:8.1f} s {count / seconds:9,.0f} rows/s", end=" ")
                print(
                    f"(prepare {found['prepare_s']:.1f} s, pack {found['pack_s']:.1f} s) {found['peak_rss_mib']} MiB",
                    flush=True,
                )
            path.unlink()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"machine": _processor(), "results": results}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
