"""Many adapters over one base: what swapping, mixing and keeping them costs, beside PEFT in the same run.

    python benchmarks/serving.py                              tiny and the shape of SmolLM2-135M, NF4
    python benchmarks/serving.py --shapes tiny --precision fp32
    python benchmarks/serving.py --markdown                   the tables of the kept results as text

step      one token for each of 8 rows behind 64 tokens in the cache: the base alone, one adapter for all rows, 8
          adapters; also with PEFT's layers over the same base, one adapter set and `adapter_names` for the 8. Their
          order changes by the round, and the medians are compared.
prefill   the same for 64 tokens of each of the 8 rows.
swap      from the name of a resident adapter to where a forward pass can begin, a thousand times; beside it loading
          an adapter from the disk, and the base with its adapter anew.
resident  what 100 adapters, and with them a mixed batch of 8, take above the base, against the adapters' own numbers
          in the base's dtype; tokens per second with 1, 8, 64 and 512 adapters loaded: every 16 steps 8 rows draw
          their adapters anew.

Adapters are random, r = 8 on every linear layer. The results are merged into benchmarks/results/serving-cpu.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import workloads
from serving_bank import Place, measure_batches, measure_resident, measure_swaps
from training_report import processor

from finetune.model.base import load_base
from finetune.provenance import versions
from finetune.recipe import BaseSection
from finetune.serving.forward import evaluating

RESULTS = Path(__file__).parent / "results" / "serving-cpu.json"
PRECISIONS = {"nf4": ("nf4", "bfloat16"), "bf16": ("none", "bfloat16"), "fp32": ("none", "float32")}
MEASURES: dict[str, Callable[[Place, int], dict[str, Any]]] = {
    "batches": measure_batches,
    "swap": measure_swaps,
    "resident": measure_resident,
}


def run(shape: str, precision: str, measures: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure one shape in this process."""
    quantization, dtype = PRECISIONS[precision]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        where = workloads.model_folder(shape, Path(folder) / "models")
        section = BaseSection(model=where, quantization=quantization, dtype=dtype)
        base = load_base(section, torch.device("cpu"))
        with evaluating(base.model):  # as the engine does: 4-bit weights dequantised once, where memory allows
            for name in measures:
                found[name] = MEASURES[name](Place(section, base, Path(folder) / name), rounds)
                gc.collect()
    return found


def markdown(found: dict[str, Any]) -> str:
    """The results as one table, a column for each shape and precision."""
    columns = {name: dict(_flat(measures)) for name, measures in found["results"].items()}
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for row in rows:
        cells = [_number(column[row]) if row in column else "not measured" for column in columns.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    machine = found["machine"]
    lines += ["", f"{machine['threads']} threads of {machine['processor']}; {machine['day']}."]
    return "\n".join(lines)


def _flat(measures: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, values in measures.items():
        for key, value in values.items():
            if isinstance(value, dict):
                yield from ((f"{key}: {part}", number) for part, number in value.items())
            else:
                yield f"{name}: {key}", value


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"


def main() -> None:
    """Measure, merge into the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(workloads.SHAPES))
    parser.add_argument("--precision", choices=PRECISIONS, default="nf4")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--markdown", action="store_true", help="print what was measured before, and measure nothing")
    args = parser.parse_args()
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"results": {}}
    if args.markdown:
        print(markdown(found))
        return
    torch.set_num_threads(args.threads)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for shape in args.shapes:
        measured = run(shape, args.precision, args.measures, args.rounds)
        found["results"].setdefault(f"{shape}, {args.precision}", {}).update(measured)
    day = time.strftime("%Y-%m-%d")
    found["machine"] = {"processor": processor("cpu"), "threads": args.threads, "versions": versions(), "day": day}
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
