"""Adapter folders: written whole or not at all, read without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.errors import AdapterError
from finetune.files import recover_folder, replace_folder
from finetune.store.places import check_inside, place_in_store

CARD = "card.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

# What nobody can promise any more when an adapter is used although this part of the base differs.
_LOST = {
    "config": "the layers may compute something else",
    "tokenizer": "tokens may mean other words",
    "chat_template": "conversations look different from what it was trained on",
    "weights": "no number that was measured holds, and texts may be nonsense",
    "revision": "only slices of the weights were compared with those of another commit",
}


class BaseCard(BaseModel):
    """The base an adapter is for: known by what it holds, never by where it lies."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str  # as the recipe names it; of a path that only one machine has, the last part
    revision: str | None = None  # the commit, for models from the Hub
    quantization: str
    fingerprint: dict[str, str]  # of config, tokenizer, chat template and weights -> SHA-256
    verified: bool = True  # False: somebody said that this is the base; no training recorded it
    weights_sha256: dict[str, str] = {}  # weight file -> SHA-256 of all of it
    licence: str | None = None  # as its model card says


class Source(BaseModel):
    """Where an adapter comes from that was not trained here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: str  # import, hub, blend
    place: str  # a Hub repository, a folder's name, an expression
    revision: str | None = None  # of a Hub repository: the commit


class Card(BaseModel):
    """card.json: where an adapter comes from and what was measured while it was made; None: not known."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = 1
    name: str
    base: BaseCard
    system: str | None = None  # the system prompt it was trained with
    method: str
    r: int
    alpha: float
    seed: int | None = None
    data: dict[str, str] = {}  # file -> sha256
    recipe_sha256: str | None = None  # of recipe.yaml, every setting of the run
    train_rows: int | None = None
    heldout_rows: int | None = None
    steps: int | None = None
    kept_step: int | None = None  # with early stopping: the step after which the adapter was best
    trained_tokens: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    parameters: dict[str, int] = {}
    loss: dict[str, float] = {}
    versions: dict[str, str] = {}
    created: str
    metrics: dict[str, dict[str, float]] = {}  # name -> value, low, high; put in by an evaluation
    files: dict[str, str] = {}  # files of the folder that never change -> sha256
    source: Source | None = None  # None: trained here


@dataclass(frozen=True)
class StoredAdapter:
    name: str
    folder: Path
    card: Card


def save_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write an adapter folder through `write(folder)` and swap it in whole."""
    try:
        with replace_folder(target) as fresh:
            write(fresh)
    except OSError as error:
        raise AdapterError(f"cannot be written ({error.strerror or error})", where=str(target)) from None


def find_adapter(name: str, store: str | Path = "adapters") -> StoredAdapter:
    """Find an adapter by its name in the store, or by its folder. Raises AdapterError."""
    if "\0" not in name and ("/" in name or (Path(name) / CONFIG).exists()):
        return _read_folder(Path(name), name, store)
    return find_in_store(name, store)


def find_in_store(name: str, store: str | Path = "adapters") -> StoredAdapter:
    """Find an adapter by its name alone: no path, and nothing a link leads to outside. Raises AdapterError."""
    return _read_folder(place_in_store(name, store), name, store)


def _read_folder(folder: Path, name: str, store: str | Path) -> StoredAdapter:
    recover_folder(folder)
    if not folder.is_dir():
        known = [adapter.name for adapter in list_adapters(store)]
        raise AdapterError(
            f"no adapter {name!r}",
            where=str(folder),
            fix=f"there are {', '.join(known)}" if known else f"{store} holds no adapter; train one first",
        )
    missing = [file for file in (WEIGHTS, CONFIG, CARD) if not check_inside(folder, file).is_file()]
    if missing:
        fix = f"finetune import {folder} makes one of what PEFT wrote" if missing == [CARD] else None
        raise AdapterError(f"is no adapter folder: no {' and no '.join(missing)}", where=str(folder), fix=fix)
    return StoredAdapter(folder.name or folder.resolve().name, folder, read_card(folder))


def list_adapters(store: str | Path = "adapters") -> list[StoredAdapter]:
    """Every adapter of a store that can be read, by name."""
    return read_store(store)[0]


def read_store(store: str | Path = "adapters") -> tuple[list[StoredAdapter], list[AdapterError]]:
    """Every adapter folder of a store, by name, and what is wrong with those whose card cannot be read.

    What a link leads to outside is no part of it.
    """
    root = Path(store).resolve()
    cards = sorted(path.parent for path in Path(store).glob(f"*/{CARD}") if not path.parent.name.startswith("."))
    folders = [folder for folder in cards if (folder / WEIGHTS).exists() and folder.resolve().is_relative_to(root)]
    found, unreadable = list[StoredAdapter](), list[AdapterError]()
    for folder in folders:
        try:
            found.append(StoredAdapter(folder.name, folder, read_card(folder)))
        except AdapterError as error:
            unreadable.append(error)
    return found, unreadable


def read_card(folder: Path) -> Card:
    """Read card.json. Raises AdapterError."""
    try:
        return Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise AdapterError(f"cannot be read: {reason}", where=str(folder / CARD)) from None


def check_base(
    adapter: StoredAdapter,
    fingerprint: Mapping[str, str],
    base_name: str,
    revision: str | None = None,
    *,
    force: bool = False,
) -> str:
    """Refuse an adapter that was trained on another base, naming both and what differs. Raises AdapterError.

    What a base holds counts, not where it lies. Two commits of the Hub are two bases. With `force`, what that
    gives up is returned instead, for a person; '' if nothing is.
    """
    trained_on = adapter.card.base
    differing = [part for part, value in trained_on.fingerprint.items() if fingerprint.get(part) != value]
    sides = [(trained_on.fingerprint[part][:12], fingerprint.get(part, "unknown")[:12]) for part in differing]
    if revision is not None and trained_on.revision is not None and revision != trained_on.revision:
        differing.append("revision")
        sides.append((trained_on.revision[:12], revision[:12]))
    if not differing:
        return ""
    named = ", ".join(part.replace("_", " ") for part in differing)
    lost = "; ".join(_LOST[part] for part in differing if part in _LOST)
    if force:
        return f"{adapter.name}: its base {trained_on.model} and {base_name} differ in {named}: {lost}"
    both = [f"{part.replace('_', ' ')} {side}" for part, side in zip(differing, (s[0] for s in sides), strict=True)]
    here = [f"{part.replace('_', ' ')} {side}" for part, side in zip(differing, (s[1] for s in sides), strict=True)]
    raise AdapterError(
        f"was trained on base {trained_on.model} ({', '.join(both)}), this is {base_name} ({', '.join(here)}); "
        f"they differ in {named}",
        where=str(adapter.folder),
        fix=f"load the base named in its card, or train it again on this one; --force gives up: {lost}",
    )


def metrics_of(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Headline numbers of a report (as in report.json), with their intervals."""
    found: dict[str, Any] = {}
    for kind in ("heldout", "general"):
        pair = report["perplexity"].get(kind)
        if pair:
            found[f"perplexity.{kind}"] = pair["adapter"]
            found[f"perplexity.{kind}.ratio"] = pair["ratio"]
    if prompts := report.get("prompts"):
        rate = prompts["adapter"]["passed"] / prompts["adapter"]["total"]
        found["prompts.pass_rate"] = {**prompts["adapter"], "value": rate}
        found["prompts.gain"] = prompts["gain"]
    keys = ("value", "low", "high")
    return {name: {k: m[k] for k in keys} for name, m in found.items() if all(m[k] is not None for k in keys)}
