"""How long an evaluation takes: 200 prompts of 32 tokens each, base and adapter, on a random Llama of 1 M parameters.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --output benchmarks/results/evaluation-cpu.json

cold      `finetune eval` as a process of its own, imports included, with an empty cache
kept      the same again: everything comes from the cache
answers   only the answering: this project (batches, checks, journal) against one bare transformers `generate`
          of the same padded batch, in turn, in one process
one batch the base's and the adapter's prompts in one batch would take as long as twice as many prompts of one
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.recipe import Recipe

ROOT = Path(__file__).parent.parent
PROMPTS, TOKENS = 200, 32
RECIPE = """name: shop
output: {folder}/adapters
base: {{model: {folder}/base, dtype: float32}}
data: {{path: {folder}/rows.jsonl, heldout: 0.2, max_length: 128}}
adapter: {{r: 8}}
train: {{max_steps: 2}}
generation: {{max_new_tokens: {tokens}}}
eval: {{prompts: {folder}/prompts.yaml}}
"""


def prepare(folder: Path) -> Recipe:
    """A random base with the built-in tokenizer, rows, prompts, and an adapter after two steps."""
    import shutil

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from finetune import pipeline
    from finetune.recipe import load_recipe

    tiny = ROOT / "finetune" / "model" / "tiny"
    shutil.copytree(tiny, folder / "base", ignore=shutil.ignore_patterns("*.safetensors", "*.md", "config.json"))
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    rows = [{"instruction": f"Give me {n} pizzas and {n % 7} colas", "output": f"{n} pizzas."} for n in range(300)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        f"- {{id: p{n}, prompt: Please give me {n} pizzas, checks: [{{contains: pizza}}]}}\n" for n in range(PROMPTS)
    ]
    (folder / "prompts.yaml").write_text("prompts:\n" + "".join(asked))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, tokens=TOKENS))
    recipe = load_recipe(folder / "recipe.yaml")
    pipeline.train(recipe)
    return recipe


def run_command(folder: Path, cache: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FINETUNE_CACHE": str(cache)}
    start = time.perf_counter()
    command = [sys.executable, "-m", "finetune", "eval", str(folder / "recipe.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def answering(recipe: Recipe) -> dict[str, Callable[[], object]]:
    """The ways to answer that are compared; each answers every prompt with all its tokens."""
    import torch

    from finetune.data.encoding import encode_prompt
    from finetune.evaluation.suite import grade, load_prompts
    from finetune.journal import Journal
    from finetune.model.base import load_base
    from finetune.serving.assistant import Assistant
    from finetune.serving.generation import generate
    from finetune.serving.settings import sampling

    bot = Assistant(load_base(recipe.base, torch.device("cpu")), ["shop"], store=recipe.output)
    prompts = load_prompts(str(recipe.eval.prompts), None)
    ids = [encode_prompt(prompt.messages, bot.base.template) for prompt in prompts]
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])

    def ours(copies: int = 1, adapter: str | None = "shop") -> object:
        with bot.adapted(adapter) as base, tempfile.TemporaryDirectory() as folder:
            journal, settings = Journal(Path(folder) / "kept"), sampling(recipe.generation)
            answers = generate(
                base.model, base.tokenizer, ids * copies, stop_ids=(), settings=settings, seed=0, journal=journal
            )
        assert all(answer.tokens == TOKENS for answer in answers)
        return grade(prompts * copies, [[answer] for answer in answers])

    def bare(adapter: str | None = "shop") -> object:
        with bot.adapted(adapter) as base, torch.no_grad():
            return base.model.generate(
                input_ids=padded, attention_mask=mask, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
            )

    return {
        "finetune": ours,
        "transformers generate": bare,
        "finetune, the base": lambda: ours(1, None),
        "finetune, twice as many": lambda: ours(2),
    }


def main() -> None:
    """Print the table; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FINETUNE_CACHE"] = str(folder / "preparing")
        recipe = prepare(folder)
        found: dict[str, list[float]] = {"cold": [], "kept": []}
        for number in range(options.rounds):
            found["cold"].append(run_command(folder, folder / f"cache {number}"))
            found["kept"].append(run_command(folder, folder / f"cache {number}"))
        ways = answering(recipe)
        for way in ways.values():
            way()
        for _ in range(options.rounds):
            for title, way in ways.items():
                start = time.perf_counter()
                way()
                found.setdefault(title, []).append(time.perf_counter() - start)
    report(found, options.output)


def report(found: dict[str, list[float]], output: Path | None) -> None:
    median = {title: statistics.median(times) for title, times in found.items()}
    for title, seconds in median.items():
        print(f"{title:>25} {seconds:7.2f} s")
    ratios = {
        "finetune / transformers generate": median["finetune"] / median["transformers generate"],
        "both models in one batch / one after the other": median["finetune, twice as many"]
        / (median["finetune"] + median["finetune, the base"]),
    }
    for title, ratio in ratios.items():
        print(f"{title}: {ratio:.2f}")
    if output:
        from finetune.provenance import versions

        cores = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        machine = f"{len(cores)} cores of {cores[0].partition(':')[2].strip()}" if cores else platform.processor()
        text = json.dumps({"machine": machine, "versions": versions(), "seconds": found, "ratios": ratios}, indent=1)
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
