"""An adapter added to a base, tensor by tensor.

PEFT does the arithmetic, in fp32, on a skeleton of the model: every weight of the skeleton is one number in memory that
is shown with the shape of the whole. A layer's weight is filled in when its turn comes and dropped again, so
the adapter and a few copies of one weight are all that is held.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from finetune.errors import AdapterError
from finetune.export.sources import Source, is_float
from finetune.store.config import AdapterConfig, read_config
from finetune.store.weights import linear_shapes, read_weights

_ADAPTER = "default"
# What a plain set of weights cannot express, or PEFT does not merge: key of adapter_config.json -> what it is.
_UNMERGEABLE = {
    "target_parameters": "branches on parameters (target_parameters)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "layer_replication": "replicated layers (layer_replication)",
    "alora_invocation_tokens": "branches that wait for certain tokens (alora_invocation_tokens)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "arrow_config": "Arrow, which chooses among branches while it runs",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron",
}
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # starts that leave the base as it is


class Entry(NamedTuple):
    """A tensor to come."""

    name: str
    shape: torch.Size
    floating: bool


class Merged:
    """The weights of base + adapter by their names in state_dict; without a folder: of the base alone."""

    def __init__(self, config: PreTrainedConfig, folder: Path | None) -> None:
        """Build the skeleton and load the adapter. Raises AdapterError for a kind that cannot be merged."""
        with torch.device("meta"):
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        self.owners = _tied(self.model)
        self.model.config.tie_word_embeddings = False  # every name of the skeleton has its own parameter
        self.entries = tuple(
            Entry(name, tensor.shape, is_float(tensor)) for name, tensor in self.model.state_dict().items()
        )
        _flatten(self.model)
        self.changed: tuple[str, ...] = ()  # names of the tensors that differ from the base's
        if folder is not None:
            _refuse_unmergeable(folder, self.model)
            _load(self.model, folder)
            self.changed = tuple(entry.name for entry in self.entries if _holder(self.model, entry.name)[1] is not None)
        self.untied = {name for name, owner in self.owners.items() if {name, owner} & set(self.changed)}
        self.entries = tuple(e for e in self.entries if e.name not in self.owners or e.name in self.untied)

    @torch.no_grad()
    def tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor in the order of `entries`; changed ones in fp32, others as the source has them."""
        for entry in self.entries:
            holder, kind = _holder(self.model, entry.name)
            leaf = entry.name.rpartition(".")[2]
            if kind == "saved":
                yield entry.name, getattr(holder, leaf).detach()
            elif kind == "branch":
                yield entry.name, _add(holder, entry.name, leaf, source)
            else:
                yield entry.name, source.read(entry.name)


def _refuse_unmergeable(folder: Path, model: PreTrainedModel) -> None:
    """Hold the folder against the base's shapes, and refuse what does not become a plain set of weights."""
    read_weights(folder, linear_shapes(model))
    config = read_config(folder)
    if what := _unmergeable(config):
        raise AdapterError(f"cannot be merged: it has {what}", where=str(folder), fix="serve it beside its base")


def _unmergeable(config: AdapterConfig) -> str:
    if config.peft_type != "LORA":
        return f"the PEFT type {config.peft_type}"
    if config.bias != "none":
        return f"trained biases of the base (bias: {config.bias})"
    if config.init_lora_weights not in _STARTS:
        return f"the start {config.init_lora_weights}, which changes the base itself"
    return next((what for key, what in _UNMERGEABLE.items() if getattr(config, key)), "")


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Names that stand for the same parameter as an earlier one, with that one's name."""
    first: dict[int, str] = {}
    owners: dict[str, str] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            owners[name] = owner
    return owners


def _flatten(model: nn.Module) -> None:
    """Give every parameter its shape and one number of memory, on the CPU, where PEFT then puts the adapter."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = _flat(parameter.shape)


def _flat(shape: torch.Size) -> nn.Parameter:
    return nn.Parameter(torch.zeros(1).expand(shape), requires_grad=False)


def _load(model: PreTrainedModel, folder: Path) -> None:
    config = LoraConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    config.init_lora_weights = True  # any start: the file's numbers come over it
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT fears for a merge is an error there, or handled here
            peft = PeftModel(model, config, adapter_name=_ADAPTER)
            for wrapper in model.modules():
                if isinstance(wrapper, ModulesToSaveWrapper):
                    _fill_saved(wrapper)
            peft.load_adapter(str(folder), adapter_name=_ADAPTER, torch_device="cpu")
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError, TypeError) as error:
        raise AdapterError(f"cannot be merged: {' '.join(str(error).split())[:300]}", where=str(folder)) from error


def _fill_saved(wrapper: Any) -> None:
    """Give the copy of a module that was trained in full memory of its own, which the file's numbers go into."""
    for module in wrapper.modules_to_save[_ADAPTER].modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.zeros(parameter.shape), requires_grad=False)


def _holder(model: nn.Module, name: str) -> tuple[Any, str | None]:
    """The module that holds a tensor, and what the adapter makes of it: "branch", "saved" or None (nothing)."""
    path, _, leaf = name.rpartition(".")
    module: Any = model
    saved = False
    for part in path.split(".") if path else ():
        module = getattr(module, part)
        if isinstance(module, ModulesToSaveWrapper):
            module, saved = module.modules_to_save[_ADAPTER], True
    if saved:
        return module, "saved"
    if isinstance(module, LoraLayer):
        biased = leaf == "bias" and any(module.lora_bias.values())
        return module, "branch" if leaf == "weight" or biased else None
    return module, None


def _add(layer: Any, name: str, leaf: str, source: Source) -> Tensor:
    """Fill in one layer, let PEFT merge it, and empty it again."""
    linear, stem = layer.get_base_layer(), name.removesuffix(leaf)
    kept = {part: parameter for part, parameter in linear._parameters.items() if parameter is not None}
    try:
        for part in kept:
            linear._parameters[part] = nn.Parameter(source.read(stem + part).float().clone(), requires_grad=False)
        layer.merge(safe_merge=True)
        merged: Tensor = getattr(linear, leaf).detach()
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise AdapterError(f"cannot be merged: {stem.rstrip('.')}: {' '.join(str(error).split())[:300]}") from error
    finally:
        layer.merged_adapters.clear()
        linear._parameters.update(kept)
    return merged
