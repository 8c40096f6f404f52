"""Memory that the planner counts against memory that training takes, each configuration in a process of its own.

    python benchmarks/memory.py [--only NAME ...] [--out benchmarks/results/memory-cpu.json]

Measured is a run of a few optimizer steps by the loop itself, from the loaded base with its adapter on. On a CPU: the
most bytes that PyTorch's allocator has given out at a time, plus those of the model's own tensors. On a GPU:
torch.cuda.max_memory_allocated. Estimated is the peak of the closed form (finetune/model/memory.py, activations.py)
for the same micro-batches. Weights are random; the memory does not depend on them.

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
from typing import Any, NamedTuple

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
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


class Configuration(NamedTuple):
    shape: dict[str, int]
    quantization: str
    r: int
    tokens: int  # of a micro-batch
    lengths: tuple[int, int]
    recompute: int = 0
    method: str = "lora"
    full: tuple[str, ...] = ()  # modules that are trained in full; embeddings only if they are not the head's, too
    optimizer: str = "adamw"
    adapters: int = 1  # trained at once


CONFIGURATIONS = {
    "tiny nf4 r16 2,048": Configuration(TINY, "nf4", 16, 2048, MIXED),
    "tiny nf4 r64 4,096": Configuration(TINY, "nf4", 64, 4096, SHORT),
    "tiny none r16 4,096": Configuration(TINY, "none", 16, 4096, LONG),
    "tiny nf4 r16 8,192 recomputed": Configuration(TINY, "nf4", 16, 8192, MIXED, 1),
    "middle nf4 r16 2,048": Configuration(MIDDLE, "nf4", 16, 2048, MIXED),
    "middle nf4 r64 2,048 long": Configuration(MIDDLE, "nf4", 64, 2048, LONG),
    "middle none r16 1,024": Configuration(MIDDLE, "none", 16, 1024, SHORT),
    "middle nf4 r16 4,096 recomputed": Configuration(MIDDLE, "nf4", 16, 4096, MIXED, 1),
    "middle nf4 r16 2,048 half recomputed": Configuration(MIDDLE, "nf4", 16, 2048, MIXED, 2),
    "135M nf4 r16 512": Configuration(SMOLLM2_135M, "nf4", 16, 512, SHORT),
    "135M nf4 r16 1,024": Configuration(SMOLLM2_135M, "nf4", 16, 1024, MIXED),
    "135M nf4 r64 2,048 long": Configuration(SMOLLM2_135M, "nf4", 64, 2048, LONG),
    "135M none r16 1,024": Configuration(SMOLLM2_135M, "none", 16, 1024, MIXED),
    "135M nf4 r16 2,048 recomputed": Configuration(SMOLLM2_135M, "nf4", 16, 2048, MIXED, 1),
    "tiny nf4 dora r16 2,048": Configuration(TINY, "nf4", 16, 2048, MIXED, method="dora"),
    "middle nf4 dora r16 1,024 recomputed": Configuration(MIDDLE, "nf4", 16, 1024, MIXED, 1, method="dora"),
    "tiny nf4 r64 1,024 adamw_8bit": Configuration(TINY, "nf4", 64, 1024, MIXED, optimizer="adamw_8bit"),
    "tiny nf4 r16 1,024 norms in full": Configuration(TINY, "nf4", 16, 1024, MIXED, full=NORMS),
    "middle nf4 r16 512 embeddings in full": Configuration(
        MIDDLE, "nf4", 16, 512, MIXED, full=("embed_tokens",), optimizer="adamw_8bit"
    ),
    "tiny nf4 r16 2,048 three at once": Configuration(TINY, "nf4", 16, 2048, MIXED, adapters=3),
}
STEPS, ANSWER = 2, 20  # the second step has the optimizer's state


def measure(name: str) -> dict[str, Any]:
    """Train a few steps in this process; return the estimated and the measured peak in bytes."""
    from accelerate import Accelerator

    from finetune.model.device import pick_device
    from finetune.model.lora import count_parameters, trained_parameters
    from finetune.training.loop import train_together

    set_up, device = CONFIGURATIONS[name], pick_device()
    rows = _rows(set_up.tokens, set_up.lengths)
    estimated, parts, jobs = _prepare(set_up, rows, device)
    model = next(iter(jobs.values())).model
    trained = [sum(p.nbytes for p in trained_parameters(model, job.adapter).values()) for job in jobs.values()]
    base = count_parameters(model, next(iter(jobs.values())).adapter).bytes_now - trained[0]
    before = _start(device)
    work_once = partial(train_together, jobs, Accelerator(cpu=device.type == "cpu"), lambda event: None)
    work_once()
    resident = base + sum(trained) + _peak(device) - before
    # A run lays its parameters out anew and frees them where they were; PyTorch's profiler does not say when
    # something is freed that was there before it, so they are counted in the run alone.
    measured = base + _allocated(model, work_once) if device.type == "cpu" else _peak(device)
    return {
        "name": name, "tokens": sum(len(row.ids) for row in rows), "estimated": estimated, "measured": measured,
        "ratio": estimated / measured, "resident": resident, "parts": parts,
    }  # fmt: skip


def _prepare(set_up: Configuration, rows: list[Any], device: Any) -> tuple[int, dict[str, int], dict[str, Any]]:
    """Estimate in all and part by part, and jobs that share the rows of one micro-batch."""
    from finetune.data.batches import TrainingRows
    from finetune.model.lora import attach, attach_together
    from finetune.model.memory import estimate
    from finetune.model.methods import ADAPTER
    from finetune.model.shapes import shape_of
    from finetune.planning.load import share
    from finetune.recipe import AdapterSection, TrainSection
    from finetune.training.budget import MemoryPlan
    from finetune.training.run import TrainingJob

    adapter = AdapterSection(
        r=set_up.r, alpha=2.0 * set_up.r, method=set_up.method, modules_to_save=set_up.full  # type: ignore[arg-type]
    )  # fmt: skip
    base = _base(set_up, device)
    shape = shape_of(base.model, adapter)
    names = [ADAPTER, *(f"adapter{number}" for number in range(1, set_up.adapters))]
    dealt = [rows[number :: len(names)] for number in range(len(names))]
    shared = share([_need(shape, set_up, own, device) for own in dealt])
    found = estimate(shape, replace(shared.most.work, tokens=shared.tokens, scored=len(rows) * ANSWER))
    sections = dict.fromkeys(names, (adapter, 0))
    model = attach_together(base, sections) if len(names) > 1 else attach(base, adapter, 0)
    plan = MemoryPlan(set_up.tokens, set_up.recompute)
    folder, jobs = Path(tempfile.gettempdir()) / f"finetune-memory-{os.getpid()}", {}
    for name, own in zip(names, dealt, strict=True):
        section = TrainSection(
            max_steps=STEPS, epochs=100.0, batch_size=len(own), optimizer=set_up.optimizer  # type: ignore[arg-type]
        )  # fmt: skip
        key, place = {"run": name}, folder / name
        jobs[name] = TrainingJob(
            base, model, TrainingRows(own), [], section, 0, place, 1000, key, plan, adapter.methods, name
        )
    parts = {part.name: part.bytes for part in found.parts}
    return found.peak + shared.others, {**parts, "other adapters": shared.others}, jobs


def _base(set_up: Configuration, device: Any) -> Any:
    """A base of this shape with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune.model.base import load_base
    from finetune.recipe import BaseSection

    tied = "embed_tokens" not in set_up.full
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(max_position_embeddings=4096, tie_word_embeddings=tied, **set_up.shape)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        _copy_tokenizer(Path(folder))
        return load_base(BaseSection(model=folder, quantization=set_up.quantization), device)  # type: ignore[arg-type]


def _need(shape: Any, set_up: Configuration, rows: list[Any], device: Any) -> Any:
    from finetune.model.memory import Workload
    from finetune.planning.load import Load, Need

    lengths = [len(row.ids) for row in rows]
    work = Workload(
        r=set_up.r, tokens=sum(lengths), longest=max(lengths), scored=len(rows) * ANSWER,
        precision=set_up.quantization, optimizer=set_up.optimizer,  # type: ignore[arg-type]
        recompute=set_up.recompute, cpu=device.type == "cpu",
    )  # fmt: skip
    return Need(shape, work, Load(len(rows), STEPS, 0, 0, 0, max(lengths), sum(lengths)))


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
