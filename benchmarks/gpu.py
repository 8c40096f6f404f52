"""What one large GPU does: speed of an 8B model in 4 bits, a 65B one within 48 GB, estimates against measured peaks.

    python benchmarks/gpu.py                                   at most 10 minutes; needs about 50 GB of GPU memory
    python benchmarks/gpu.py --python TRL=trl/bin/python       with peers from environments of their own
    python benchmarks/gpu.py --toy                             the same steps with toy shapes on the CPU

Bases have the shapes of Llama-3.1-8B and LLaMA-65B and random weights, made on the device one layer after the other
and quantised to NF4 there. Parts, each a process of its own:

attention  torch's varlen attention against this project's for packed rows: difference and time
8b         QLoRA on short pairs: useful tokens/s, utilisation, and peak memory against the estimate for several plans
65b        20 optimizer steps with the allocator capped at 48 GB, and the estimate
peers      the 8B shape with what is installed; in bf16 on the disk, since they load from there
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import training
import training_report
from recording import Recorder, Task, status
from utilisation import Shape, square_rate, step_flops

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.model.base import Base

MINUTES, CAP = 10, 48 * 10**9
SAME = {"max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "65b": {
        "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 64, "vocab_size": 32000,
    },
    "toy": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 8192,
    },
}  # fmt: skip
Found = dict[str, Any]


def config_of(name: str) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES[name], **SAME, tie_word_embeddings=False)


def random_base(name: str, device: str) -> Base:
    """A base with random NF4 weights; never more than one layer's weights exist in 16 bits."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    from finetune.model.attention import keeps_segments_apart
    from finetune.model.base import Base, keep_trainable_through
    from finetune.model.tokenizer import load_chat_template
    from finetune.recipe import BaseSection

    config = config_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    torch.manual_seed(0)
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not model.get_output_embeddings():
                setattr(parent, key, _random_nf4(child.in_features, child.out_features, device))
            elif (weight := child._parameters.get("weight")) is not None:
                drawn = torch.randn(weight.shape, device=device, dtype=weight.dtype) * 0.02
                child.weight = nn.Parameter(drawn + (weight.dim() == 1), requires_grad=False)  # norms are near 1
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)
    keep_trainable_through(model)
    template = load_chat_template(BaseSection(model="tiny"))
    packs = keeps_segments_apart(model, len(template.tokenizer))
    return Base(model, template.tokenizer, template, name, None, {}, "nf4", torch.device(device), packs)


def _random_nf4(inputs: int, outputs: int, device: str) -> Any:
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        layer = Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    drawn = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16) * inputs**-0.5
    layer.weight = Params4bit(drawn, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer)
    return layer.to(device)


def task_of(name: str, options: argparse.Namespace, folder: Path) -> Task:
    """Short pairs in optimizer steps of --batch examples; a GPU's results are read every ten steps."""
    steps, warm_up = (2, 1) if options.toy else (20, 10)
    rows, heldout = training.tokenised("pairs", (warm_up + steps) * options.batch)
    (folder / "rows.json").write_text(json.dumps({"train": rows, "heldout": heldout}), encoding="utf-8")
    return Task("finetune", name, str(folder / "rows.json"), options.device, options.batch, warm_up, steps, 2e-4, 0)


def run_training(name: str, options: argparse.Namespace, folder: Path, *, cap: int | None = None) -> Found:
    """Train, and hold the measured peak against the estimate; without a cap for several plans."""
    import ours
    import torch

    from finetune.model.memory import estimate
    from finetune.model.shapes import shape_of
    from finetune.planning.load import measure_load, workload
    from finetune.training.budget import MemoryPlan

    if cap and options.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory)
    started = time.perf_counter()
    base = random_base("toy" if options.toy else name, options.device)
    built = time.perf_counter() - started
    task = task_of(base.name, options, folder)
    recorder = Recorder(task)
    recorder.loaded()
    recipe = ours.recipe_of(task, recorder.rows)
    shape = shape_of(base.model, recipe.adapter)
    job = ours.job_of(recipe, base, recorder, memory=cap)
    work = workload(recipe, measure_load(recipe, ours.dataset_of(recipe, recorder)), cpu=options.device == "cpu")
    ours.train(job, recorder)
    result = {**recorder.result(job.model), "build_s": built, "rank": recipe.adapter.r}
    plans = [job.plan]
    if cap is None:
        tokens = (work.longest, 2048) if options.toy else (1024, 4096, 16384)
        plans += [MemoryPlan(count, recompute) for count in tokens for recompute in (0, 1)]
    result["estimates"] = []
    for plan in plans:
        changed = {"recompute": plan.recompute, "offload": plan.offload, "dense_bytes": plan.dense_bytes}
        expected = estimate(shape, replace(work, tokens=min(plan.tokens, work.tokens), **changed)).peak
        recorder.loaded()
        ours.train(replace(job, plan=plan, section=job.section.model_copy(update={"max_steps": 2})), Recorder(task))
        measured = torch.cuda.max_memory_allocated() if options.device == "cuda" else status("VmHWM") * 1024
        row = {"plan": plan.describe(), "estimated_gb": expected / 1e9, "measured_gb": measured / 1e9}
        result["estimates"].append({**row, "estimated_over_measured": expected / measured})
    return {**result, **_utilisation(base.name, recorder, result)}


