"""An adapter's configuration as PEFT may be given it: every layer by its full name, no pattern left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig, PeftConfig

from finetune.store.config import branches, read_config
from finetune.store.folders import CONFIG, WEIGHTS
from finetune.store.tensors import tensor_file
from finetune.store.weights import PREFIX


def spell_out(folder: Path, linears: Mapping[str, tuple[int, int]]) -> PeftConfig:
    """Read the configuration of an adapter that `read_weights` has accepted, for PEFT to load it with.

    PEFT matches the patterns of a file without a limit of time; none of them is left in what is returned.
    `linears`: the base's linear layers, name -> (out, in). Raises AdapterError.
    """
    config = read_config(folder)
    found: PeftConfig = PeftConfig.from_pretrained(str(folder))
    if not isinstance(found, LoraConfig):
        return found  # names alone stand in it: read_config has seen to that
    named = branches(config, linears, str(folder / CONFIG))
    with tensor_file(folder, WEIGHTS) as file:
        embeddings = [name.removeprefix(PREFIX).partition(".lora_embedding_") for name in file.entries]
    targets = {*named, *(module for module, kind, _ in embeddings if kind)}
    found.target_modules = sorted(targets) or None
    found.exclude_modules = found.layers_to_transform = found.layers_pattern = None
    found.rank_pattern = {re.escape(name): branch.r for name, branch in named.items() if branch.r != config.r}
    alphas = {name: branch.scale * (branch.r**0.5 if config.use_rslora else branch.r) for name, branch in named.items()}
    found.alpha_pattern = {re.escape(name): alpha for name, alpha in alphas.items() if alpha != config.lora_alpha}
    return found
