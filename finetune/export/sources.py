"""Where a base's weights come from, tensor by tensor: the loaded base, dequantised, or the files it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors import safe_open
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.model.base import Base, weight_paths
from finetune.model.hub import hub_options, local_path
from finetune.recipe import BaseSection


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


class WeightFiles:
    """The weights as they lie on the disk, before any quantisation."""

    def __init__(self, section: BaseSection, prefix: str) -> None:
        self.name, self.prefix = section.model, f"{prefix}."
        self.files: dict[str, Path] = {}
        for path in weight_paths(local_path(section), hub_options(section)):
            with safe_open(path, framework="pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def read(self, name: str) -> Tensor:
        # Some checkpoints hold the backbone alone, without the prefix of the whole.
        key = name if name in self.files else name.removeprefix(self.prefix)
        if key not in self.files:
            raise ModelError(
                f"its weight files have no {name}: their names are not those of the loaded model",
                where=self.name,
                fix="merge --into dequantised",
            )
        with safe_open(self.files[key], framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor


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
