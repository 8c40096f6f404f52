"""Adapter folders: written whole or not at all, read without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.errors import AdapterError
from finetune.files import recover_folder, replace_folder

CARD = "card.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class BaseCard(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    revision: str | None = None
    quantization: str
    fingerprint: dict[str, str]


class Card(BaseModel):
    """card.json: where an adapter comes from and what was measured while it was made."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = 1
    name: str
    base: BaseCard
    system: str | None = None  # the system prompt it was trained with
    method: str
    r: int
    alpha: float
    seed: int
    data: dict[str, str]  # file -> sha256
    train_rows: int
    heldout_rows: int
    steps: int
    kept_step: int | None = None  # with early stopping: the step after which the adapter was best
    trained_tokens: int
    seconds: float
    peak_memory_bytes: int
    parameters: dict[str, int]
    loss: dict[str, float]
    versions: dict[str, str]
    created: str
    metrics: dict[str, dict[str, float]] = {}  # name -> value, low, high; put in by an evaluation


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
    direct = Path(name)
    folder = direct if "/" in name or (direct / CONFIG).exists() else Path(store) / name
    recover_folder(folder)
    if not folder.is_dir():
        known = [adapter.name for adapter in list_adapters(store)]
        raise AdapterError(
            f"no adapter {name!r}",
            where=str(folder),
            fix=f"there are {', '.join(known)}" if known else f"{store} holds no adapter; train one first",
        )
    missing = [file for file in (WEIGHTS, CONFIG, CARD) if not (folder / file).is_file()]
    if missing:
        raise AdapterError(f"is no adapter folder: no {' and no '.join(missing)}", where=str(folder))
    return StoredAdapter(folder.name, folder, read_card(folder))


def list_adapters(store: str | Path = "adapters") -> list[StoredAdapter]:
    """Every readable adapter folder of a store, by name."""
    folders = sorted(path.parent for path in Path(store).glob(f"*/{CARD}") if not path.parent.name.startswith("."))
    return [StoredAdapter(folder.name, folder, read_card(folder)) for folder in folders if (folder / WEIGHTS).exists()]


def read_card(folder: Path) -> Card:
    """Read card.json. Raises AdapterError."""
    try:
        return Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise AdapterError(f"cannot be read: {reason}", where=str(folder / CARD)) from None


def check_base(adapter: StoredAdapter, fingerprint: Mapping[str, str], base_name: str) -> None:
    """Refuse an adapter that was trained on another base, naming both and what differs."""
    trained_on = adapter.card.base
    differing = [part for part, value in trained_on.fingerprint.items() if fingerprint.get(part) != value]
    if not differing:
        return
    part = differing[0]
    raise AdapterError(
        f"was trained on base {trained_on.model} ({part} {trained_on.fingerprint[part][:12]}), this is {base_name} "
        f"({part} {fingerprint.get(part, 'unknown')[:12]}); they differ in {', '.join(differing)}",
        where=str(adapter.folder),
        fix="load the base named in its card, or train it again on this one",
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
