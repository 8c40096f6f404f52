"""An adapter's weights, everything about them checked before anybody changes anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import torch
from torch import Tensor, nn

from finetune.errors import AdapterError
from finetune.store.config import AdapterConfig, Branch, branches, kind_of, may_lack, read_config
from finetune.store.folders import CONFIG, WEIGHTS
from finetune.store.tensors import Entry, TensorFile, tensor_file

PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# What says nothing about what an adapter computes.
_IDLE = {"base_model_name_or_path", "revision", "peft_version", "inference_mode", "task_type", "lora_dropout"}
_EMBEDDINGS = "branches on embeddings"

Modules = Mapping[str, tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class LoraWeights:
    """The branches of an adapter; `modules` is empty for a kind that only PEFT can run."""

    digest: str  # SHA-256 of the tensors' file and of what the configuration means for the arithmetic
    modules: Modules  # the linear's full name -> A (r, in), B (out, r), scale; on the CPU, in the file's dtype
    plain: bool
    why: str  # if it is not plain: what it is, for a person


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) features of every linear layer of the bare base by its full name, whatever is put on it."""
    found = {}
    for full, module in model.named_modules():
        parts = full.removeprefix(PREFIX).split(".")
        if isinstance(module, nn.Linear) and not any(p.startswith("lora_") or p == "modules_to_save" for p in parts):
            name = ".".join(part for part in parts if part not in ("base_layer", "original_module"))
            found[name] = (module.out_features, module.in_features)
    return found


def read_weights(folder: Path, linears: Mapping[str, tuple[int, int]]) -> LoraWeights:
    """Read an adapter folder for a base with these linear layers, name -> (out, in).

    Raises AdapterError with the cause if anything about it is wrong: nothing is loaded before names, shapes
    and types fit; nothing is returned before every number was looked at.
    """
    config = read_config(folder)
    _refuse_pickle(folder)
    with tensor_file(folder, WEIGHTS) as file:
        if not file.entries:
            _refuse(file.where, "holds no tensor")
        why = kind_of(config) or (_EMBEDDINGS if any(".lora_embedding_" in name for name in file.entries) else "")
        wanted = _check_names(file, config, linears, why)
        tensors = file.load()
        digest = file.sha256
    where = str(folder / WEIGHTS)
    _check_finite(tensors, where)
    if why:
        return LoraWeights(_digest(digest, _meaning(config)), MappingProxyType({}), False, why)
    modules = {
        name: (tensors[f"{PREFIX}{name}{_A}"], tensors[f"{PREFIX}{name}{_B}"], branch.scale)
        for name, branch in wanted.items()
    }
    if not any(has_effect(*module) for module in modules.values()):
        _refuse(where, "changes nothing: every branch is zero", "train it, or look for the right file")
    scales = {name: branch.scale for name, branch in sorted(wanted.items())}
    return LoraWeights(_digest(digest, scales), MappingProxyType(modules), True, "")


def has_effect(a: Tensor, b: Tensor, scale: float) -> bool:
    """Whether scale * B A is anything but zero; rounding apart, also where products cancel."""
    if scale == 0 or not a.count_nonzero() or not b.count_nonzero():
        return False
    left, right = a.double(), b.double()
    left, right = left / left.norm(), right / right.norm()
    square = ((left @ left.T) * (right.T @ right)).sum()  # of the Frobenius norm of B A
    return bool(square > 1e-14)


def _check_names(
    file: TensorFile, config: AdapterConfig, linears: Mapping[str, tuple[int, int]], why: str
) -> dict[str, Branch]:
    """Hold the header against configuration and base: the branches that are in the file."""
    if config.peft_type != "LORA":
        _check_type(config, file)
    named = {} if config.peft_type != "LORA" else branches(config, linears, file.where.replace(WEIGHTS, CONFIG))
    unknown = []
    for name, entry in file.entries.items():
        module, kind = split_name(name)
        if module in named and kind in (_A, _B):
            _check_shape(file.where, name, entry, _shape(kind, named[module].r, linears[module]))
        else:
            unknown.append(name)
    if not why:
        _refuse_unknown(unknown, linears, file.where)
    elif file.size > 8 * sum(rows * columns for rows, columns in linears.values()) + (64 << 20):
        _refuse(file.where, f"is larger than the base it is for: {file.size:,} bytes")
    lacking = [
        f"{PREFIX}{module}{kind}" for module in named for kind in (_A, _B)
        if f"{PREFIX}{module}{kind}" not in file.entries
    ]  # fmt: skip
    there = {name: branch for name, branch in named.items() if f"{PREFIX}{name}{_A}" in file.entries}
    if missing := [
        name for name in lacking if split_name(name)[0] in there or not may_lack(config, split_name(name)[0])
    ]:
        _refuse(file.where, f"has no {missing[0]!r} ({len(missing)} missing), which {CONFIG} names")
    return there


def split_name(name: str) -> tuple[str, str]:
    """base_model.model.MODULE.lora_A.weight -> MODULE, .lora_A.weight; no module for a name of another form."""
    kind = next((kind for kind in (_A, _B) if name.endswith(kind)), "")
    if not kind or not name.startswith(PREFIX):
        return "", ""
    return name[len(PREFIX) : -len(kind)], kind


def _shape(kind: str, r: int, linear: tuple[int, int]) -> tuple[int, int]:
    return (r, linear[1]) if kind == _A else (linear[0], r)


def _check_shape(where: str, name: str, entry: Entry, expected: tuple[int, int]) -> None:
    if entry.shape != expected:
        _refuse(
            where,
            f"{name!r} is {' x '.join(map(str, entry.shape)) or 'a single number'}, this base and {CONFIG} need "
            f"{expected[0]} x {expected[1]}",
            "it was trained on another base, or the rank in the configuration is not its own",
        )


def _refuse_unknown(names: list[str], linears: Mapping[str, tuple[int, int]], where: str) -> None:
    if not names:
        return
    module, kind = split_name(names[0])
    if not kind:
        what = f"is not of the form {PREFIX}MODULE{_A} or {_B}"
    elif module in linears:
        what = f"is for a layer that target_modules in {CONFIG} does not name, so PEFT would not use it"
    else:
        what = "is for a layer that this base has not"
    more = f" ({len(names)} such tensors)" if len(names) > 1 else ""
    _refuse(where, f"{names[0][:160]!r} {what}{more}")


def _check_type(config: AdapterConfig, file: TensorFile) -> None:
    from peft.utils.peft_types import PeftType

    if config.peft_type not in PeftType.__members__:
        where = file.where.replace(WEIGHTS, CONFIG)
        _refuse(where, f"has the peft_type {config.peft_type[:40]!r}, which PEFT does not know")


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            _refuse(where, f"{name[:160]!r} holds NaN or infinity", "its training went wrong; take an earlier one")


def _refuse_pickle(folder: Path) -> None:
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        fix = "convert it where it comes from: save_pretrained(..., safe_serialization=True)"
        _refuse(str(folder / "adapter_model.bin"), "is a pickle, which could run code, so it is not opened", fix)


def _meaning(config: AdapterConfig) -> dict[str, object]:
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in _IDLE}


def _digest(file: str, meaning: Mapping[str, object]) -> str:
    return hashlib.sha256(f"{file} {json.dumps(meaning, sort_keys=True)}".encode()).hexdigest()


def _refuse(where: str, what: str, fix: str | None = None) -> NoReturn:
    raise AdapterError(what, where=where, fix=fix)
