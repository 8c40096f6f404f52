"""Starts of A and B other than random and zero, and modules that are trained in full. The base never changes.

Several adapters share one base in memory, so nothing here may touch its weights. PiSSA and OLoRA take their start
A0, B0 out of them; here the same function is written as y = W x + s (B A - B0 A0) x instead: an ordinary LoRA of
twice the rank, [B, -B0] [A; A0], whose second half never moves. That is how PEFT stores converted PiSSA adapters, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from peft.utils.incremental_pca import IncrementalPCA
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.batches import MicroBatch, TrainingRows, pack
from finetune.data.encoding import Encoded
from finetune.errors import AdapterError, DataError
from finetune.model.attention import hidden_states, packed_attention
from finetune.model.base import Base
from finetune.model.weightfiles import WeightFiles
from finetune.recipe import AdapterSection, BaseSection

ADAPTER = "default"  # PEFT's name for the one adapter that is trained
# Start -> PEFT's name of it. The fast SVD with 16 iterations is the paper's: seconds where the exact one takes minutes.
SUBTRACTED = {"pissa": "pissa_niter_16", "olora": "olora"}
EVA_TOKENS = 8192  # of the training rows that EVA looks at, at most
EVA_ROW = 2048  # tokens of a micro-batch, each of which is one update of the components
SVD_ITERATIONS = 16
_FROZEN = "frozen_dim"  # attribute of a parameter whose second half, along this dimension, never moves


def initialise(model: PeftModel, base: Base, section: AdapterSection, rows: TrainingRows | None, seed: int) -> None:
    """Give A and B the start that `adapter.method` names. `rows`: what EVA looks at.

    Raises AdapterError if a layer is smaller than the rank, ModelError if the weights on disk do not fit.
    """
    start = next((name for name in section.methods if name in (*SUBTRACTED, "eva", "loftq")), None)
    if start is None:
        return
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        least = layer.in_features if start == "eva" else min(layer.in_features, layer.out_features)
        if section.r > least:
            what = f"adapter.r {section.r} is more than the {least} of {name.rpartition('.')[2]}"
            raise AdapterError(f"{what}, and {start} has no more directions to begin with", fix="lower adapter.r")
    if start == "eva":
        _from_inputs(base, layers, section.r, rows, seed)
    elif start == "loftq":
        _from_what_was_lost(base, layers)
    else:
        for layer in layers.values():
            _from_the_weight(layer, section, SUBTRACTED[start])


def halves(section: AdapterSection) -> int:
    """2 where A and B have a second, frozen half (PiSSA and OLoRA), else 1."""
    return 2 if set(section.methods) & set(SUBTRACTED) else 1


def moving(parameter: nn.Parameter) -> int:
    """How many numbers of a trained parameter ever move: half of them after PiSSA and OLoRA."""
    return parameter.numel() - (0 if (half := frozen_half(parameter)) is None else half.numel())


def frozen_half(parameter: nn.Parameter) -> Tensor | None:
    """The part of a trained parameter that never moves, as a view."""
    dim: int | None = getattr(parameter, _FROZEN, None)
    return None if dim is None else parameter.detach().chunk(2, dim)[1]


@torch.no_grad()
def _from_the_weight(layer: Any, section: AdapterSection, start: str) -> None:
    """PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) by PEFT itself, on a copy of one weight at a time."""
    copy = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    copy.weight = nn.Parameter(_dense(layer).clone(), requires_grad=False)
    config = LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,  # type: ignore[arg-type]
        use_rslora="rslora" in section.methods,
        init_lora_weights=start,  # type: ignore[arg-type]
    )
    made: Any = PeftLinear(copy, ADAPTER, config=config, r=section.r, lora_alpha=section.alpha)  # type: ignore[arg-type]
    a, b = made.lora_A[ADAPTER].weight, made.lora_B[ADAPTER].weight
    layer.lora_A[ADAPTER].weight.copy_(torch.cat([a, a]))
    layer.lora_B[ADAPTER].weight.copy_(torch.cat([b, -b], dim=1))
    _freeze_second_half(layer.lora_A[ADAPTER].weight, 0)
    _freeze_second_half(layer.lora_B[ADAPTER].weight, 1)


def _freeze_second_half(parameter: nn.Parameter, dim: int) -> None:
    """Zero its gradient: without weight decay AdamW then never moves it, and the gradient norm is the first half's."""
    size = parameter.shape[dim]
    shape = [size if axis == dim else 1 for axis in range(parameter.dim())]
    mask = (torch.arange(size, device=parameter.device) < size // 2).to(parameter.dtype).view(shape)
    parameter.register_hook(lambda grad: grad * mask)
    setattr(parameter, _FROZEN, dim)


@torch.no_grad()
def _from_inputs(base: Base, layers: Mapping[str, Any], r: int, rows: TrainingRows | None, seed: int) -> None:
    """EVA (arXiv 2410.07170): A = the main directions of each layer's inputs on training rows, B = 0.

    PEFT's incremental PCA, over a fixed number of tokens and with the same rank everywhere. Layers that get the very
    same input (q, k and v) share theirs.
    """
    if rows is None:
        raise AdapterError("adapter.method eva needs training rows to look at")
    found, leader = dict[Any, IncrementalPCA](), dict[Any, Any]()
    last: list[tuple[Tensor, Any]] = []
    places = torch.empty(0, dtype=torch.long)  # of the examples' tokens, in the rows one behind the other

    def look(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        if last and last[-1][0] is x:
            leader[layer] = last[-1][1]
            return
        last[:] = [(x, layer)]
        leader[layer] = layer
        if layer not in found:
            width = min(2 * r, x.shape[-1])
            found[layer] = IncrementalPCA(n_components=r, lowrank=True, lowrank_q=width, lowrank_seed=seed)
        found[layer].partial_fit(x.flatten(0, 1)[places].float())

    handles = [layer.register_forward_pre_hook(look) for layer in layers.values()]
    was_training = base.model.training
    base.model.eval()
    try:
        with packed_attention(base.model, base.packs), _own_forwards(base.model):
            for batch in _looked_at(rows, seed, r, isolate=base.packs):
                last.clear()
                on_device = batch.to(base.device)
                places = _places(batch).to(base.device)
                hidden_states(
                    base.model, on_device.input_ids, on_device.position_ids, on_device.segments, packed=on_device.packed
                )
    finally:
        base.model.train(was_training)
        for handle in handles:
            handle.remove()
    if not found:
        raise DataError(
            f"no micro-batch has the {2 * r} tokens that eva needs for adapter.r {r}", fix="lower adapter.r"
        )
    for layer in layers.values():
        layer.lora_A[ADAPTER].weight.copy_(found[leader[layer]].components_)
        nn.init.zeros_(layer.lora_B[ADAPTER].weight)


@contextmanager
def _own_forwards(model: nn.Module) -> Iterator[None]:
    """Let every module run its class's forward: a lean decoder layer never calls its linears, so no hook sees them."""
    ours = [(module, vars(module).pop("forward")) for module in model.modules() if "forward" in vars(module)]
    try:
        yield
    finally:
        for module, forward in ours:
            module.forward = forward


def _looked_at(rows: TrainingRows, seed: int, r: int, *, isolate: bool) -> Iterator[MicroBatch]:
    """The first rows of the first epoch, packed; the SVD needs twice as many tokens as components."""
    taken: list[Encoded] = []
    left = EVA_TOKENS
    for place in rows.epoch(0, seed):
        (row,) = rows.take([place])
        left -= len(row.ids)
        if left < 0 and taken:
            break
        taken.append(row)
    packed = pack(taken, max(EVA_ROW, 2 * r), isolate=isolate)
    return (batch for batch in packed if len(_places(batch)) >= 2 * r)


def _places(batch: MicroBatch) -> Tensor:
    """Where the tokens of its examples stand in its rows, laid one behind the other."""
    return torch.cat([torch.arange(start, end) for start, end in batch.segments])


@torch.no_grad()
def _from_what_was_lost(base: Base, layers: Mapping[str, Any]) -> None:
    """LoftQ (arXiv 2310.08659) with one iteration: s B A = the main part of what 4 bits lost of each weight.

    As PEFT's replace_lora_weights_loftq, which asks for a GPU and leaves the scale s out.
    """
    section = BaseSection(model=base.name, revision=base.revision)
    weights = WeightFiles(section, base.model.base_model_prefix, "remove loftq from adapter.method")
    for name, layer in layers.items():
        dense = _dense(layer)
        lost = weights.read(f"{name.removeprefix('base_model.model.')}.weight").to(dense.device, torch.float32) - dense
        r = layer.r[ADAPTER]
        left, sizes, right = torch.svd_lowrank(lost, q=min(2 * r, *lost.shape), niter=SVD_ITERATIONS)
        roots = (sizes[:r] / layer.scaling[ADAPTER]).sqrt()
        layer.lora_A[ADAPTER].weight.copy_(roots[:, None] * right[:, :r].t())
        layer.lora_B[ADAPTER].weight.copy_(left[:, :r] * roots)


def _dense(layer: Any) -> Tensor:
    """The frozen weight (out, in) in fp32, dequantised."""
    weight: Tensor = dequantize_module_weight(layer.get_base_layer())
    return weight.detach().float()


def saved_names(model: PreTrainedModel, wanted: Sequence[str]) -> list[str]:
    """Full names of what `adapter.modules_to_save` names; PEFT would take 'norm' for 'input_layernorm', too.

    Raises AdapterError for what cannot be trained in full.
    """
    head, found = model.get_output_embeddings(), list[str]()
    for name in wanted:
        modules = {n: m for n, m in model.named_modules() if n == name or n.endswith(f".{name}")}
        if any(module is head for module in modules.values()):
            what = f"adapter.modules_to_save {name!r} is the output head, which stays frozen: the loss relies on it"
            raise AdapterError(what, fix="remove it")
        if any(isinstance(module, nn.Linear) for module in modules.values()):
            what = f"adapter.modules_to_save {name!r} is a linear layer; embeddings and norms alone are trained in full"
            raise AdapterError(what, fix="name it in adapter.target_modules")
        if any(getattr(module, "weight", None) is head.weight for module in modules.values()):
            what = f"adapter.modules_to_save {name!r}: this model ties it to its output head, which stays frozen"
            raise AdapterError(what, fix="remove it; adapters on the linear layers change what the model says")
        if not modules or not all(map(_has_own_weight, modules.values())):
            known = (n for n, m in model.named_modules() if _has_own_weight(m) and not isinstance(m, nn.Linear))
            there = sorted({n.rpartition(".")[2] for n in known})
            raise AdapterError(f"adapter.modules_to_save {name!r} matches no embedding or norm; this model has {there}")
        found += modules
    return found


def _has_own_weight(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def train_in_full(model: PeftModel) -> None:
    """Keep PEFT's trained copies in fp32, with the outputs of the modules that they stand for."""
    drop_lean_forwards(model)
    for wrapper in model.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        copy = wrapper.modules_to_save[ADAPTER]
        dtype = next(copy.parameters()).dtype
        copy.float()
        if dtype != torch.float32:
            # bf16 would lose most updates; without the cast, everything behind would be computed in fp32.
            copy.register_forward_hook(lambda module, arguments, output, dtype=dtype: output.to(dtype))


def drop_lean_forwards(model: nn.Module) -> None:
    """Take lean forwards off whatever holds modules trained in full: they read frozen weights, past any wrapper."""
    for module in model.modules():
        parts = [part for part in module.modules() if isinstance(part, ModulesToSaveWrapper)]
        copies = [copy for part in parts for copy in part.modules_to_save.values()]
        for holder in [*copies, *([module] if parts else [])]:
            vars(holder).pop("forward", None)
