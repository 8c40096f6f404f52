"""The chat, driven line by line without a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from finetune.serving.assistant import Assistant
from finetune.serving.settings import SamplingSettings
from finetune.terminal.chat import Chat
from tests.conftest import MakeBase
from tests.serving.test_assistant import store

__all__ = ["store"]


@pytest.fixture
def chat(make_base: MakeBase, store: Path) -> Chat:
    console = Console(file=io.StringIO(), width=200)
    settings = SamplingSettings(max_new_tokens=8)
    return Chat(Assistant(make_base(), ["first"], store=store), console, adapter="first", settings=settings, seed=0)


def said(chat: Chat, line: str) -> str:
    file = chat.console.file
    assert isinstance(file, io.StringIO)
    start = len(file.getvalue())
    assert chat.handle(line)
    return file.getvalue()[start:]


def test_a_conversation_grows_and_resets(chat: Chat) -> None:
    said(chat, "Hello there!")
    said(chat, "How much is it?")
    assert [turn.role for turn in chat.turns] == ["user", "assistant", "user", "assistant"]
    said(chat, "/reset")
    assert chat.turns == []


def test_adapters_are_listed_and_swapped_with_the_base_kept(chat: Chat) -> None:
    model = chat.bot.base.model
    listing = said(chat, "/adapters")
    assert "first" in listing
    assert "second.v2" in listing
    with_first = said(chat, "How much?")
    said(chat, "/reset")
    assert "second.v2" in said(chat, "/adapter second.v2")
    assert said(chat, "How much?") != with_first
    said(chat, "/reset")
    said(chat, "/adapter first")
    assert said(chat, "How much?") == with_first
    said(chat, "/base")
    assert chat.adapter is None
    assert chat.bot.base.model is model


def test_settings_change_and_bad_ones_are_refused(chat: Chat) -> None:
    said(chat, "/temperature 0.7")
    said(chat, "/stop please")
    said(chat, "/seed 5")
    assert (chat.settings.temperature, chat.settings.stop, chat.seed) == (0.7, ("please",), 5)
    assert "greater than or equal to 0" in said(chat, "/temperature -1")
    assert "valid number" in said(chat, "/top_p many")
    assert "whole number" in said(chat, "/seed x")
    assert chat.settings.temperature == 0.7


def test_mistakes_are_messages_and_quit_ends(chat: Chat) -> None:
    assert "unknown command /nonsense" in said(chat, "/nonsense")
    assert "no adapter 'missing'" in said(chat, "/adapter missing")
    assert "/temperature" in said(chat, "/help")
    said(chat, "/system Be grumpy.")
    assert chat.system == "Be grumpy."
    assert not chat.handle("/quit")
