"""Where a base's weights come from, tensor by tensor: the loaded base, dequantised, or the files it was read from
(model/weightfiles.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn

from finetune.model.base import Base


class Source(Protocol):
    """Tensors of a base by the names that its model's state_dict has."""

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, as precise as the source has it. Raises ModelError if there is none."""
        ...


class LoadedWeights:
    """The weights of the base in memory, an adapter on it or not; 4-bit ones dequantised: what the adapter saw."""

    def __init__(self, base: Base) -> None:
        self.model, self.name = base.model, base.name

    def read(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        module: Any = self.model
        for part in path.split("."):
            module = _unwrapped(getattr(module, part))
        tensor: Tensor = getattr(module, leaf)
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            tensor = dequantize_4bit(tensor.data, state)
        return tensor.detach().cpu()


class Tied:
    """A source in which some names stand for the tensor of another: what a tied head reads once it has its own."""

    def __init__(self, source: Source, owners: Mapping[str, str]) -> None:
        self.source, self.owners = source, owners

    def read(self, name: str) -> Tensor:
        return self.source.read(self.owners.get(name, name))


def is_float(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _unwrapped(module: nn.Module) -> Any:
    """The base's own module behind PEFT's wrappers."""
    for name in ("base_layer", "original_module"):
        module = getattr(module, name, module)
    return module
