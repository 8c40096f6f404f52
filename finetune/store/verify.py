"""Whether an adapter is still what its card says, and whether it does anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from finetune.data.encoding import encode_prompt
from finetune.data.messages import Message
from finetune.errors import AdapterError, FinetuneError
from finetune.files import sha256_file
from finetune.model.base import Base, fingerprint_of, full_fingerprint, load_base
from finetune.model.device import pick_device
from finetune.model.lora import load_adapter
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe import BaseSection, Recipe, load_recipe
from finetune.store.cards import RECIPE, base_section, portable_names
from finetune.store.folders import StoredAdapter, check_base, find_adapter
from finetune.store.imports import commit_of
from finetune.store.places import check_inside
from finetune.store.spelt import spell_out
from finetune.store.weights import linear_shapes, read_weights

State = Literal["ok", "wrong", "unknown"]
_PROMPTS = ("Hello!", "What can you do for me?", "Please write one short sentence about the weather.")


@dataclass(frozen=True)
class Check:
    what: str
    state: State
    text: str  # for a person


def verify_adapter(
    name: str, store: str | Path = "adapters", *, base: BaseSection | None = None, full: bool = False
) -> list[Check]:
    """Hold files, recipe, data, base and weights of an adapter against its card; run it once.

    `base`: default: the card's. `full`: every byte of the base's weights instead of slices, a second per GB.
    Raises AdapterError if there is no such adapter; whatever else is wrong is in the list.
    """
    adapter = find_adapter(name, store)
    found = [*_files(adapter), *_data(adapter)]
    try:
        section = base or base_section(adapter)
        found += _base(adapter, section, full)
        found += _weights(adapter, section)
    except FinetuneError as error:
        found.append(Check("base", "unknown", str(error)))
    return found


def _files(adapter: StoredAdapter) -> Iterator[Check]:
    if not adapter.card.files:
        yield Check("files", "unknown", "its card, of an earlier version, holds no hashes of its files")
    for name, digest in adapter.card.files.items():
        yield _held(name, check_inside(adapter.folder, name), digest)
    if adapter.card.recipe_sha256 and RECIPE not in adapter.card.files:
        yield _held(RECIPE, check_inside(adapter.folder, RECIPE), adapter.card.recipe_sha256)


def _data(adapter: StoredAdapter) -> Iterator[Check]:
    if not adapter.card.data:
        yield Check("data", "unknown", "its card names no data")
        return
    try:
        places = _places(load_recipe(check_inside(adapter.folder, RECIPE)))
    except FinetuneError:
        places = {}
    for name, digest in adapter.card.data.items():
        path = Path(places.get(name, name))
        if path.is_file():
            yield _held(name, path, digest)
        else:
            yield Check(name, "unknown", "the file is not here")


def _places(recipe: Recipe) -> dict[str, str]:
    """Name of a data file in the card -> where the recipe says that it lies."""
    texts = [value for value in (recipe.data.path, recipe.data.heldout) if isinstance(value, str)]
    return {name: path for path, name in portable_names([*texts, *(mix.path for mix in recipe.data.mix)]).items()}


def _held(name: str, path: Path, digest: str) -> Check:
    try:
        found = sha256_file(path)
    except OSError as error:
        return Check(name, "wrong", f"cannot be read ({error.strerror or error})")
    if found == digest:
        return Check(name, "ok", f"sha256 {digest[:12]}")
    return Check(name, "wrong", f"sha256 is {found[:12]}, the card says {digest[:12]}")


def _base(adapter: StoredAdapter, section: BaseSection, full: bool) -> Iterator[Check]:
    card = adapter.card.base
    try:
        check_base(adapter, fingerprint_of(section, load_tokenizer(section)), section.model, commit_of(section))
    except AdapterError as error:
        yield Check("base", "wrong", str(error))
    else:
        said = "" if card.verified else "; not verified: named when it was imported, not recorded by its training"
        yield Check("base", "ok", f"{section.model}: {', '.join(card.fingerprint).replace('_', ' ')}{said}")
    if full:
        yield _whole(card.weights_sha256, full_fingerprint(section))


def _whole(said: Mapping[str, str], found: Mapping[str, str]) -> Check:
    if not said:
        listed = ", ".join(f"{name} {digest}" for name, digest in found.items())
        return Check("base, every byte", "unknown", f"the card holds nothing to compare with; it is {listed}")
    wrong = [name for name in dict.fromkeys([*said, *found]) if said.get(name) != found.get(name)]
    if wrong:
        pairs = (f"{n} is {found.get(n, 'not there')[:12]}, the card says {said.get(n, 'none')[:12]}" for n in wrong)
        return Check("base, every byte", "wrong", ", ".join(pairs))
    return Check("base, every byte", "ok", f"{len(found)} files, sha256 of each")


def _weights(adapter: StoredAdapter, section: BaseSection) -> Iterator[Check]:
    base = load_base(section, pick_device())
    try:
        weights = read_weights(adapter.folder, linear_shapes(base.model))
    except AdapterError as error:
        yield Check("weights", "wrong", str(error))
        return
    kind = f"{len(weights.modules)} branches" if weights.plain else f"{weights.why}; PEFT runs it, unmixed"
    yield Check("weights", "ok", f"{kind}; digest {weights.digest[:12]}")
    yield _effect(adapter, base)


def _effect(adapter: StoredAdapter, base: Base) -> Check:
    """Compare the base's logits with and without the adapter on some prompts, in its own form of a conversation."""
    system = [Message("system", adapter.card.system)] if adapter.card.system is not None else []
    prompts = [encode_prompt([*system, Message("user", text)], base.template) for text in _PROMPTS]
    before = _logits(base, prompts)
    load_adapter(base, adapter.folder, spell_out(adapter.folder, linear_shapes(base.model))).eval()
    after = _logits(base, prompts)
    if not torch.isfinite(after).all():
        return Check("effect", "wrong", "its logits are not finite")
    apart = float((after - before).abs().max())
    moved = int((after.argmax(-1) != before.argmax(-1)).sum())
    text = f"logits change by up to {apart:.3g}, the likeliest token at {moved} of {len(after)} positions"
    return Check("effect", "ok" if apart > 0 else "wrong", text)


def _logits(base: Base, prompts: list[list[int]]) -> Tensor:
    """(tokens of all prompts, vocabulary), float32."""
    found = []
    with torch.inference_mode():
        for ids in prompts:
            batch = torch.tensor([ids], device=base.device)
            found.append(base.model(input_ids=batch, use_cache=False).logits[0].float().cpu())
    return torch.cat(found)
