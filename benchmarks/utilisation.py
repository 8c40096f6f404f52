"""How close a training step comes to what the machine can do: its floating point operations, and the machine's rate.

python benchmarks/utilisation.py MODEL_FOLDER [--device cuda]      prints the rates as one line of JSON
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SQUARE, TOKENS = 2048, 1024  # side of the square product; rows of the products of a model's own shapes
SECONDS = 1.0  # of measuring, for each product


@dataclass(frozen=True)
class Shape:
    """What the operations of a decoder depend on."""

    layers: int
    hidden: int
    heads_width: int  # heads * head_dim
    kv_width: int
    inner: int  # of the MLP
    vocabulary: int

    @classmethod
    def read(cls, folder: str) -> Shape:
        """Take it from a model's config.json (Llama, Qwen and their like)."""
        config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        heads, width = config["num_attention_heads"], config["hidden_size"]
        head = config.get("head_dim") or width // heads
        kv = (config.get("num_key_value_heads") or heads) * head
        return cls(
            config["num_hidden_layers"], width, heads * head, kv, config["intermediate_size"], config["vocab_size"]
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        qkv = [(self.hidden, width) for width in (self.heads_width, self.kv_width, self.kv_width)]
        mlp = [(self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden)]
        return [*qkv, (self.heads_width, self.hidden), *mlp]


def step_flops(shape: Shape, r: int, lengths: Sequence[int], trained: int) -> float:
    """Floating point operations that one pass forward and back needs, and no more.

    `lengths`: tokens of each example; `trained`: tokens with a label. Frozen weights W of every layer: W x forward and
    the gradient of x back, 4 each; adapters 6. Causal attention: 2 S^2 d forward and 5 back, where flash attention
    computes the scores again. The frozen head on trained rows: 4. The lowest layer's q, k, v need no gradient of x.
    """
    tokens = sum(lengths)
    weights = shape.layers * sum(a * b for a, b in shape.linears)
    adapters = shape.layers * sum(r * (a + b) for a, b in shape.linears)
    attention = 7 * shape.heads_width * shape.layers * sum(length**2 for length in lengths)
    lowest = sum(2 * a * b + 2 * r * a for a, b in shape.linears[:3])
    head = 4 * shape.vocabulary * shape.hidden * trained
    return float(4 * weights * tokens + 6 * adapters * tokens + attention + head - lowest * tokens)


def square_rate(device: str) -> float:
    """bf16 FLOP/s of a square matrix product."""
    import torch

    a, b = (torch.randn(SQUARE, SQUARE, device=device).to(torch.bfloat16) for _ in range(2))
    return 2 * SQUARE**3 / _best(lambda: torch.mm(a, b), device)


def shape_rate(shape: Shape, device: str) -> float:
    """bf16 FLOP/s of the products x W^T and g W of one decoder layer, 1,024 rows of x, weighted by their operations."""
    import torch

    work, seconds, known = 0.0, 0.0, dict[tuple[int, int], float]()
    for a, b in shape.linears:
        if (a, b) not in known:
            x, w, g = (
                torch.randn(*size, device=device).to(torch.bfloat16) for size in ((TOKENS, a), (b, a), (TOKENS, b))
            )
            forward = _best(lambda x=x, w=w: torch.mm(x, w.t()), device)
            known[a, b] = forward + _best(lambda g=g, w=w: torch.mm(g, w), device)
        work += 4 * TOKENS * a * b
        seconds += known[a, b]
    return work / seconds


def _best(work: Callable[[], Any], device: str) -> float:
    """Least seconds of a call, among as many as fit into SECONDS."""
    import torch

    for _ in range(3):
        work()
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print both rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rates = {
        "square_flops_per_s": square_rate(options.device),
        "shapes_flops_per_s": shape_rate(Shape.read(options.model), options.device),
    }
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
