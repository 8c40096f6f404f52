"""One base in memory, any number of adapters beside it; each call names the one it wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from finetune.data.encoding import encode_prompt
from finetune.data.messages import Message
from finetune.evaluation.checks import Answer
from finetune.journal import Journal
from finetune.model.base import Base, load_base
from finetune.model.dense import dense_kept
from finetune.model.device import pick_device
from finetune.recipe import BaseSection, GenerationSection
from finetune.serving.bank import AdapterBank, Lease
from finetune.serving.forward import spare_bytes
from finetune.serving.generation import generate, stream
from finetune.serving.settings import sampling
from finetune.store.folders import StoredAdapter


class Assistant:
    """Answers conversations with the base (adapter None), any loaded adapter, or a blend (pizza+0.5*cheerful)."""

    def __init__(
        self,
        base: Base | BaseSection,
        adapters: Sequence[str | Path] = (),
        *,
        store: str | Path = "adapters",
        force: bool = False,
    ) -> None:
        """`force`: also load what was trained on another base."""
        self.base = load_base(base, pick_device()) if isinstance(base, BaseSection) else base
        self.store = Path(store)
        self.bank = AdapterBank(self.base, store=self.store)
        for adapter in adapters:
            self.load(adapter, force=force)

    @property
    def loaded(self) -> dict[str, StoredAdapter]:
        """The loaded adapters by name."""
        return {name: self.bank.stored(name) for name in self.bank.names}

    def load(self, adapter: str | Path, *, force: bool = False) -> str:
        """Load an adapter by name or folder and return its name; the base stays where it is.

        Raises AdapterError if there is none, or, without `force`, if it was trained on another base.
        """
        return self.bank.load(adapter, force=force)

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
        with self.bank.lease(adapter) as lease:
            return generate(
                _Voiced(self.base.model, self.bank, lease),
                self.base.tokenizer,
                [self._prompt(conversation, lease) for conversation in conversations],
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
        """Yield one answer piece by piece; others may run in between."""
        with self.bank.lease(adapter) as lease:
            yield from stream(
                _Voiced(self.base.model, self.bank, lease),
                self.base.tokenizer,
                self._prompt(conversation, lease),
                stop_ids=self.base.template.stop_ids,
                settings=sampling(settings),
                seed=seed,
            )

    @contextmanager
    def adapted(self, adapter: str | None) -> Iterator[Base]:
        """Give the base as this adapter, or none, makes it, for scoring."""
        kept = dense_kept(self.base.model, spare_bytes)
        with kept, self.bank.lease(adapter) as lease, self.bank.routed([lease.slot]):
            yield self.base

    def _prompt(self, conversation: Sequence[Message], lease: Lease) -> list[int]:
        """Token ids, with the system prompt that the adapter was trained with if the conversation has none."""
        if lease.system is not None and not (conversation and conversation[0].role == "system"):
            conversation = (Message("system", lease.system), *conversation)
        return encode_prompt(conversation, self.base.template)


class _Voiced(nn.Module):
    """The base with one voice, forward pass by forward pass, so that answers of several may take turns."""

    def __init__(self, model: PreTrainedModel, bank: AdapterBank, lease: Lease) -> None:
        super().__init__()
        self.model, self._bank, self._slots = model, bank, (lease.slot,)

    def get_base_model(self) -> PreTrainedModel:
        """The model that says which arguments it takes."""
        return self.model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._bank.routed(self._slots):
            return self.model(*args, **kwargs)


def _messages(prompt: str | Sequence[Message]) -> Sequence[Message]:
    return [Message("user", prompt)] if isinstance(prompt, str) else prompt
