"""One base in memory, any number of adapters beside it; each call names the one it wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from peft import PeftModel
from torch import nn

from finetune.data.encoding import encode_prompt
from finetune.data.messages import Message
from finetune.errors import AdapterError
from finetune.evaluation.checks import Answer
from finetune.journal import Journal
from finetune.model.base import Base, load_base
from finetune.model.device import pick_device
from finetune.model.lora import load_adapter
from finetune.model.store import StoredAdapter, check_base, find_adapter
from finetune.recipe import BaseSection, GenerationSection
from finetune.serving.generation import generate, stream
from finetune.serving.settings import sampling


class Assistant:
    """Answers conversations with the base (adapter None) or any loaded adapter."""

    def __init__(
        self, base: Base | BaseSection, adapters: Sequence[str | Path] = (), *, store: str | Path = "adapters"
    ) -> None:
        self.base = load_base(base, pick_device()) if isinstance(base, BaseSection) else base
        self.store = Path(store)
        self.loaded: dict[str, StoredAdapter] = {}
        self._slots: dict[str, str] = {}  # adapter name -> PEFT's name for it, which allows no dots
        self._model: PeftModel | None = None
        for adapter in adapters:
            self.load(adapter)

    def load(self, adapter: str | Path) -> str:
        """Load an adapter by name or folder and return its name; the base stays where it is.

        Raises AdapterError if there is none, or if it was trained on another base.
        """
        stored = find_adapter(str(adapter), self.store)
        if stored.name in self.loaded:
            if self.loaded[stored.name].folder.resolve() != stored.folder.resolve():
                raise AdapterError(f"another adapter named {stored.name!r} is loaded", where=str(stored.folder))
            return stored.name
        check_base(stored, self.base.fingerprint, self.base.name)
        slot = f"slot{len(self._slots)}"
        self._model = load_adapter(self.base, stored.folder, onto=self._model, name=slot)
        self._model.requires_grad_(False)
        self._slots[stored.name], self.loaded[stored.name] = slot, stored
        return stored.name

    def chat(
        self,
        prompt: str | Sequence[Message],
        adapter: str | None = None,
        settings: GenerationSection | None = None,
        seed: int = 0,
    ) -> str:
        """Answer one prompt or conversation."""
        return self.answer([_messages(prompt)], adapter, settings, seed)[0].text

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        adapter: str | None = None,
        settings: GenerationSection | None = None,
        seed: int | Sequence[int] = 0,
        journal: Journal | None = None,
    ) -> list[Answer]:
        """Answer many conversations in batches, in order; seed and journal as in `generate`."""
        prompts = [encode_prompt(self._with_system(c, adapter), self.base.template) for c in conversations]
        with self._using(adapter) as model:
            return generate(
                model,
                self.base.tokenizer,
                prompts,
                stop_ids=self.base.template.stop_ids,
                settings=sampling(settings),
                seed=seed,
                journal=journal,
            )

    def stream(
        self,
        conversation: Sequence[Message],
        adapter: str | None = None,
        settings: GenerationSection | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield one answer piece by piece."""
        prompt = encode_prompt(self._with_system(conversation, adapter), self.base.template)
        with self._using(adapter) as model:
            yield from stream(
                model,
                self.base.tokenizer,
                prompt,
                stop_ids=self.base.template.stop_ids,
                settings=sampling(settings),
                seed=seed,
            )

    def _with_system(self, conversation: Sequence[Message], adapter: str | None) -> Sequence[Message]:
        """Put the system prompt that the adapter was trained with before a conversation without one."""
        system = self.loaded[adapter].card.system if adapter in self.loaded else None
        if system is None or (conversation and conversation[0].role == "system"):
            return conversation
        return (Message("system", system), *conversation)

    @contextmanager
    def adapted(self, adapter: str | None) -> Iterator[Base]:
        """Give the base as this adapter, or none, makes it, for scoring."""
        with self._using(adapter):
            yield self.base

    @contextmanager
    def _using(self, adapter: str | None) -> Iterator[nn.Module]:
        if adapter is not None and (adapter not in self._slots or self._model is None):
            known = ", ".join(self._slots) or "none"
            raise AdapterError(f"adapter {adapter!r} is not loaded (loaded: {known})")
        if self._model is None:
            yield self.base.model
            return
        off: AbstractContextManager[object] = self._model.disable_adapter() if adapter is None else nullcontext()
        if adapter is not None:
            self._model.set_adapter(self._slots[adapter])
        try:
            with off:
                yield self.base.model
        finally:
            # PEFT marks what it activates as trainable, also when a block without adapters ends.
            self._model.requires_grad_(False)


def _messages(prompt: str | Sequence[Message]) -> Sequence[Message]:
    return [Message("user", prompt)] if isinstance(prompt, str) else prompt
