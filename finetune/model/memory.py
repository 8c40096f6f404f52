"""How much memory a training run needs: a closed form over shapes, which the config alone gives.

    peak = weights + adapter + gradients + optimizer + copies + T (kept + moment) + buffers

T: tokens of a micro-batch. `kept` is what decoder layers keep for the backward and `moment` what lives for a moment
in it, both in activations.py; everything else stands in `_parts`. tests/model/test_memory.py and benchmarks/memory.py
compare it with what real steps save and allocate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from finetune.model.activations import FP32, dora_weights, groups, layer_bytes, moment_bytes, once_bytes
from finetune.model.attention import aligned
from finetune.model.blocks import CHUNK_ROWS, LONGEST
from finetune.model.shapes import ModelShape

Precision = Literal["nf4", "int8", "none"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
# Bytes per weight with double quantisation: 4 bits, an 8-bit constant for 64 weights and an fp32 one for 64 * 256,
# Dettmers et al. (2023, arXiv 2305.14314) section 3.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# AdamW: two moments in fp32. In 8 bits: a byte each, and an fp32 constant for every 256, Dettmers et al. (2022,
# arXiv 2110.02861); bitsandbytes leaves tensors of fewer than 4,096 numbers in fp32, and does not page those of fewer
# than 100,000.
MOMENTS, BLOCK, SMALLEST_8BIT, SMALLEST_PAGED = 2, 256, 4096, 100_000
STEP_8BIT = 5  # fp32 copies that its step on a CPU makes of a tensor: moments, gradient, root, denominator
CHUNK = 1024  # rows of logits that exist at a time, at most
CPU_LOGITS = 1 << 20  # logits that exist at a time on a CPU in the dtype of the computation: 2 MiB in bf16
CPU_ROWS = 128  # but at least so many rows of them: the head's weight is read for every chunk
FP32_LOGITS = 1 << 18  # of these in fp32, to be summed up: 1 MiB


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
    optimizer: Optimizer = "adamw"
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
    """Bytes that a forward keeps for the backward of a micro-batch, no layer being computed again."""
    return (layer_bytes(shape, work) + once_bytes(shape, work)) * work.rows


def estimate(shape: ModelShape, work: Workload) -> Estimate:
    """Peak memory of LoRA training, part by part, in bytes."""
    return Estimate(tuple(Part(name, round(size)) for name, size in _parts(shape, work).items() if size))


def full_estimate(shape: ModelShape, work: Workload) -> Estimate:
    """The same for 16-bit full fine-tuning with AdamW, and what a micro-batch needs.

    12 bytes per parameter (weight and gradient in 16 bits, two fp32 moments): "more than 780 GB" for 65B, ibid.
    """
    parts = _parts(replace(shape, full=(), dora=False), replace(work, precision="none", width=2, dense_bytes=0))
    sizes = {
        "weights of linears": 2 * shape.linear_parameters,
        "embeddings, head, norms": 2 * (shape.parameters - shape.linear_parameters),
        "gradients": 2 * shape.parameters,
        "optimizer": 8 * shape.parameters,
        **{name: round(parts[name]) for name in PER_STEP if name not in OWN},
    }
    return Estimate(tuple(Part(name, size) for name, size in sizes.items() if size))


def _parts(shape: ModelShape, work: Workload) -> dict[str, float]:
    trained = shape.trained_numbers(work.r)
    rest = shape.parameters - shape.linear_parameters
    return {
        "weights of linears": shape.linear_parameters * _weight_bytes(shape, work),
        "embeddings, head, norms": rest * work.width,
        "adapter": FP32 * trained,
        "gradients": FP32 * trained,
        "optimizer": optimizer_state(shape, work).held,
        **_step(shape, work),
        "dequantised copies": min(work.dense_bytes, work.width * shape.linear_parameters),
    }


class State(NamedTuple):
    """Bytes of an optimizer's state."""

    held: int  # on the device
    paged: int  # in memory that goes to the host when the device has none left


