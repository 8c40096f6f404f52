"""One base, several adapters: swapping is exact, reversible and leaves the base alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.messages import Message
from finetune.errors import AdapterError
from finetune.model.base import Base, weights_sha256
from finetune.model.lora import attach
from finetune.recipe import AdapterSection, GenerationSection
from finetune.serving.assistant import Assistant
from finetune.store.folders import CARD, BaseCard, Card
from tests.conftest import MakeBase
from tests.test_invariants import stir

SETTINGS = GenerationSection(max_new_tokens=12)
QUESTION = "How much is it?"


@pytest.fixture
def store(make_base: MakeBase, tmp_path: Path) -> Path:
    """Two adapters, one with a system prompt of its own and a name with a dot."""
    for seed, name, system in ((1, "first", None), (2, "second.v2", "Be short.")):
        base = make_base()
        model = attach(base, AdapterSection(r=4, alpha=64.0), seed=0)
        stir(model, seed)
        model.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
        (tmp_path / name / CARD).write_text(_card(name, base, system).model_dump_json())
    return tmp_path


def _card(name: str, base: Base, system: str | None) -> Card:
    return Card(
        name=name,
        base=BaseCard(model=base.name, quantization="nf4", fingerprint=base.fingerprint),
        system=system,
        method="lora",
        r=4,
        alpha=64.0,
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


def test_swapping_there_and_back_gives_the_same_answers_and_the_base_never_changes(
    make_base: MakeBase, store: Path
) -> None:
    base = make_base()
    before = weights_sha256(base.model)
    alone = Assistant(base).chat(QUESTION, settings=SETTINGS)
    bot = Assistant(base, ["first", "second.v2"], store=store)
    first = bot.chat(QUESTION, "first", SETTINGS)
    second = bot.chat(QUESTION, "second.v2", SETTINGS)
    assert len({alone, first, second}) == 3
    assert bot.chat(QUESTION, "first", SETTINGS) == first
    assert bot.chat(QUESTION, None, SETTINGS) == alone
    assert weights_sha256(base.model) == before
    assert not any(p.requires_grad for p in base.model.parameters())


def test_an_adapter_answers_the_same_whatever_else_is_loaded(make_base: MakeBase, store: Path) -> None:
    both = Assistant(make_base(), ["first", "second.v2"], store=store)
    only = Assistant(make_base(), ["second.v2"], store=store)
    assert both.chat(QUESTION, "second.v2", SETTINGS) == only.chat(QUESTION, "second.v2", SETTINGS)


def test_the_system_prompt_of_training_is_used_unless_another_is_given(make_base: MakeBase, store: Path) -> None:
    bot = Assistant(make_base(), ["second.v2"], store=store)
    user = Message("user", QUESTION)
    implied = bot.chat([user], "second.v2", SETTINGS)
    assert implied == bot.chat([Message("system", "Be short."), user], "second.v2", SETTINGS)
    assert implied != bot.chat([Message("system", "Two large pizzas?"), user], "second.v2", SETTINGS)


def test_streamed_pieces_add_up(make_base: MakeBase, store: Path) -> None:
    bot = Assistant(make_base(), ["first"], store=store)
    pieces = list(bot.stream([Message("user", QUESTION)], "first", SETTINGS))
    assert "".join(pieces) == bot.chat(QUESTION, "first", SETTINGS)


def test_what_is_not_there_is_named(make_base: MakeBase, store: Path) -> None:
    bot = Assistant(make_base(), ["first"], store=store)
    with pytest.raises(AdapterError, match=r"'second\.v2' is not loaded \(loaded: first\)"):
        bot.chat(QUESTION, "second.v2")
    with pytest.raises(AdapterError, match=r"no adapter 'third'; there are first, second\.v2"):
        bot.load("third")


def test_an_adapter_of_another_base_is_refused_and_nothing_changes(make_base: MakeBase, store: Path) -> None:
    base = make_base()
    bot = Assistant(base, ["first"], store=store)
    answer = bot.chat(QUESTION, "first", SETTINGS)
    card = Card.model_validate_json((store / "second.v2" / CARD).read_text())
    wrong = card.model_copy(update={"base": card.base.model_copy(update={"fingerprint": {"weights": "0" * 64}})})
    (store / "second.v2" / CARD).write_text(wrong.model_dump_json())
    with pytest.raises(AdapterError, match=r"was trained on base .* they differ in weights"):
        bot.load("second.v2")
    assert list(bot.loaded) == ["first"]
    assert bot.chat(QUESTION, "first", SETTINGS) == answer
