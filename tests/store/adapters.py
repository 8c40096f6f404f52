"""Adapter folders to test with: good ones that PEFT itself writes, and many ways to spoil one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from finetune.store.folders import CONFIG, WEIGHTS

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")

Spoil = Callable[[Path], object]


def load_model(folder: Path) -> PreTrainedModel:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    """Put an adapter with random numbers in all its tensors on the model, save it with PEFT, and return both."""
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape).to(dtype) * 0.05)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    if dtype is not torch.float32:
        change_tensors(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    return adapted.eval()


def change_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    path = folder / WEIGHTS
    save_file(dict(change(load_file(path))), path, metadata={"format": "pt"})


def set_tensor(name: str, value: Callable[[Tensor], Tensor]) -> Spoil:
    return lambda folder: change_tensors(folder, lambda tensors: {**tensors, name: value(tensors[name]).contiguous()})


def set_number(name: str, value: float) -> Spoil:
    """One number in the middle of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return set_tensor(name, change)


def rename(old: str, new: str) -> Spoil:
    """Rename every tensor whose name holds `old`."""
    return lambda folder: change_tensors(folder, lambda ts: {name.replace(old, new): t for name, t in ts.items()})


def drop(part: str) -> Spoil:
    return lambda folder: change_tensors(folder, lambda ts: {name: t for name, t in ts.items() if part not in name})


def config(**values: Any) -> Spoil:
    return lambda folder: change_config(folder, **values)


def config_text(text: str) -> Spoil:
    return lambda folder: (folder / CONFIG).write_text(text)


def write_raw(head: bytes, data: bytes = b"", length: int | None = None) -> Spoil:
    """A weights file of these bytes."""
    size = len(head) if length is None else length
    return lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", size) + head + data)


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the header as an object and leave the tensors."""

    def spoil(folder: Path) -> None:
        path = folder / WEIGHTS
        found = path.read_bytes()
        length = struct.unpack("<Q", found[:8])[0]
        entries = json.loads(found[8 : 8 + length])
        change(entries)
        write_raw(json.dumps(entries).encode(), found[8 + length :])(folder)

    return spoil


def cut(share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / WEIGHTS
        os.truncate(path, int(path.stat().st_size * share))

    return spoil


def replace_by_link(name: str) -> Spoil:
    """Put a link in a file's place that leads to the same bytes outside of the folder."""

    def spoil(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return spoil


def zeros(kind: str) -> Spoil:
    return lambda folder: change_tensors(
        folder, lambda ts: {name: torch.zeros_like(t) if kind in name else t for name, t in ts.items()}
    )
