"""A base's weights as they lie on the disk, before any quantisation."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from finetune.errors import ModelError
from finetune.model.base import weight_paths
from finetune.model.hub import hub_options, local_path
from finetune.recipe import BaseSection


class WeightFiles:
    """Tensors by the names that the model's state_dict has, read one at a time."""

    def __init__(self, section: BaseSection, prefix: str, fix: str) -> None:
        """`prefix`: of the backbone in the whole model. `fix`: what to do where a tensor is missing."""
        self.name, self.prefix, self.fix = section.model, f"{prefix}.", fix
        self.files: dict[str, Path] = {}
        for path in weight_paths(local_path(section), hub_options(section)):
            with safe_open(path, framework="pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def read(self, name: str) -> Tensor:
        """Return one tensor as the file has it. Raises ModelError if there is none."""
        # Some checkpoints hold the backbone alone, without the prefix of the whole.
        key = name if name in self.files else name.removeprefix(self.prefix)
        if key not in self.files:
            what = f"its weight files have no {name}: their names are not those of the loaded model"
            raise ModelError(what, where=self.name, fix=self.fix)
        with safe_open(self.files[key], framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor
