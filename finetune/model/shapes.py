"""The shape of a model, as far as it decides what training needs: from its config alone, no weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.model.hub import explain, hub_options, local_path
from finetune.model.lora import target_names
from finetune.model.methods import halves, saved_names
from finetune.recipe import AdapterSection, BaseSection


class LinearShape(NamedTuple):
    name: str  # last part of its name
    inputs: int
    outputs: int
    number: int  # of them in the whole model
    adapted: int  # of these, with an adapter

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.number


class FullShape(NamedTuple):
    """Modules that are trained in full: norms or embeddings."""

    name: str  # last part of their name
    numbers: int  # of parameters in each
    number: int  # of them in the whole model
    place: Literal["before", "layers", "behind"]  # of the decoder layers: embeddings, their norms, the last norm


@dataclass(frozen=True)
class ModelShape:
    """What of a model and the places of its adapters decides how much memory training needs."""

    linears: tuple[LinearShape, ...]  # all but the head
    layers: int
    moved: int  # layers from the lowest adapted one on: the others keep nothing for the backward
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    parameters: int  # all; tied ones once
    head_norms: bool = False  # queries and keys have norms of their own
    full: tuple[FullShape, ...] = ()  # modules that are trained in full beside the adapter
    dora: bool = False

    @property
    def linear_parameters(self) -> int:
        return sum(linear.weights for linear in self.linears)

    @property
    def adapted(self) -> tuple[LinearShape, ...]:
        return tuple(linear for linear in self.linears if linear.adapted)

    @property
    def norms(self) -> tuple[tuple[str, int], ...]:
        """Name and number of the norms inside decoder layers that are trained."""
        return tuple((kind.name, kind.number) for kind in self.full if kind.place == "layers")

    @property
    def last_norm(self) -> bool:
        """Whether the norm behind the last layer is trained."""
        return any(kind.place == "behind" for kind in self.full)

    @property
    def own_layers(self) -> bool:
        """Whether decoder layers run their own forward, not decoder.py's."""
        return self.dora or bool(self.norms)

    def lora_numbers(self, r: int) -> int:
        """Numbers in A and B of every adapted linear, and with DoRA in its magnitudes."""
        return sum((r * (s.inputs + s.outputs) + s.outputs * self.dora) * s.adapted for s in self.linears)

    def trained_numbers(self, r: int) -> int:
        """All numbers that are trained."""
        return sum(numbers * count for numbers, count in self.trained_tensors(r))

    def trained_tensors(self, r: int) -> list[tuple[int, int]]:
        """Numbers in each kind of trained tensor, and how many there are of the kind."""
        found = [(r * size, s.adapted) for s in self.adapted for size in (s.inputs, s.outputs)]
        found += [(s.outputs, s.adapted) for s in self.adapted if self.dora]
        return found + [(kind.numbers, kind.number) for kind in self.full]


def read_shape(section: BaseSection, adapter: AdapterSection) -> ModelShape:
    """The shape of a base from its config alone: no weights are read. Raises ModelError."""
    path, options = local_path(section), hub_options(section)
    with explain(section.model):
        config = AutoConfig.from_pretrained(path, **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=section.trust_remote_code)
    return shape_of(model, adapter)


def shape_of(model: Any, adapter: AdapterSection) -> ModelShape:
    """The shape of a model before it gets its adapter, in 4 bits or not. Raises AdapterError, as `attach` does."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    targets = target_names(model, adapter.target_modules)
    found: dict[tuple[str, int, int], list[int]] = {}
    packed, lowest = 0, config.num_hidden_layers
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is head:
            continue
        wanted = targets == "all-linear" or any(name == each or name.endswith(f".{each}") for each in targets)
        counts = found.setdefault((name.rpartition(".")[2], module.in_features, module.out_features), [0, 0])
        counts[0] += 1
        counts[1] += wanted
        packed += module.weight.numel()
        lowest = min(lowest, _layer(name)) if wanted else lowest
    linears = tuple(LinearShape(*key, *counts) for key, counts in found.items())
    every = sum(p.numel() for p in model.parameters())
    full = _full(model, adapter)
    if any(kind.place == "before" for kind in full):
        lowest = 0
    lowest = min([lowest, *(_layer(name) for name in saved_names(model, adapter.modules_to_save) if _inside(name))])
    heads = config.num_attention_heads
    return ModelShape(
        linears=linears,
        layers=config.num_hidden_layers,
        moved=config.num_hidden_layers - lowest,
        hidden=config.hidden_size,
        intermediate=_widest(linears, config.hidden_size),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        parameters=every - packed + sum(linear.weights for linear in linears),
        head_norms=any(name.endswith(".q_norm") for name, _ in model.named_modules()),
        full=full,
        dora="dora" in adapter.methods,
    )


def rank(adapter: AdapterSection) -> int:
    """Rank of the matrices as they lie in memory: PiSSA and OLoRA have a second, frozen half."""
    return adapter.r * halves(adapter)


def _full(model: Any, adapter: AdapterSection) -> tuple[FullShape, ...]:
    """What `adapter.modules_to_save` names. Raises AdapterError, as `attach` does."""
    found: dict[tuple[str, int, Literal["before", "layers", "behind"]], int] = {}
    for name in saved_names(model, adapter.modules_to_save):
        module = model.get_submodule(name)
        place: Literal["before", "layers", "behind"] = "layers" if _inside(name) else "behind"
        place = "before" if isinstance(module, nn.Embedding) else place
        key = (name.rpartition(".")[2], sum(p.numel() for p in module.parameters()), place)
        found[key] = found.get(key, 0) + 1
    return tuple(FullShape(name, numbers, number, place) for (name, numbers, place), number in found.items())


def _inside(name: str) -> bool:
    """Whether a module stands in a decoder layer."""
    return any(part.isdigit() for part in name.split("."))


def _layer(name: str) -> int:
    """Number of the decoder layer that a module stands in; 0 outside of them."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _widest(linears: Iterable[LinearShape], hidden: int) -> int:
    """Width of the MLP: what its last linear takes in."""
    return max((linear.inputs for linear in linears if linear.outputs == hidden), default=hidden)
