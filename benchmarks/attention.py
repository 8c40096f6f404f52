"""Segment attention on a CPU: blocks of plain matrix products against PyTorch's kernel, bf16, with backward.

    python benchmarks/attention.py [--rounds 15] [--out benchmarks/results/attention-cpu.json]

Both do the same work, in turn, in one process; printed are medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.model import attention
from finetune.provenance import versions

TOKENS = 2048  # in a packed row
HEADS, WIDTH = 4, 64


def run(inputs: list[Tensor], segments: attention.Segments, gradient: Tensor) -> None:
    """Attend and go back once."""
    out, _ = attention.segment_attention(nn.Identity(), *inputs, None, segments=segments)
    torch.autograd.grad(out, inputs, gradient)


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(length: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds for segments of this length, both ways in turn."""
    starts = range(0, TOKENS - length + 1, length)
    segments = tuple((start, start + length) for start in starts)
    rows = segments[-1][1]
    inputs = [torch.randn(1, HEADS, rows, WIDTH, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(1, rows, HEADS, WIDTH, dtype=torch.bfloat16)
    times: dict[str, list[float]] = {"blocks": [], "kernel": []}
    for number in range(rounds + 2):
        for name, seconds in times.items():
            attention._kernel_is_slow = lambda q, longest, name=name: name == "blocks"
            seconds.append(timed(lambda: run(inputs, segments, gradient)))
        if number < 2:  # warm-up
            times = {name: [] for name in times}
    blocks, kernel = (1e3 * statistics.median(times[name]) for name in ("blocks", "kernel"))
    return {"segment_tokens": length, "blocks_ms": blocks, "kernel_ms": kernel, "kernel_over_blocks": kernel / blocks}


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention-cpu.json"))
    args = parser.parse_args()
    rows = [compare(length, args.rounds) for length in (32, 64, 128, 256, 512, 1024, 2048)]
    for row in rows:
        print("{segment_tokens:5} tokens: blocks {blocks_ms:6.1f} ms, kernel {kernel_ms:6.1f} ms, "
              "ratio {kernel_over_blocks:.2f}".format(**row))  # fmt: skip
    machine = {"processor": _processor(), "threads": torch.get_num_threads(), "versions": versions()}
    args.out.write_text(json.dumps({"machine": machine, "rows_of": TOKENS, "results": rows}, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    kinds = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())
    return " ".join([name, *kinds])


if __name__ == "__main__":
    main()
