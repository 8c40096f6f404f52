"""A model folder as transformers reads it: safetensors in shards, config, tokenizer, chat template."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from finetune.export.merged import Entry
from finetune.export.sources import is_float
from finetune.model.base import Base
from finetune.model.hub import hub_options, local_path
from finetune.recipe import BaseSection

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_GENERATION = "generation_config.json"


def write_weights(
    folder: Path, entries: Sequence[Entry], tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype, limit: int
) -> list[Path]:
    """Write tensors that come in the order of `entries` into files of at most `limit` bytes each.

    A tensor that is larger alone gets a file of its own. No more than one file's tensors are held at a time.
    """
    shards = _shards(entries, dtype, limit)
    names = _file_names(len(shards))
    place: dict[str, str] = {}
    total = 0
    for file, shard in zip(names, shards, strict=True):
        held: dict[str, Tensor] = {}
        for expected in shard:
            name, tensor = next(tensors)
            assert name == expected.name
            # A copy: safetensors refuses tensors that share memory, and a view would keep the whole alive.
            held[name] = (tensor.to(dtype) if is_float(tensor) else tensor).clone(memory_format=torch.contiguous_format)
            total += held[name].nbytes
        save_file(held, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(held, file)
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": place}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def write_rest(folder: Path, base: Base, section: BaseSection, config: PreTrainedConfig, dtype: torch.dtype) -> None:
    """Write what goes with the weights: config.json, the tokenizer with its chat template, generation_config.json."""
    written = copy.deepcopy(config)
    written.dtype = dtype
    if hasattr(written, "quantization_config"):  # of a base that is stored quantised; what was written is not
        del written.quantization_config
    written.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    options: dict[str, Any] = {key: hub_options(section)[key] for key in ("revision", "local_files_only")}
    found = cached_file(local_path(section), _GENERATION, _raise_exceptions_for_missing_entries=False, **options)
    if found:
        shutil.copyfile(str(found), folder / _GENERATION)


def _shards(entries: Sequence[Entry], dtype: torch.dtype, limit: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    room = limit
    for entry in entries:
        size = entry.shape.numel() * (dtype.itemsize if entry.floating else 8)
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(entry)
        room -= size
    return shards


def _file_names(count: int) -> list[str]:
    return [_SINGLE] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
