"""What decoder layers keep for the backward, and what lives for a moment in it: bytes per token, from shapes.

Layers run one of three ways. *Lean*: decoder.py's two steps around attention. *Own*: the model's own forward over
LoRA linears with their own backward (fused.py), where norms inside the layers are trained. *DoRA*: the model's own
forward over PEFT's linears, which compute in fp32. With own and DoRA, norms and SwiGLU are lean.py's on a CPU.
tests/model/test_memory.py compares all of it with what real steps save and allocate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from finetune.model.decoder import GATE_UP, NORMS, QKV
from finetune.model.shapes import LinearShape, ModelShape

if TYPE_CHECKING:
    from finetune.model.memory import Workload

FP32 = 4
_SHARED = (QKV, GATE_UP)  # linears that read one and the same input
_READ = {QKV[0]: NORMS[0], GATE_UP[0]: NORMS[1]}  # and whose output it is
_HEADS = {"q_norm": "heads", "k_norm": "kv_heads"}  # norms that run over each head


class Saved(NamedTuple):
    """A tensor that decoder layers keep for the backward."""

    tensor: str
    bytes: Callable[[ModelShape, Workload], float]  # per token, of all layers


def _attention(shape: ModelShape, work: Workload) -> float:
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if work.block:
        return (wide + 2 * narrow) * work.width * shape.moved / work.fill
    return ((2 * wide + 2 * narrow) * work.width + FP32 * shape.heads) * shape.moved


def _head_norms(shape: ModelShape, work: Workload) -> float:
    return (shape.heads + shape.kv_heads) * (shape.head_dim * work.width + FP32) * shape.moved * shape.head_norms


LEAN = (
    Saved("outputs of the two norms, which the linears read, and 1/rms in fp32",
          lambda s, w: 2 * (s.hidden * w.width + FP32) * s.moved),
    Saved("queries and keys behind their norms, where a model has such norms", _head_norms),
    Saved("queries, keys, values; of PyTorch's kernel, also its output and log-sum-exp", _attention),
    Saved("what attention hands on", lambda s, w: s.heads * s.head_dim * w.width * s.moved),
    Saved("gate and up", lambda s, w: 2 * s.intermediate * w.width * s.moved),
    Saved("x A^T of each adapted linear", lambda s, w: w.r * w.width * sum(linear.adapted for linear in s.linears)),
)  # fmt: skip
OWN = (
    Saved("of the two norms: 1/rms in fp32; the output, or in the model's own norm its input in fp32",
          lambda s, w: 2 * (s.hidden * (w.width if w.cpu else FP32) + FP32) * s.moved),
    Saved("of norms that are trained instead: the input in fp32, and it divided by its rms",
          lambda s, w: sum(_trained_norm(s, w, name, number) for name, number in s.norms)),
    Saved("queries and keys behind their norms, where a model has such norms", _head_norms),
    Saved("queries, keys, values; of PyTorch's kernel, also its output and log-sum-exp", _attention),
    Saved("gate and up; in the model's own SwiGLU, also silu(gate)",
          lambda s, w: (2 if w.cpu else 3) * s.intermediate * w.width * s.moved),
    Saved("inputs of adapted linears, each once", lambda s, w: _inputs(s, w)),
    Saved("x A^T of each adapted linear",
          lambda s, w: w.r * (FP32 if s.dora else w.width) * sum(linear.adapted for linear in s.linears)),
    Saved("with DoRA: x in fp32 for each linear anew, x W^T, and x A^T B^T in fp32", lambda s, w: _dora(s, w)),
)  # fmt: skip


def layer_bytes(shape: ModelShape, work: Workload) -> float:
    """Bytes that all decoder layers together keep per token for the backward, none computed again."""
    return sum(saved.bytes(shape, work) for saved in (OWN if shape.own_layers else LEAN))


def once_bytes(shape: ModelShape, work: Workload) -> float:
    """The same of what stands beside the layers: output of the last norm, angles of the rotary embedding."""
    return _last_norm(shape, work) + 2 * shape.head_dim * work.width


def moment_bytes(shape: ModelShape, work: Workload) -> float:
    """Bytes per token that live for a moment when the most is there, less what is not kept any more by then.

    It is in the backward of the last layer, that of the model's last norm being done, but where it says otherwise.
    """
    d, inner, w = shape.hidden, shape.intermediate, work.width
    # Of the last norm's backward, nothing being gone: the gradient of its output, and x / rms, the gradient of that and
    # their product in fp32; of the model's own norm, five products in fp32.
    norm = (3 * FP32 + w) * d if work.cpu and not shape.last_norm else 5 * FP32 * d
    gone = w * d - _last_norm(shape, work)  # the gradient of the layer's output came, the last norm went
    down = any(linear.outputs == d and linear.inputs == inner for linear in shape.adapted)
    if shape.dora and any(linear.inputs == d and linear.outputs == inner for linear in shape.adapted):
        # Backward of up_proj: in fp32 the gradient of y, and three products of it with magnitudes, x W^T and x A^T B^T;
        # those of gate and x W^T. What SwiGLU and down_proj kept is gone.
        kept = 2 * w * inner + ((w + FP32) * d + FP32 * (inner + work.r) if down else 0)
        through = w if w < FP32 else 0  # the gradient of x W^T, where it is not one of the products
        return max(norm, (4 * FP32 + w + through) * inner + gone - kept)
    if shape.own_layers:
        # Backward of SwiGLU: three gradients of its width; the input that down_proj kept is gone.
        return max(norm, (3 - down) * w * inner + gone)
    # Backward of the norm behind attention: silu(gate), the gradients of gate, up and silu(gate) up are still there.
    return max(norm, 4 * w * inner + 3 * FP32 * d + w * d + gone)


def dora_weights(shape: ModelShape, work: Workload) -> int:
    """Bytes of the matrices from which PEFT computes the norms of one W + s B A, in its forward, for the largest.

    In fp32: the unit matrix that goes through A and B, x A^T of it, B A, s B A, W and W + s B A; W only where the
    base is not in fp32.
    """
    copies = 3 if work.precision == "none" and work.width == FP32 else 4
    sizes = (s.inputs * (s.inputs + work.r + copies * s.outputs) for s in shape.adapted)
    return FP32 * max(sizes, default=0) if shape.dora else 0


def groups(shape: ModelShape) -> list[list[LinearShape]]:
    """Kinds of linears that are one product: what reads one and the same input, unless layers run their own way."""
    found: dict[int, list[LinearShape]] = {}
    together: Sequence[tuple[str, ...]] = () if shape.own_layers else _SHARED
    for number, linear in enumerate(shape.linears):
        place = next((place for place, names in enumerate(together) if linear.name in names), len(_SHARED) + number)
        found.setdefault(place, []).append(linear)
    return list(found.values())


def _last_norm(shape: ModelShape, work: Workload) -> float:
    """Bytes that the model's last norm keeps per token: its output; the model's own norm its input in fp32."""
    if shape.last_norm:
        return (FP32 + 2 * work.width) * shape.hidden
    return (work.width if work.cpu else FP32) * shape.hidden


def _trained_norm(shape: ModelShape, work: Workload, name: str, number: int) -> float:
    heads = getattr(shape, _HEADS[name]) if name in _HEADS else 0
    width = heads * shape.head_dim or shape.hidden
    plain = width * (work.width if work.cpu or heads else FP32)  # what the frozen one would keep
    return (width * (FP32 + work.width) - plain) * number


def _inputs(shape: ModelShape, work: Workload) -> float:
    """Inputs of adapted linears that no norm of lean.py's keeps anyway, in the compute dtype."""
    if shape.dora and work.width < FP32:
        return 0  # a copy in fp32 for each is kept instead
    seen: dict[str, float] = {}
    for linear in shape.adapted:
        group = next((names[0] for names in _SHARED if linear.name in names), linear.name)
        kept = work.cpu and group in _READ and _READ[group] not in dict(shape.norms)
        seen[group] = max(seen.get(group, 0), 0 if kept else linear.inputs * work.width * linear.adapted)
    return sum(seen.values())


def _dora(shape: ModelShape, work: Workload) -> float:
    return sum(_dora_linear(s, work) * s.adapted for s in shape.adapted) if shape.dora else 0


def _dora_linear(linear: LinearShape, work: Workload) -> float:
    """Bytes per token that one linear keeps."""
    x = FP32 * linear.inputs if work.width < FP32 else 0
    return x + (work.width + FP32) * linear.outputs
