"""The frozen base: load it in 4 bits, keep it trainable through, know it by its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from finetune.data.template import ChatTemplate
from finetune.errors import ModelError
from finetune.files import sha256_file
from finetune.model.attention import keeps_segments_apart
from finetune.model.dense import multiply_by_kept
from finetune.model.device import keep_freed_memory
from finetune.model.fitting import make_lean_layers
from finetune.model.hub import explain, hub_options, local_path
from finetune.model.lean import make_lean
from finetune.model.tokenizer import load_chat_template, read_config
from finetune.recipe import BaseSection

_SLICE = 1 << 16  # bytes hashed at each of _SLICES places of a weight file
_SLICES = 64


@dataclass(frozen=True)
class Base:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    name: str  # as the recipe names it
    revision: str | None  # the commit, for models from the Hub
    fingerprint: dict[str, str]
    quantization: str
    device: torch.device
    packs: bool  # several examples may share a row

    @property
    def max_positions(self) -> int | None:
        value = getattr(self.model.config, "max_position_embeddings", None)
        return int(value) if value else None


def load_base(section: BaseSection, device: torch.device, template: ChatTemplate | None = None) -> Base:
    """Load tokenizer, chat template (unless given) and frozen weights. Raises ModelError with the cause."""
    template = template or load_chat_template(section)
    tokenizer = template.tokenizer
    path, options = local_path(section), hub_options(section)
    with explain(section.model), _quietly():
        config = AutoConfig.from_pretrained(path, **options)
        _refuse_to_quantise_again(section, config)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32 if section.dtype == "float32" else torch.bfloat16,
            quantization_config=_quantization(section),
            device_map={"": str(device)},
            attn_implementation="sdpa",
            use_safetensors=True,
            **options,
        )
    model.requires_grad_(False)
    keep_trainable_through(model)
    multiply_by_kept(model)
    make_lean(model)
    make_lean_layers(model)
    if device.type == "cpu":
        keep_freed_memory()
    fingerprint = fingerprint_of(section, tokenizer)
    packs = keeps_segments_apart(model, min(len(tokenizer), model.config.get_text_config().vocab_size))
    revision = getattr(config, "_commit_hash", None)
    return Base(model, tokenizer, template, section.model, revision, fingerprint, section.quantization, device, packs)


def fingerprint_of(section: BaseSection, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """SHA-256 of a base's configuration, vocabulary, chat template and of slices of its weights; no weight is loaded.

    Raises ModelError if there is no such base.
    """
    with explain(section.model):
        weights = _weights_fingerprint(local_path(section), hub_options(section))
    return {
        "config": _digest(json.dumps(_stable(read_config(section)), sort_keys=True)),
        "tokenizer": _digest(_tokenizer_text(tokenizer)),
        "chat_template": _digest(str(tokenizer.chat_template)),
        "weights": weights,
    }


def full_fingerprint(section: BaseSection) -> dict[str, str]:
    """SHA-256 of every byte of each weight file by its name: about a second per GB. Raises ModelError."""
    with explain(section.model):
        files = weight_paths(local_path(section), hub_options(section))
    return {file.name: sha256_file(file) for file in files}


def keep_trainable_through(model: nn.Module) -> None:
    """Forbid bitsandbytes to re-pack 4-bit weights for CPU inference.

    bitsandbytes 0.50 re-packs in place at the first no-grad forward on CPUs with AVX512-BF16;
    every later training step then loses the gradient through the base, silently.
    """
    for layer in linear4bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def assert_trainable_through(model: nn.Module) -> None:
    """Raise ModelError if a 4-bit weight was re-packed; called before training, merging, saving."""
    for layer in linear4bit_layers(model):
        if layer.support_avx512bf16_for_cpu or getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise ModelError("a 4-bit weight was re-packed for inference: gradients would be wrong", fix="load anew")


def linear4bit_layers(model: nn.Module) -> Iterator[Any]:
    return (m for m in model.modules() if isinstance(m, Linear4bit))


def weights_sha256(model: nn.Module) -> str:
    """Hash every base tensor in memory, quantisation constants included, adapters excluded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor) and "lora_" not in name and ".modules_to_save." not in name:
            for part in ("base_model.model.", ".base_layer", ".original_module"):
                name = name.replace(part, "")
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar of transformers' own while loading what is already on the disk."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def _quantization(section: BaseSection) -> BitsAndBytesConfig | None:
    if section.quantization == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if section.dtype == "float32" else torch.bfloat16,
    )


def _refuse_to_quantise_again(section: BaseSection, config: PreTrainedConfig) -> None:
    already = getattr(config, "quantization_config", None)
    if already and section.quantization != "none":
        method = already.get("quant_method", "unknown") if isinstance(already, dict) else type(already).__name__
        raise ModelError(
            f"base.quantization is {section.quantization}, but its weights are quantised already ({method})",
            where=section.model,
            fix="write `quantization: none`, which loads them as they are",
        )


def _stable(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as it lies there: what transformers makes of it differs between its versions."""
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}


def _tokenizer_text(tokenizer: PreTrainedTokenizerBase) -> str:
    return json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _weights_fingerprint(path: str, options: dict[str, Any]) -> str:
    """Hash sizes, headers and evenly spread slices of the weight files: gigabytes in no time."""
    digest = hashlib.sha256()
    for file in weight_paths(path, options):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as data:
            header = int.from_bytes(data.read(8), "little")
            digest.update(data.read(header))
            for part in range(_SLICES):
                data.seek(size * part // _SLICES)
                digest.update(data.read(_SLICE))
    return digest.hexdigest()


def weight_files(section: BaseSection) -> list[tuple[str, int, int]]:
    """Name, size and time of change (ns) of the files that the weights are read from."""
    stats = [(file.name, file.stat()) for file in weight_paths(local_path(section), hub_options(section))]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def weight_paths(path: str, options: dict[str, Any]) -> list[Path]:
    """The safetensors files of a model, found in its folder or the Hub's cache."""
    where = {key: options[key] for key in ("revision", "local_files_only")}
    single = cached_file(path, "model.safetensors", _raise_exceptions_for_missing_entries=False, **where)
    if single:
        return [Path(single)]
    index = cached_file(path, "model.safetensors.index.json", **where)
    names = sorted(set(json.loads(Path(str(index)).read_text())["weight_map"].values()))
    return [Path(str(cached_file(path, name, **where))) for name in names]
