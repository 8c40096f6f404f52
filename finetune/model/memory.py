"""How much memory a training run needs: a closed form over shapes, which the config alone gives.

Every tensor that counts stands in one of two tables: `SAVED` for what decoder layers keep for the backward, `_parts`
for the rest. tests/model/test_memory.py compares both with what a real step saves and allocates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from finetune.model.attention import aligned
from finetune.model.blocks import CHUNK_ROWS, LONGEST
from finetune.model.decoder import GATE_UP, QKV
from finetune.model.shapes import LinearShape, ModelShape

Precision = Literal["nf4", "int8", "none"]
# Bytes per weight with double quantisation: 4 bits, an 8-bit constant for 64 weights and an fp32 one for 64 * 256,
# Dettmers et al. (2023, arXiv 2305.14314) section 3.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
MASTER, GRADIENT = 4, 4  # bytes per trained number, both in fp32
MOMENTS = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # bytes per trained number
CHUNK = 1024  # rows of logits that exist at a time, at most
CPU_LOGITS = 1 << 20  # logits that exist at a time on a CPU in the dtype of the computation: 2 MiB in bf16
CPU_ROWS = 128  # but at least so many rows of them: the head's weight is read for every chunk
FP32_LOGITS = 1 << 18  # of these in fp32, to be summed up: 1 MiB
_SHARED = (QKV, GATE_UP)  # linears that read one and the same input


@dataclass(frozen=True)
class Workload:
    """What is done with the model, as far as it decides the memory."""

    r: int
    tokens: int  # of a micro-batch
    longest: int  # tokens of its longest example
    scored: int | None = None  # trained tokens of a micro-batch: rows that go through the head; default: all
    precision: Precision = "nf4"
    width: int = 2  # bytes of a number in the compute dtype
    fill: float = 0.92  # of the blocks of attention, with tokens of ragged rows
    moments: int = 8  # bytes of the optimizer per trained number
    cpu: bool = True
    recompute: int = 0  # every k-th decoder layer is computed again in the backward; 0: none
    offload: bool = False  # what is kept for the backward lies in host memory
    dense_bytes: int = 0  # dequantised copies of weights that are kept

    @property
    def rows(self) -> int:
        """Rows that the layers really see: on a CPU a multiple of 64."""
        return aligned(self.tokens) if self.cpu else self.tokens

    @property
    def block(self) -> int:
        """Tokens of a block of attention, 0 where the kernel is used."""
        in_blocks = self.cpu and self.width == 2 and self.longest <= LONGEST
        return -(-self.longest // 32) * 32 if in_blocks else 0


class Saved(NamedTuple):
    """A tensor that decoder layers keep for the backward."""

    tensor: str
    values: Callable[[ModelShape, Workload], float]  # per token, of all layers, in the compute dtype


def _attention(shape: ModelShape, work: Workload) -> float:
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if work.block:
        return (wide + 2 * narrow) * shape.moved / work.fill
    return (wide + 2 * narrow + 2 * wide + 4 / work.width * shape.heads) * shape.moved


SAVED = (
    Saved("outputs of the two norms, which the linears read, and 1/rms in fp32",
          lambda s, w: 2 * (s.hidden + 4 / w.width) * s.moved),
    Saved("queries and keys behind their norms, where a model has such norms",
          lambda s, w: (s.heads + s.kv_heads) * (s.head_dim + 4 / w.width) * s.moved * s.head_norms),
    Saved("queries, keys, values; of PyTorch's kernel, also its output and log-sum-exp", _attention),
    Saved("what attention hands on", lambda s, w: s.heads * s.head_dim * s.moved if w.block else 0),
    Saved("gate and up", lambda s, w: 2 * s.intermediate * s.moved),
    Saved("x A^T of each adapted linear", lambda s, w: w.r * sum(linear.adapted for linear in s.linears)),
)  # fmt: skip


class Part(NamedTuple):
    name: str
    bytes: int


class Estimate(NamedTuple):
    parts: tuple[Part, ...]

    @property
    def peak(self) -> int:
        """Bytes on the device when the most is there."""
        return sum(part.bytes for part in self.parts)

    def of(self, names: Sequence[str]) -> int:
        """Bytes of these parts together."""
        return sum(part.bytes for part in self.parts if part.name in names)


# What a micro-batch needs.
PER_STEP = ("activations", "adapter in the compute dtype", "attention masks", "working set", "logits")
OWN = ("gradients", "optimizer", "adapter in the compute dtype")  # of an adapter, while another one's rows run
LATER = (*PER_STEP, "gradients", "optimizer", "dequantised copies")  # what is not there before the first step


def saved_bytes(shape: ModelShape, work: Workload) -> float:
    """Bytes that all decoder layers together keep for the backward of a micro-batch, none computed again."""
    once = shape.hidden + 2 * shape.head_dim  # output of the last norm, angles of the rotary embedding
    return (sum(saved.values(shape, work) for saved in SAVED) + once) * work.rows * work.width


def estimate(shape: ModelShape, work: Workload) -> Estimate:
    """Peak memory of LoRA training, part by part, in bytes."""
    return Estimate(tuple(Part(name, round(size)) for name, size in _parts(shape, work).items() if size))


def full_estimate(shape: ModelShape, work: Workload) -> Estimate:
    """The same for 16-bit full fine-tuning with AdamW, and what a micro-batch needs.

    12 bytes per parameter (weight and gradient in 16 bits, two fp32 moments): "more than 780 GB" for 65B, ibid.
    """
    parts = _parts(shape, replace(work, precision="none", width=2, dense_bytes=0))
    sizes = {
        "weights of linears": 2 * shape.linear_parameters,
        "embeddings, head, norms": 2 * (shape.parameters - shape.linear_parameters),
        "gradients": 2 * shape.parameters,
        "optimizer": 8 * shape.parameters,
        **{name: round(parts[name]) for name in PER_STEP},
    }
    return Estimate(tuple(Part(*part) for part in sizes.items()))


def _parts(shape: ModelShape, work: Workload) -> dict[str, float]:
    trained = shape.lora_numbers(work.r) + shape.full
    rest = shape.parameters - shape.linear_parameters
    return {
        "weights of linears": shape.linear_parameters * _weight_bytes(shape, work),
        "embeddings, head, norms": rest * work.width,
        "adapter": MASTER * trained,
        "gradients": GRADIENT * trained,
        "optimizer": work.moments * trained,
        "activations": 0.0 if work.offload else _activations(shape, work),
        "adapter in the compute dtype": _casts(shape, work),
        "attention masks": _masks(shape, work),
        "working set": _working_set(shape, work),
        "logits": _logits(shape, work),
        "dequantised copies": min(work.dense_bytes, work.width * shape.linear_parameters),
    }


def _weight_bytes(shape: ModelShape, work: Workload) -> float:
    if work.precision == "nf4":
        return NF4_BYTES
    if work.precision == "int8":
        # A byte, and an fp32 scale per row.
        return 1 + 4 * sum(s.outputs * s.number for s in shape.linears) / max(1, shape.linear_parameters)
    return work.width


def _activations(shape: ModelShape, work: Workload) -> float:
    """Of all layers; those computed again keep their input alone, but for one at a time."""
    again = -(-shape.moved // work.recompute) if work.recompute else 0
    last = bool(again) and (shape.layers - 1) % work.recompute == 0  # the backward begins by computing it again
    whole = (shape.moved - again + last) / max(1, shape.moved)
    return saved_bytes(shape, work) * whole + again * shape.hidden * work.width * work.rows


def _masks(shape: ModelShape, work: Workload) -> float:
    """Of the blocks of attention in this micro-batch and in the one before; queries look at their chunk at most."""
    ends = [*range(CHUNK_ROWS, work.block, CHUNK_ROWS), work.block]
    seen = sum((end - start) * end for start, end in zip((0, *ends), ends, strict=False)) / max(1, work.block)
    return float(2 * shape.heads / shape.kv_heads * seen * work.rows * work.width / work.fill)


def _working_set(shape: ModelShape, work: Workload) -> float:
    """What lives for a moment in the backward of the last layer, and a buffer for the weights of one product."""
    mlp = 4 * shape.intermediate + (7.4 if work.width == 2 else 4.1) * shape.hidden  # with bf16, norms have fp32 copies
    largest = max((sum(s.inputs * s.outputs for s in group) for group in _groups(shape)), default=0)
    return (mlp * work.rows + largest) * work.width


def _casts(shape: ModelShape, work: Workload) -> float:
    """A and B in the compute dtype, those of linears with one input together; B is block-diagonal."""
    total = 0.0
    for group in _groups(shape):
        adapted = [linear for linear in group if linear.adapted]
        layers = max((linear.adapted for linear in adapted), default=0)
        inputs, outputs = sum(s.inputs for s in adapted), sum(s.outputs for s in group)
        total += layers * work.r * (inputs + outputs * len(adapted))
    return total * work.width


def _groups(shape: ModelShape) -> list[list[LinearShape]]:
    """Kinds of linears; what reads one and the same input is one product."""
    groups: dict[int, list[LinearShape]] = {}
    for number, linear in enumerate(shape.linears):
        shared = next((place for place, names in enumerate(_SHARED) if linear.name in names), len(_SHARED) + number)
        groups.setdefault(shared, []).append(linear)
    return list(groups.values())


def _logits(shape: ModelShape, work: Workload) -> float:
    """Of a chunk, in the compute dtype and in fp32, and the gradient of every scored row."""
    chunk = min(CHUNK, max(CPU_ROWS, CPU_LOGITS // shape.vocabulary // 64 * 64)) if work.cpu else CHUNK
    scored = aligned(work.tokens if work.scored is None else work.scored)
    rows = min(chunk, scored)
    floats = 0 if work.width == 4 else min(rows, max(1, FP32_LOGITS // shape.vocabulary)) if work.cpu else rows
    return (rows * work.width + floats * 4) * shape.vocabulary + scored * shape.hidden * work.width
