"""Memory that the planner counts against memory that training takes, each configuration in a process of its own.

    python benchmarks/memory.py [--only NAME ...] [--out benchmarks/results/memory-cpu.json]

Measured is a run of a few optimizer steps by the loop itself, from the loaded base with its adapter on. On a CPU: the
most bytes that PyTorch's allocator has given out at a time, plus those of the model's own tensors. On a GPU:
torch.cuda.max_memory_allocated. Estimated is the peak of the closed form (finetune/model/memory.py) for the same
micro-batches. Weights are random; the memory does not depend on them.

Beside it, on a CPU, the resident memory: its peak (VmHWM, set back before the first step) less what was resident then,
plus the model's own tensors. It is larger, because the C library keeps what was freed in pieces that do not fit what
is asked for next, and because the first step brings in code and buffers of oneDNN. The planner leaves room for that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from allocations import peak_of

TINY = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 8192,
}  # fmt: skip
MIDDLE = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 32000,
}  # fmt: skip
SMOLLM2_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152,
}  # fmt: skip
SHORT, MIXED, LONG = (40, 120), (60, 350), (500, 1000)  # tokens of an example, from and to
# Name -> shape, quantization, rank, tokens of a micro-batch, lengths, recomputation.
CONFIGURATIONS: dict[str, tuple[dict[str, int], str, int, int, tuple[int, int], int]] = {
    "tiny nf4 r16 2,048": (TINY, "nf4", 16, 2048, MIXED, 0),
    "tiny nf4 r64 4,096": (TINY, "nf4", 64, 4096, SHORT, 0),
    "tiny none r16 4,096": (TINY, "none", 16, 4096, LONG, 0),
    "tiny nf4 r16 8,192 recomputed": (TINY, "nf4", 16, 8192, MIXED, 1),
    "middle nf4 r16 2,048": (MIDDLE, "nf4", 16, 2048, MIXED, 0),
    "middle nf4 r64 2,048 long": (MIDDLE, "nf4", 64, 2048, LONG, 0),
    "middle none r16 1,024": (MIDDLE, "none", 16, 1024, SHORT, 0),
    "middle nf4 r16 4,096 recomputed": (MIDDLE, "nf4", 16, 4096, MIXED, 1),
    "middle nf4 r16 2,048 half recomputed": (MIDDLE, "nf4", 16, 2048, MIXED, 2),
    "135M nf4 r16 512": (SMOLLM2_135M, "nf4", 16, 512, SHORT, 0),
    "135M nf4 r16 1,024": (SMOLLM2_135M, "nf4", 16, 1024, MIXED, 0),
    "135M nf4 r64 2,048 long": (SMOLLM2_135M, "nf4", 64, 2048, LONG, 0),
    "135M none r16 1,024": (SMOLLM2_135M, "none", 16, 1024, MIXED, 0),
    "135M nf4 r16 2,048 recomputed": (SMOLLM2_135M, "nf4", 16, 2048, MIXED, 1),
}
STEPS, ANSWER = 2, 20  # the second step has the optimizer's state


def measure(name: str) -> dict[str, Any]:
    """Train a few steps in this process; return the estimated and the measured peak in bytes."""
    import torch
    from accelerate import Accelerator
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune.data.batches import TrainingRows
    from finetune.model.base import load_base
    from finetune.model.device import pick_device
    from finetune.model.lora import attach, count_parameters
    from finetune.model.memory import Workload, estimate
    from finetune.model.shapes import shape_of
    from finetune.recipe import AdapterSection, BaseSection, TrainSection
    from finetune.training.budget import MemoryPlan
    from finetune.training.loop import train
    from finetune.training.run import TrainingJob

    shape, quantization, r, tokens, lengths, recompute = CONFIGURATIONS[name]
    device, adapter = pick_device(), AdapterSection(r=r, alpha=2.0 * r)
    with tempfile.TemporaryDirectory() as folder:
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, tie_word_embeddings=True, **shape))
        model.to(torch.bfloat16).save_pretrained(folder)
        del model
        _copy_tokenizer(Path(folder))
        base = load_base(BaseSection(model=folder, quantization=quantization), device)  # type: ignore[arg-type]
    counted = shape_of(base.model, adapter)
    model = attach(base, adapter, 0)
    rows = _rows(tokens, lengths)
    section = TrainSection(max_steps=STEPS, epochs=100.0, batch_size=len(rows))
    key, checkpoint = {"run": name}, Path(tempfile.gettempdir()) / f"finetune-memory-{os.getpid()}"
    plan = MemoryPlan(tokens, recompute)
    job = TrainingJob(base, model, TrainingRows(rows), [], section, 0, checkpoint, 1000, key, plan)
    own = count_parameters(model).bytes_now
    before = _start(device)
    work_once = partial(train, job, Accelerator(cpu=device.type == "cpu"), lambda event: None)
    work_once()
    resident = own + _peak(device) - before
    measured = own + _allocated(model, work_once) if device.type == "cpu" else _peak(device)
    packed = sum(len(row.ids) for row in rows)
    work = Workload(
        r=r, tokens=packed, longest=max(len(row.ids) for row in rows), scored=len(rows) * ANSWER,
        precision=quantization, cpu=device.type == "cpu",  # type: ignore[arg-type]
    )  # fmt: skip
    found = estimate(counted, replace(work, recompute=recompute))
    return {
        "name": name, "tokens": packed, "estimated": found.peak, "measured": measured, "ratio": found.peak / measured,
        "resident": resident,
        "parts": {part.name: part.bytes for part in found.parts},
    }  # fmt: skip


def _copy_tokenizer(folder: Path) -> None:
    from finetune.model.hub import local_path
    from finetune.recipe import BaseSection

    for file in Path(local_path(BaseSection(model="tiny"))).iterdir():
        if file.suffix in (".json", ".jinja") and file.name not in ("config.json", "generation_config.json"):
            (folder / file.name).write_bytes(file.read_bytes())


def _rows(tokens: int, lengths: tuple[int, int]) -> list[Any]:
    """Made-up examples that together are one micro-batch."""
    from finetune.data.encoding import Encoded

    pick, rows, left = random.Random(0), list[Any](), tokens
    while left >= lengths[1]:
        size = pick.randint(*lengths)
        ids = [pick.randrange(10, 8000) for _ in range(size)]
        rows.append(Encoded(ids, [0] * (size - ANSWER) + [1] * ANSWER, f"row {len(rows)}", ANSWER))
        left -= size
    return rows


def _allocated(model: Any, work: Callable[[], object]) -> int:
    """Bytes that a run allocates at most, nothing being left of an earlier one."""
    from finetune.model import blocks, dense

    for parameter in model.parameters():
        parameter.grad = None
    blocks._blocks.cache_clear()
    dense._scratch.clear()
    return peak_of(work)


def _start(device: Any) -> int:
    """Begin to note the peak; return what is taken now."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now
    return _status("VmRSS")


def _peak(device: Any) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Measure every configuration, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--one", choices=list(CONFIGURATIONS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory-cpu.json"))
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    results = []
    for name in args.only:
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        sizes = {key: results[-1][key] / 1e6 for key in ("estimated", "measured", "resident")}
        line = "{estimated:8.1f} MB estimated, {measured:8.1f} MB allocated, {resident:8.1f} MB resident".format(
            **sizes
        )
        print(f"{name:38} {results[-1]['tokens']:5} tokens: {line}, ratio {results[-1]['ratio']:.3f}", flush=True)
    from finetune.provenance import versions

    args.out.write_text(json.dumps({"versions": versions(), "steps": STEPS, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