def _utilisation(name: str, recorder: Recorder, result: Found) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        config_of(name).save_pretrained(folder)
        shape = Shape.read(folder)
    rows = recorder.timed
    flops = step_flops(shape, result["rank"], [len(r["ids"]) for r in rows], sum(sum(r["mask"][1:]) for r in rows))
    rate = square_rate(recorder.task.device)
    return {"square_flops_per_s": rate, "utilisation_square": flops / result["seconds"] / rate}


def run_attention(options: argparse.Namespace, folder: Path) -> Found:
    """Both ways over the same packed row: largest difference of output and gradients, and milliseconds."""
    import torch

    from finetune.model.attention import segment_attention

    heads, kv, width = (4, 2, 16) if options.toy else (32, 8, 128)
    lengths = [24, 75, 46, 60] * (1 if options.toy else 20)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    segments = tuple((end - length, end) for length, end in zip(lengths, ends, strict=True))
    torch.manual_seed(0)
    kind = {"device": options.device, "dtype": torch.bfloat16, "requires_grad": True}
    inputs = [torch.randn(1, count, ends[-1], width, **kind) for count in (heads, kv, kv)]
    gradient = torch.randn(1, ends[-1], heads, width, device=options.device, dtype=torch.bfloat16)
    reference = _varlen if options.device == "cuda" else _one_by_one
    results, times = {}, {}
    ways: dict[str, Callable[[], Tensor]] = {
        "finetune": lambda: segment_attention(torch.nn.Identity(), *inputs, None, segments=segments)[0],
        reference.__name__.strip("_"): lambda: reference(*inputs, segments),
    }
    for name, way in ways.items():
        for _ in range(10):
            start = _now(options.device)
            out = way()
            results[name] = [out, *torch.autograd.grad(out, inputs, gradient)]
            times[f"{name}_ms"] = 1e3 * (_now(options.device) - start)
    pairs = zip(*results.values(), strict=True)
    names = ("output", "query", "key", "value")
    differences = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs]
    return {**times, "relative_difference": dict(zip(names, differences, strict=True)), "tokens": ends[-1]}


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...]) -> Tensor:
    import torch
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.tensor([0, *(end for _, end in segments)], dtype=torch.int32, device=q.device)
    longest = max(end - start for start, end in segments)
    flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (q, k, v)]
    out = varlen_attn(*flat, starts, starts, longest, longest, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1])
    return out[None]


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...]) -> Tensor:
    """Where there is no varlen attention: PyTorch's kernel, an example at a time."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    parts = [[tensor[:, :, start:end] for tensor in (q, k, v)] for start, end in segments]
    out = [scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts]
    return torch.cat(out, dim=2).transpose(1, 2)


def _now(device: str) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def run_peers(options: argparse.Namespace, folder: Path) -> Found:
    """The same task from a folder in bf16, for each peer that is installed."""
    import torch
    from transformers import AutoModelForCausalLM

    from finetune.model.tokenizer import load_tokenizer
    from finetune.recipe import BaseSection

    names = [name for name in training.PACKAGES if name != "finetune"]
    pythons = training.interpreters(options)
    found: Found = {name: training.missing(name, pythons[name], options.device) for name in names}
    if all(found.values()):
        return {name: f"not measured: {why}" for name, why in found.items()}
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config_of("toy" if options.toy else "8b"), dtype=torch.bfloat16)
    model.save_pretrained(folder / "model", max_shard_size="4GB")
    load_tokenizer(BaseSection(model="tiny")).save_pretrained(folder / "model")
    del model
    if options.device == "cuda":
        torch.cuda.empty_cache()
    task = task_of(str(folder / "model"), options, folder)
    for name, why in found.items():
        outcome = why or training.measure(replace(task, contender=name), pythons[name])
        found[name] = f"not measured: {outcome}" if isinstance(outcome, str) else outcome
    return found


PARTS: dict[str, Callable[[argparse.Namespace, Path], Found]] = {
    "attention": run_attention,
    "8b": lambda options, folder: run_training("8b", options, folder),
    "65b": lambda options, folder: run_training("65b", options, folder, cap=CAP),
    "peers": run_peers,
}


def main() -> None:
    """Run the parts one after the other, each in what is left of the time; write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--batch", type=int, help="examples per optimizer step; default: 64, with --toy 4")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device, options.batch = ("cpu" if options.toy else "cuda"), options.batch or (4 if options.toy else 64)
    if options.part:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(PARTS[options.part](options, Path(folder))))
        return
    until, found = time.monotonic() + 60 * MINUTES, {}
    for part in options.parts:
        command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
        try:
            left = max(1.0, until - time.monotonic())
            done = subprocess.run(
                command, env=_environment(), capture_output=True, text=True, timeout=left, check=False
            )
            failed = (done.stderr.strip().splitlines() or [""])[-1]
            found[part] = failed[:500] if done.returncode else json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            found[part] = f"not measured: {MINUTES} minutes were over"
        print(part, json.dumps(found[part], indent=1), flush=True)
    options.rounds, options.warm_up, options.learning_rate, options.seed = 1, None, 2e-4, 0
    if not options.toy:
        training_report.write(options, "gpu", found)


def _environment() -> dict[str, str]:
    return training.environment(sys.executable)


if __name__ == "__main__":
    main()
