"""An adapter that PEFT wrote elsewhere, copied into the store with a card that says what is known about it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.errors import AdapterError
from finetune.files import replace_folder
from finetune.model.base import fingerprint_of, full_fingerprint, weight_paths
from finetune.model.hub import explain, hub_options, local_path
from finetune.model.tokenizer import load_tokenizer
from finetune.provenance import now
from finetune.recipe import BaseSection
from finetune.store.cards import licence_of, portable, steady_files
from finetune.store.config import AdapterConfig, kind_of, read_config
from finetune.store.folders import CARD, CONFIG, WEIGHTS, BaseCard, Card, Source, StoredAdapter, find_in_store
from finetune.store.places import check_name, copy_file, place_in_store
from finetune.store.readme import render_readme
from finetune.store.tensors import tensor_file
from finetune.store.weights import linear_shapes, read_weights


def import_adapter(
    folder: str | Path,
    *,
    name: str | None = None,
    base: BaseSection | None = None,
    store: str | Path = "adapters",
    source: Source | None = None,
    full: bool = False,
) -> StoredAdapter:
    """Check a PEFT adapter against its base, copy it into the store and write its card.

    `base`: default: the one its configuration names, unquantised. Its fingerprint is computed and marked as not
    verified: nobody recorded which base the adapter was trained on. `full`: hash the base's weights whole, too.
    Raises AdapterError if it is not fit for the base or the name is taken, ModelError if there is no such base.
    """
    path = Path(folder)
    if not path.is_dir():
        raise AdapterError("is no folder", where=str(folder), fix=f"name a folder with {CONFIG} and {WEIGHTS}")
    target = place_in_store(check_name(name or path.resolve().name), store)
    if target.exists():
        raise AdapterError("is there already", where=str(target), fix="choose another name with --name")
    config = read_config(path)
    section = base or _named_base(config, path)
    read_weights(path, bare_shapes(section))
    card = _card(target.name, path, config, section, source)
    if full:
        known = card.base.model_copy(update={"weights_sha256": full_fingerprint(section)})
        card = card.model_copy(update={"base": known})
    with replace_folder(target) as fresh:
        copy_file(path, fresh, WEIGHTS)
        copy_file(path, fresh, CONFIG)
        if config.base_model_name_or_path != section.model:  # where it lies stands in PEFT's own file, not in the card
            text = json.loads((fresh / CONFIG).read_text(encoding="utf-8"))
            changed = {**text, "base_model_name_or_path": section.model}
            (fresh / CONFIG).write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
        card = card.model_copy(update={"files": steady_files(fresh)})
        (fresh / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (fresh / "README.md").write_text(render_readme(card), encoding="utf-8")
    return find_in_store(target.name, store)


def bare_shapes(section: BaseSection) -> dict[str, tuple[int, int]]:
    """(out, in) of a base's linear layers by name, from its configuration alone. Raises ModelError."""
    with explain(section.model), torch.device("meta"):
        config = AutoConfig.from_pretrained(local_path(section), **hub_options(section))
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=section.trust_remote_code)
    return linear_shapes(model)


def commit_of(section: BaseSection) -> str | None:
    """The commit of a base that lies in the Hub's cache, else None. Raises ModelError."""
    with explain(section.model):
        folder = weight_paths(local_path(section), hub_options(section))[0].parent
    return folder.name if folder.parent.name == "snapshots" else None


def _named_base(config: AdapterConfig, path: Path) -> BaseSection:
    if not config.base_model_name_or_path:
        raise AdapterError(f"{CONFIG} names no base", where=str(path), fix="name the base it is for with --base")
    try:
        return BaseSection(model=config.base_model_name_or_path, revision=config_revision(config), quantization="none")
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise AdapterError(f"its base cannot be used: {reason}", where=str(path), fix="name one with --base") from None


def config_revision(config: AdapterConfig) -> str | None:
    """The revision of the base that PEFT noted, if it did."""
    revision = (config.model_extra or {}).get("revision")
    return revision if isinstance(revision, str) and revision else None


def _card(name: str, path: Path, config: AdapterConfig, section: BaseSection, source: Source | None) -> Card:
    with tensor_file(path, WEIGHTS) as file:
        trained = sum(math.prod(entry.shape) for entry in file.entries.values())
    version = (config.model_extra or {}).get("peft_version")
    kind = kind_of(config)
    return Card(
        name=name,
        base=BaseCard(
            model=portable(section.model),
            revision=commit_of(section),
            quantization=section.quantization,
            fingerprint=fingerprint_of(section, load_tokenizer(section)),
            verified=False,
            licence=licence_of(section),
        ),
        method=kind[:60] if kind else "rslora" if config.use_rslora else "lora",
        r=config.r,
        alpha=config.lora_alpha,
        parameters={"trained": trained},
        versions={"peft": version[:40]} if isinstance(version, str) else {},
        created=now(),
        source=source or Source(kind="import", place=path.resolve().name),
    )
