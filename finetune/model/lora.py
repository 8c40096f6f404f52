"""The adapter: LoRA branches on a frozen base, through PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from finetune.errors import AdapterError
from finetune.model.base import Base, linear4bit_layers
from finetune.model.fused import register_fused
from finetune.recipe import AdapterSection


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


def attach(base: Base, section: AdapterSection, seed: int) -> PeftModel:
    """Put a fresh adapter on the base; with B = 0 its output is the base's, bit for bit.

    Raises AdapterError if the target modules match no linear layer.
    """
    linears = linear_names(base.model)
    if section.target_modules != "all-linear":
        unknown = [name for name in section.target_modules if name not in linears]
        if unknown:
            raise AdapterError(f"adapter.target_modules {unknown} match no linear layer; this model has {linears}")
    targets = section.target_modules if isinstance(section.target_modules, str) else list(section.target_modules)
    config = LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,  # type: ignore[arg-type]
        lora_dropout=section.dropout,
        target_modules=targets,
        use_rslora=section.method == "rslora",
        use_dora=section.method == "dora",
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    model = get_peft_model(base.model, register_fused(config))
    assert isinstance(model, PeftModel)
    return model


def load_adapter(base: Base, folder: Path, *, onto: PeftModel | None = None, name: str = "default") -> PeftModel:
    """Load an adapter folder onto the base, or beside the adapters of `onto`."""
    try:
        if onto is not None:
            onto.load_adapter(str(folder), adapter_name=name, torch_device=str(base.device))
            return onto
        config = LoraConfig.from_pretrained(str(folder))
        assert isinstance(config, LoraConfig)
        model = PeftModel.from_pretrained(
            base.model,
            str(folder),
            adapter_name=name,
            config=register_fused(config),
            torch_device=str(base.device),
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterError(f"cannot be loaded: {' '.join(str(error).split())[:300]}", where=str(folder)) from error
    return model


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of every linear layer but the output head."""
    head = model.get_output_embeddings()
    return sorted(
        {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    )


def count_parameters(model: nn.Module) -> Parameters:
    """Count trained and total parameters; 4-bit weights count as what they stand for."""
    packed = {id(layer.weight): layer.in_features * layer.out_features for layer in linear4bit_layers(model)}
    trained = total = now = 0
    for parameter in model.parameters():
        numbers = packed.get(id(parameter), parameter.numel())
        total += numbers
        trained += numbers if parameter.requires_grad else 0
        now += parameter.numel() * parameter.element_size()
    now += sum(_constants_bytes(layer.weight.quant_state) for layer in linear4bit_layers(model))
    return Parameters(trained, total, now, 2 * total, 4 * total)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _constants_bytes(state: object) -> int:
    """Bytes of the quantisation constants of one weight (with double quantisation, both levels)."""
    tensors = [getattr(state, "absmax", None), getattr(state, "code", None), getattr(state, "offset", None)]
    own = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    nested = getattr(state, "state2", None)
    return own + (_constants_bytes(nested) if nested is not None else 0)
