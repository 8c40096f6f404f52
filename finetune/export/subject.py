"""What leaves: an adapter, the base it was trained over, and what its recipe says about both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from transformers import AutoConfig, PreTrainedConfig

from finetune.errors import AdapterError, RecipeError
from finetune.export.merged import Merged
from finetune.export.sources import LoadedWeights, Source, Tied
from finetune.model.base import Base, load_base
from finetune.model.device import pick_device
from finetune.model.hub import explain, hub_options, local_path
from finetune.model.weightfiles import WeightFiles
from finetune.recipe import BaseSection, Recipe, load_recipe
from finetune.store.folders import StoredAdapter, check_base

Into = Literal["original", "dequantised", "4bit"]
Precision = Literal["auto", "float32", "bfloat16"]
RECIPE = "recipe.yaml"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    adapter: StoredAdapter
    section: BaseSection  # of the base, as the adapter was trained over it
    recipe: Recipe | None  # the one in the adapter's folder
    config: PreTrainedConfig

    @property
    def quantised(self) -> bool:
        """Whether the adapter was trained over quantised weights: ours, or those of a base that is stored so."""
        return self.section.quantization != "none" or self.stored_quantised

    @property
    def stored_quantised(self) -> bool:
        return getattr(self.config, "quantization_config", None) is not None


def subject_of(adapter: StoredAdapter, base: str | None = None, dtype: Precision = "auto") -> Subject:
    """Find out what an adapter belongs to; `base`: where that base lies now, `dtype`: what it computes in.

    Raises AdapterError if its card names no base, ModelError if that cannot be read.
    """
    recipe = _recipe(adapter.folder)
    card = adapter.card.base
    computed = "float32" if dtype == "float32" else (recipe.base.dtype if recipe else "auto")
    try:
        section = BaseSection.model_validate(
            {
                "model": base or card.model,
                "revision": None if base else card.revision,
                "quantization": card.quantization,
                "dtype": computed,
            }
        )
    except ValidationError as error:
        raise AdapterError(f"its card names no base: {error.errors()[0]['msg']}", where=str(adapter.folder)) from None
    with explain(section.model):
        config = AutoConfig.from_pretrained(local_path(section), **hub_options(section))
    return Subject(adapter, section, recipe, config)


def into_of(subject: Subject, wanted: Into | None) -> Into:
    """What to merge into: by default what the adapter was trained over. Raises AdapterError for what there is not."""
    if wanted in ("dequantised", "4bit") and not subject.quantised:
        raise AdapterError(
            f"was trained over a base that was not quantised, so there is nothing to merge --into {wanted}",
            where=str(subject.adapter.folder),
            fix="merge --into original",
        )
    if wanted == "original" and subject.stored_quantised:
        what = "its base is stored quantised, so there is no original to merge into"
        raise AdapterError(what, where=str(subject.adapter.folder), fix="merge --into dequantised")
    return wanted or ("dequantised" if subject.quantised else "original")


def loaded_base(subject: Subject) -> Base:
    """Load the base as the adapter was trained over it. Raises AdapterError if it is another."""
    base = load_base(subject.section, pick_device())
    check_base(subject.adapter, base.fingerprint, base.name)
    return base


def source_of(subject: Subject, base: Base, merged: Merged, into: Into) -> Source:
    """The weights to add the adapter to."""
    # In memory a base may also be rounded: fp32 on the disk, computing in bf16.
    exact = subject.section.quantization == "none" and base.model.dtype == subject.config.dtype
    if into == "original" and not exact:
        files = WeightFiles(subject.section, base.model.base_model_prefix, "merge --into dequantised")
        return Tied(files, merged.owners)
    return LoadedWeights(base)


def stored_dtype(subject: Subject, base: Base, dtype: Precision) -> torch.dtype:
    """What the merged weights are written in; auto: the base's own on the disk."""
    own = subject.config.dtype
    return _DTYPES[dtype] if dtype != "auto" else own if isinstance(own, torch.dtype) else base.model.dtype


def _recipe(folder: Path) -> Recipe | None:
    try:
        return load_recipe(folder / RECIPE) if (folder / RECIPE).is_file() else None
    except RecipeError:  # an adapter from elsewhere, or an older one: its card says what is needed
        return None
