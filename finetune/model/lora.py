"""The adapter: LoRA branches on a frozen base, through PEFT."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from finetune.data.batches import TrainingRows
from finetune.errors import AdapterError
from finetune.model.base import Base, linear4bit_layers
from finetune.model.fused import register_fused
from finetune.model.methods import (
    ADAPTER,
    drop_lean_forwards,
    halves,
    initialise,
    moving,
    saved_names,
    train_in_full,
)
from finetune.recipe import AdapterSection
from finetune.recipe.contradictions import LAYERS


class Parameters(NamedTuple):
    """Counts, and what the whole would weigh with its base in 4, 16 and 32 bits."""

    trained: int
    total: int
    bytes_now: int
    bytes_16bit: int
    bytes_32bit: int

    @property
    def share(self) -> float:
        return self.trained / self.total


def attach(base: Base, section: AdapterSection, seed: int, rows: TrainingRows | None = None) -> PeftModel:
    """Put a fresh adapter on the base. But for LoftQ, its output is the base's: bit for bit where B = 0.

    `rows`: what is trained on, which EVA looks at. Raises AdapterError if the target modules match no linear layer.
    """
    config = _config(base, section)
    torch.manual_seed(seed)
    model = get_peft_model(base.model, config)
    assert isinstance(model, PeftModel)
    train_in_full(model)
    initialise(model, base, section, rows, seed)
    return model


PLAIN = ("lora", "rslora", "lora+")  # methods whose adapters can be trained together


def attach_together(base: Base, sections: Mapping[str, tuple[AdapterSection, int]]) -> PeftModel:
    """Put several fresh adapters of PLAIN methods on the base, each with its seed and as `attach` alone would.

    Which of them act on what is said by `routed`. Raises AdapterError as `attach`.
    """
    every = linear_names(base.model)  # now: later, PEFT would take the adapters' own linears for the base's
    configs = {name: _config(base, section) for name, (section, _) in sections.items()}
    model: PeftModel | None = None
    for name, config in configs.items():
        if config.target_modules == "all-linear":
            config.target_modules = every
        torch.manual_seed(sections[name][1])
        if model is None:
            made = get_peft_model(base.model, config, adapter_name=name)
            assert isinstance(made, PeftModel)
            model = made
        else:
            model.add_adapter(name, config)
    assert model is not None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return model


def _config(base: Base, section: AdapterSection) -> LoraConfig:
    parts = halves(section)  # alpha goes with them, so that the scale stays
    rslora = "rslora" in section.methods
    config = LoraConfig(
        r=parts * section.r,
        lora_alpha=section.alpha * (math.sqrt(parts) if rslora else parts),  # type: ignore[arg-type]
        lora_dropout=section.dropout,
        target_modules=target_names(base.model, section.target_modules),
        use_rslora=rslora,
        use_dora="dora" in section.methods,
        modules_to_save=saved_names(base.model, section.modules_to_save) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return register_fused(config)


def load_adapter(base: Base, folder: Path, config: PeftConfig | None = None) -> PeftModel:
    """Load an adapter folder onto the base through PEFT, whatever its kind; `config`: in place of the folder's own.

    Raises AdapterError.
    """
    try:
        config = config or PeftConfig.from_pretrained(str(folder))
        config = register_fused(config) if isinstance(config, LoraConfig) else config
        model = PeftModel.from_pretrained(base.model, str(folder), config=config, torch_device=str(base.device))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterError(f"cannot be loaded: {' '.join(str(error).split())[:300]}", where=str(folder)) from error
    drop_lean_forwards(model)
    return model


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of every linear layer but the output head."""
    head = model.get_output_embeddings()
    return sorted(
        {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    )


def target_names(model: PreTrainedModel, wanted: str | Sequence[str]) -> str | list[str]:
    """What `adapter.target_modules` names, as PEFT takes it. Raises AdapterError for what is not there."""
    if isinstance(wanted, str):
        return wanted
    linears = linear_names(model)
    if unknown := [name for name in wanted if not LAYERS.fullmatch(name) and name not in linears]:
        raise AdapterError(f"adapter.target_modules {unknown} match no linear layer; this model has {linears}")
    if not any(map(LAYERS.fullmatch, wanted)):
        return list(wanted)
    head = model.get_output_embeddings()
    full = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    return sorted({name for entry in wanted for name in _named_by(entry, full)})


def _named_by(entry: str, full: Sequence[str]) -> list[str]:
    """The linear layers that a plain name or layers.FIRST-LAST.NAME stands for."""
    found = LAYERS.fullmatch(entry)
    if found is None:
        return [name for name in full if name.rpartition(".")[2] == entry]
    first, last, kind = int(found[1]), int(found[2] or found[1]), found[3]
    numbers = {name: next((int(part) for part in name.split(".") if part.isdigit()), -1) for name in full}
    count = max(numbers.values(), default=-1) + 1
    if last >= count:
        raise AdapterError(f"adapter.target_modules {entry!r}: this model has decoder layers 0 to {count - 1}")
    names = [n for n in full if first <= numbers[n] <= last and kind in (None, n.rpartition(".")[2])]
    if not names:
        there = sorted({n.rpartition(".")[2] for n in full if first <= numbers[n] <= last})
        raise AdapterError(f"adapter.target_modules {entry!r} matches no linear layer; there are {there}")
    return names


def count_parameters(model: nn.Module, adapter: str = ADAPTER) -> Parameters:
    """Count trained and total parameters of the base and one adapter; 4-bit weights count as what they stand for."""
    packed = {id(layer.weight): layer.in_features * layer.out_features for layer in linear4bit_layers(model)}
    trained = total = now = 0
    for name, parameter in model.named_parameters():
        if ".lora_" in name and f".{adapter}." not in name:
            continue
        numbers = packed.get(id(parameter), parameter.numel())
        total += numbers
        trained += moving(parameter) if parameter.requires_grad else 0
        now += parameter.numel() * parameter.element_size()
    now += sum(_constants_bytes(layer.weight.quant_state) for layer in linear4bit_layers(model))
    return Parameters(trained, total, now, 2 * total, 4 * total)


def trained_parameters(model: nn.Module, adapter: str = ADAPTER) -> dict[str, nn.Parameter]:
    """What is trained of one adapter by its name; the names are those of an adapter that is trained alone."""
    own = f".{adapter}."
    return {
        name.replace(own, f".{ADAPTER}."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and own in name
    }


def _constants_bytes(state: object) -> int:
    """Bytes of the quantisation constants of one weight (with double quantisation, both levels)."""
    tensors = [getattr(state, "absmax", None), getattr(state, "code", None), getattr(state, "offset", None)]
    own = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    nested = getattr(state, "state2", None)
    return own + (_constants_bytes(nested) if nested is not None else 0)
