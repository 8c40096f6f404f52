"""Which models there are: the base by its id, adapters by name, blends of them; loading and unloading."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from finetune.errors import AdapterError
from finetune.model.base import Base
from finetune.model.device import releasing_workers
from finetune.serving.bank import AdapterBank
from finetune.serving.server.errors import ApiError, model_not_found, said
from finetune.serving.server.replies import ModelCard
from finetune.serving.voices import parse_voice
from finetune.store.folders import find_in_store
from finetune.store.places import place_in_store


class Catalogue:
    """The names that requests may use; an unknown one is an error and never the base."""

    def __init__(self, base: Base, bank: AdapterBank, *, store: Path, created: int) -> None:
        self.base, self.bank, self.store, self.created = base, bank, store, created
        self.base_id = public_name(base.name)

    def voice(self, model: str) -> str | None:
        """Turn a request's `model` into what the engine is asked for. Raises ApiError 404."""
        if model == self.base_id:
            return None
        try:
            voice = parse_voice(model)
        except AdapterError:
            raise model_not_found(model) from None
        known = set(self.bank.names)
        if not voice.parts or any(name not in known for name, _ in voice.parts):
            raise model_not_found(model)
        return str(voice)

    def parts(self, voice: str) -> list[str]:
        """Names of the adapters of a voice that `voice` has let through."""
        return [name for name, _ in parse_voice(voice).parts]

    def label(self, voice: str | None) -> str:
        """A name for metrics: as many values as there are adapters, however many blends are asked for."""
        if voice is None:
            return self.base_id
        return voice if voice in self.bank.names else "blend"

    def cards(self) -> list[ModelCard]:
        return [self.card(self.base_id), *(self.card(name) for name in self.bank.names)]

    def card(self, model: str) -> ModelCard:
        """Describe a model. Raises ApiError 404."""
        created, parent, length = self.created, None, self.base.max_positions
        if self.voice(model) is not None:
            parent = self.base_id
            if model in self.bank.names:
                created = _timestamp(self.bank.stored(model).card.created, self.created)
        return ModelCard(id=model, created=created, root=self.base_id, parent=parent, max_model_len=length)

    def load(self, name: str, path: str | None) -> ModelCard:
        """Load an adapter of the store, or its changed weights. Raises ApiError; then nothing has changed."""
        if path not in (None, name):
            message = "'lora_path' is not supported: adapters come from the server's store by their name"
            raise ApiError(400, message, param="lora_path", code="unsupported_parameter")
        if name == self.base_id:
            raise ApiError(400, f"{name!r} is the base's id; rename the adapter", param="lora_name")
        try:
            if not place_in_store(name, self.store).is_dir():
                raise ApiError(404, f"The store holds no adapter {name!r}", param="lora_name", code="adapter_not_found")
            with releasing_workers():
                self.bank.load(find_in_store(name, self.store).folder)
        except AdapterError as error:
            raise ApiError(400, said(error), param="lora_name", code="adapter_refused") from None
        return self.card(name)

    def unload(self, name: str) -> None:
        """Take an adapter away; answers that use it end with it first. Raises ApiError 404."""
        if name not in self.bank.names:
            raise ApiError(404, f"No adapter {name!r} is loaded", param="lora_name", code="adapter_not_found")
        try:
            self.bank.unload(name)
        except AdapterError as error:
            raise ApiError(404, said(error), param="lora_name", code="adapter_not_found") from None


def public_name(name: str) -> str:
    """The base's id: as the recipe names it, but of a local folder only the last part."""
    folder = Path(name)
    return folder.resolve().name if folder.is_absolute() or name.startswith((".", "~")) else name


def _timestamp(created: str, otherwise: int) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return otherwise
