"""Adapters on the random Llama to merge and export: made by PEFT, stored with a card as training writes it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.model.base import fingerprint_of
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe import BaseSection
from finetune.store.folders import CARD, BaseCard, Card, StoredAdapter, find_adapter
from tests.store.adapters import load_model, make

PROMPTS = "prompts:\n" + "".join(
    f"- id: p{n}\n  prompt: {text}\n  checks: [{{stops: true}}]\n"
    for n, text in enumerate(["Two pizzas, please.", "How much is it?", "One cola and three small veggie pizzas."] * 4)
)


def store_adapter(
    folder: Path, model_folder: Path, quantization: str = "nf4", system: str | None = None, **settings: Any
) -> StoredAdapter:
    """Write an adapter with random numbers for the model in `model_folder`, and its card."""
    make(load_model(model_folder), folder, **settings)
    card = Card(
        name=folder.name,
        base=BaseCard(model=str(model_folder), quantization=quantization, fingerprint=_fingerprint(model_folder)),
        system=system,
        method="lora",
        r=4,
        alpha=8.0,
        seed=0,
        data={},
        train_rows=1,
        heldout_rows=1,
        steps=1,
        trained_tokens=1,
        seconds=1.0,
        peak_memory_bytes=1,
        parameters={"trained": 1, "total": 2},
        loss={"first": 1.0, "last": 1.0},
        versions={},
        created="2026-01-01T00:00:00Z",
    )
    (folder / CARD).write_text(card.model_dump_json())
    return find_adapter(str(folder))


@functools.cache
def _fingerprint(model_folder: Path) -> dict[str, str]:
    section = BaseSection(model=str(model_folder))
    return fingerprint_of(section, load_tokenizer(section))


@torch.no_grad()
def logits(model: nn.Module, seed: int = 0) -> Tensor:
    """What a model says about some fixed tokens, (1, 24, V)."""
    ids = torch.randint(6, 200, (1, 24), generator=torch.Generator().manual_seed(seed))
    return model.eval()(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]