def optimizer_state(shape: ModelShape, work: Workload) -> State:
    """Bytes of the optimizer's state, tensor by tensor: small ones stay in fp32 and are not paged."""
    held = paged = 0
    for numbers, count in shape.trained_tensors(work.r):
        if work.optimizer == "adamw" or numbers < SMALLEST_8BIT:
            held += count * MOMENTS * FP32 * numbers
            continue
        held += count * MOMENTS * FP32 * -(-numbers // BLOCK)
        if work.optimizer == "paged_adamw_8bit" and not work.cpu and numbers >= SMALLEST_PAGED:
            paged += count * MOMENTS * numbers
        else:
            held += count * MOMENTS * numbers
    return State(held, paged)


def _step(shape: ModelShape, work: Workload) -> dict[str, float]:
    """What a micro-batch needs, at the moment when it needs most.

    It is in the backward of the last layer, with everything kept that the other layers need, or with DoRA in the last
    forward, where the weights are large against the row. Where embeddings are trained it may be later: when all of
    their gradient is there once more, before it is added to what is there, or in the optimizer's step.
    """
    masks, logits = _masks(shape, work), _logits(shape, work)
    moment = {
        "activations": 0.0 if work.offload else _activations(shape, work),
        "adapter in the compute dtype": _casts(shape, work),
        "attention masks": masks,
        "working set": max(moment_bytes(shape, work) * work.rows, dora_weights(shape, work)) + _buffer(shape, work),
        "logits": logits,
    }
    largest = max((kind.numbers for kind in shape.full), default=0)
    in_8_bits = work.optimizer != "adamw" and work.cpu
    later = {
        "activations": 0.0,
        "adapter in the compute dtype": 0.0,
        "attention masks": masks,
        "working set": float(FP32 * largest * (STEP_8BIT if in_8_bits else 1)) + _buffer(shape, work),
        "logits": logits,
    }
    return max(moment, later, key=lambda parts: sum(parts.values()))


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
    kept = layer_bytes(shape, work) * whole + once_bytes(shape, work) + again * shape.hidden * work.width
    return kept * work.rows


def _masks(shape: ModelShape, work: Workload) -> float:
    """Of the blocks of attention in this micro-batch and in the one before; queries look at their chunk at most."""
    ends = [*range(CHUNK_ROWS, work.block, CHUNK_ROWS), work.block]
    seen = sum((end - start) * end for start, end in zip((0, *ends), ends, strict=False)) / max(1, work.block)
    return float(2 * shape.heads / shape.kv_heads * seen * work.rows * work.width / work.fill)


def _buffer(shape: ModelShape, work: Workload) -> int:
    """For the dequantised weights of one product; plain weights with the same input lie together anyway."""
    if work.precision == "none" or shape.dora:
        return 0
    return work.width * max((sum(s.inputs * s.outputs for s in group) for group in groups(shape)), default=0)


def _casts(shape: ModelShape, work: Workload) -> float:
    """A and B in the compute dtype, those of linears with one input together; B is block-diagonal. DoRA has none."""
    total = 0.0
    for group in groups(shape):
        adapted = [linear for linear in group if linear.adapted]
        layers = max((linear.adapted for linear in adapted), default=0)
        inputs, outputs = sum(s.inputs for s in adapted), sum(s.outputs for s in group)
        total += layers * work.r * (inputs + outputs * len(adapted))
    return 0.0 if shape.dora else total * work.width


def _logits(shape: ModelShape, work: Workload) -> float:
    """Of a chunk, in the compute dtype and in fp32: two buffers that are kept."""
    chunk = min(CHUNK, max(CPU_ROWS, CPU_LOGITS // shape.vocabulary // 64 * 64)) if work.cpu else CHUNK
    rows = min(chunk, aligned(work.tokens if work.scored is None else work.scored))
    floats = 0 if work.width == FP32 else min(rows, max(1, FP32_LOGITS // shape.vocabulary)) if work.cpu else rows
    return float(rows * work.width + floats * FP32) * shape.vocabulary
