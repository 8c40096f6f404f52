"""GGUF files: written tensor by tensor, read back, and held against what should stand in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gguf
import numpy as np
from torch import Tensor

from finetune.errors import FinetuneError, ModelError

OutType = Literal["f32", "f16", "bf16", "q8_0"]
_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_PLAIN = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
_LARGEST_F16 = 65504.0
_BLOCK = 32  # numbers of a row that share a scale in q8_0
Array = np.ndarray[Any, np.dtype[Any]]


class Planned(NamedTuple):
    """A tensor to come, by llama.cpp's name, with its shape (rows, columns) as torch has it."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType


def planned(name: str, shape: Sequence[int], wanted: OutType) -> Planned:
    """Say in which type a tensor is stored: vectors in fp32, as llama.cpp needs them, matrices as wanted."""
    kind = _TYPES[wanted][0] if len(shape) > 1 else gguf.GGMLQuantizationType.F32
    if kind == gguf.GGMLQuantizationType.Q8_0 and shape[-1] % _BLOCK:
        kind = gguf.GGMLQuantizationType.F16
    return Planned(name, tuple(shape), kind)


def file_type(wanted: OutType) -> gguf.LlamaFileType:
    return _TYPES[wanted][1]


def write(writer: gguf.GGUFWriter, path: Path, plan: Sequence[Planned], tensors: Iterable[Tensor]) -> None:
    """Write the file; `tensors` come in the order of the plan, one in memory at a time."""
    for entry in plan:
        plain = _PLAIN.get(entry.kind)
        shape = entry.shape if plain else gguf.quant_shape_to_byte_shape(entry.shape, entry.kind)
        dtype = np.dtype(plain or np.uint8)
        writer.add_tensor_info(entry.name, shape, dtype, math.prod(shape) * dtype.itemsize, raw_dtype=entry.kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, tensor in zip(plan, tensors, strict=True):
            writer.write_tensor_data(_encoded(tensor, entry))
    finally:
        writer.close()


def verify(path: Path, plan: Sequence[Planned], tensors: Iterable[Tensor]) -> float:
    """Read the file back and compare every tensor with its source; return the largest difference.

    Raises FinetuneError if a tensor is missing, or further away than its type's rounding.
    """
    there = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if there.keys() != {entry.name for entry in plan}:
        odd = sorted(there.keys() ^ {entry.name for entry in plan})[:3]
        raise FinetuneError(f"came out wrong: tensors {odd}", where=str(path))
    worst = 0.0
    for entry, tensor in zip(plan, tensors, strict=True):
        found = gguf.dequantize(there[entry.name].data, entry.kind)
        want = tensor.float().numpy()
        apart = np.abs(found.reshape(want.shape) - want)
        if there[entry.name].tensor_type != entry.kind or not bool((apart <= _rounding(want, entry.kind)).all()):
            raise FinetuneError(f"came out wrong: {entry.name} is not what was written", where=str(path))
        worst = max(worst, float(apart.max(initial=0.0)))
    return worst


def _encoded(tensor: Tensor, entry: Planned) -> Array:
    values = tensor.float().contiguous()
    if tuple(values.shape) != entry.shape:
        raise ModelError(f"{entry.name} has shape {tuple(values.shape)}, expected {entry.shape}")
    if entry.kind == gguf.GGMLQuantizationType.F16 and float(values.abs().max()) > _LARGEST_F16:
        what = f"{entry.name} has numbers up to {float(values.abs().max()):.3g}, f16 ends at {_LARGEST_F16:,.0f}"
        raise ModelError(what, fix="export with --outtype bf16")
    return gguf.quantize(values.numpy(), entry.kind)


def _rounding(want: Array, kind: gguf.GGMLQuantizationType) -> Array | float:
    """The most that storing a number in this type may change it."""
    if kind == gguf.GGMLQuantizationType.F32:
        return 0.0
    if kind == gguf.GGMLQuantizationType.F16:
        return np.abs(want) * 2.0**-11 + 2.0**-25
    if kind == gguf.GGMLQuantizationType.BF16:
        return np.abs(want) * 2.0**-8
    # q8_0: half a step of 1/127 of the block's largest number, and the step itself is stored in f16
    largest = np.abs(want).reshape(-1, _BLOCK).max(axis=1)
    allowed = largest * (1 / 254 + 2.0**-11) + 2.0**-17
    return np.repeat(allowed, _BLOCK).reshape(want.shape)
