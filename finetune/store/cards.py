"""What goes into a card beyond what a run knows: licence, hashes of files, names that mean something elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from finetune.errors import AdapterError, FinetuneError
from finetune.files import sha256_file
from finetune.recipe import BaseSection
from finetune.store.config import read_config
from finetune.store.folders import CONFIG, WEIGHTS, StoredAdapter
from finetune.store.places import check_inside

RECIPE = "recipe.yaml"
STEADY = (WEIGHTS, CONFIG, RECIPE, "log.jsonl", "loss.png")  # an evaluation writes none of them


def portable(name: str) -> str:
    """A base's or file's name for a card: of an absolute path the last part, which tells nobody's folders."""
    return Path(name).name if name.startswith(("/", "~")) else name


def portable_names(paths: Iterable[str]) -> dict[str, str]:
    """The name of each path for a card; where two would be the same, with as many folders as it takes."""
    found: dict[str, str] = {}
    for path in paths:
        name, parents = portable(path), list(Path(path).parts[:-1])
        while name in found.values() and parents:
            name = f"{parents.pop().strip('/') or 'root'}/{name}"
        found[path] = name
    return found


def steady_files(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of an adapter folder that stay as they are."""
    return {name: sha256_file(folder / name) for name in STEADY if (folder / name).is_file()}


def base_section(adapter: StoredAdapter) -> BaseSection:
    """The base to load for an adapter: as the card names it, or where PEFT's configuration says that it lies.

    Raises AdapterError if the card names none.
    """
    base = adapter.card.base
    known = {"model": base.model, "revision": base.revision, "quantization": base.quantization}
    try:
        section = BaseSection.model_validate(known)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        what = f"its card names no base: {reason}"
        raise AdapterError(what, where=str(adapter.folder), fix="name the base with --base") from None
    try:
        place = read_config(adapter.folder).base_model_name_or_path
    except AdapterError:
        return section
    if place and place != base.model and portable(place) == base.model and Path(place).is_dir():
        return section.model_copy(update={"model": place})
    return section


def base_named(model: str) -> BaseSection:
    """The base that somebody names without a recipe: in 4 bits, or as it is stored if it is stored quantised.

    Raises ModelError if there is none.
    """
    from finetune.model.tokenizer import read_config as read_base_config

    section = BaseSection(model=model)
    stored = read_base_config(section).get("quantization_config")
    return section.model_copy(update={"quantization": "none"}) if stored else section


def licence_of(section: BaseSection) -> str | None:
    """The licence that the model card beside a base's weights names, if there is one."""
    from huggingface_hub.repocard import metadata_load

    from finetune.model.base import weight_paths
    from finetune.model.hub import hub_options, local_path

    try:
        readme = weight_paths(local_path(section), hub_options(section))[0].parent / "README.md"
        found = (metadata_load(readme) or {}).get("license") if readme.is_file() else None
    except (OSError, ValueError, FinetuneError):
        return None
    return str(found) if found else None


def read_recipe_text(adapter: StoredAdapter) -> str | None:
    """The resolved recipe beside an adapter, or None. Raises AdapterError if it is a link to outside."""
    path = check_inside(adapter.folder, RECIPE)
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"cannot be read ({error})", where=str(path)) from None
