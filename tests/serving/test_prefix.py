"""The prefix cache: the same text with and without it, and never another adapter's keys and values."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from finetune.model.base import Base, load_base
from finetune.recipe import BaseSection
from finetune.serving.bank import AdapterBank
from finetune.serving.engine import Engine
from finetune.serving.limits import EngineLimits
from finetune.serving.prefix import BLOCK, PrefixCache
from finetune.serving.requests import Finish, Request
from finetune.serving.settings import SamplingSettings
from tests.serving.making import write_adapter

SYSTEM = tuple((13 * n) % 370 + 6 for n in range(50))
GREEDY = SamplingSettings(max_new_tokens=12)
WITHOUT = EngineLimits(prefix_bytes=0)


@pytest.fixture(scope="module")
def base(model_folder: Path) -> Base:
    return load_base(BaseSection(model=str(model_folder), quantization="none", dtype="float32"), torch.device("cpu"))


@pytest.fixture
def bank(base: Base, tmp_path: Path) -> AdapterBank:
    bank = AdapterBank(base, store=tmp_path)
    for seed, name in enumerate(("a", "b"), 1):
        write_adapter(tmp_path / name, base, seed, size=0.1)
        bank.load(name)
    return bank


def answers(engine: Engine, voice: str | None, *prompts: tuple[int, ...]) -> list[Finish]:
    return [engine.run([Request(prompt, voice, GREEDY)])[0] for prompt in prompts]


def texts(finishes: list[Finish]) -> list[str]:
    return [finish.text for finish in finishes]


def test_shared_beginnings_are_computed_once_and_change_nothing(base: Base, bank: AdapterBank) -> None:
    prompts = [(*SYSTEM, 7, 8, n) for n in range(20, 26)]
    engine = Engine(base, bank)
    for voice in ("a", None, "a+0.5*b"):
        found = answers(engine, voice, *prompts)
        assert texts(found) == texts(answers(Engine(base, bank, WITHOUT), voice, *prompts))
        assert [finish.cached_tokens for finish in found] == [0] + [48] * 5  # whole blocks of 16
        assert len(set(texts(found))) > 1
    assert engine.stats.cached_tokens == 3 * 5 * 48


def test_a_conversation_that_goes_on_is_not_computed_again(base: Base, bank: AdapterBank) -> None:
    engine, seen = Engine(base, bank), list[int]()
    prompt = SYSTEM
    for turn in range(4):
        ticket = engine.submit(Request(prompt, "b", GREEDY, logprobs=0))
        while ticket.end is None:
            engine._turn()
        assert isinstance(ticket.end, Finish)
        (plain,) = answers(Engine(base, bank, WITHOUT), "b", prompt)
        assert ticket.end.text == plain.text
        seen.append(ticket.end.cached_tokens)
        said = [token.id for event in ticket.events() for token in getattr(event, "tokens", ())]
        prompt = (*prompt, *said, 9, 10, 11 + turn)
    assert seen[0] == 0
    assert all(later >= earlier + 8 for earlier, later in itertools.pairwise(seen)), seen


def test_a_prompt_that_is_known_as_a_whole_still_gets_its_first_token(base: Base, bank: AdapterBank) -> None:
    engine, prompt = Engine(base, bank), SYSTEM[: 3 * BLOCK]
    first, second = answers(engine, None, prompt, prompt)
    assert (first.text, first.cached_tokens, second.cached_tokens) == (second.text, 0, 2 * BLOCK)


@pytest.mark.parametrize("reloads", [6, pytest.param(500, marks=pytest.mark.slow)])
def test_the_same_name_with_new_weights_never_uses_the_old_ones(
    base: Base, bank: AdapterBank, tmp_path: Path, reloads: int
) -> None:
    engine, prompt, given = Engine(base, bank), (*SYSTEM, 7, 8), set[str]()
    for version in range(reloads):
        write_adapter(tmp_path / "a", base, 10 + version, size=0.1)
        bank.load("a")
        twice = answers(engine, "a", prompt, prompt)
        assert [finish.cached_tokens for finish in twice] == [0, 48]
        assert texts(twice) == texts(answers(Engine(base, bank, WITHOUT), "a", prompt)) * 2
        given.add(twice[0].text)
    assert len(given) > 0.9 * reloads
    before = write_adapter(tmp_path / "a", base, 10 + reloads - 1, size=0.1)
    bank.load(before)
    assert answers(engine, "a", prompt)[0].cached_tokens == 48  # the same content is known again


def test_voices_have_their_own(base: Base, bank: AdapterBank) -> None:
    engine = Engine(base, bank)
    assert [answers(engine, voice, SYSTEM)[0].cached_tokens for voice in (None, "a", "b", "a+b", "a", "a+b")] == [
        *[0] * 4,
        48,
        48,
    ]


def blocks(count: int) -> torch.Tensor:
    return torch.arange(count * BLOCK, dtype=torch.float32).reshape(1, 1, -1, 1)


def put(cache: PrefixCache, tokens: list[int], digest: str = "x") -> None:
    states = blocks(len(tokens) // BLOCK)
    cache.put(digest, tokens, lambda start, stop: (states[:, :, start:stop], -states[:, :, start:stop]))


def found(cache: PrefixCache, tokens: list[int], digest: str = "x") -> int:
    known = cache.find(digest, [*tokens, 0])
    if known is None:
        return 0
    keys, values = known.states()
    assert torch.equal(keys, blocks(known.tokens // BLOCK))
    assert torch.equal(values, -keys)
    return known.tokens


def test_its_size_is_bounded_and_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(6 * BLOCK * 8)  # six blocks of 16 tokens with 8 bytes each
    one, two, three = ([start + n for n in range(3 * BLOCK)] for start in (0, 1000, 2000))
    put(cache, one)
    put(cache, two)
    assert (found(cache, one), found(cache, two), cache.bytes) == (48, 48, 6 * BLOCK * 8)
    assert found(cache, one[:BLOCK]) == BLOCK  # used now, but the rest of it was not
    put(cache, three[: 2 * BLOCK])
    assert cache.bytes <= 6 * BLOCK * 8
    assert found(cache, three[: 2 * BLOCK]) == 32
    assert found(cache, one) == BLOCK  # the end of a chain goes before its start
    assert found(cache, two) == 48
    put(cache, [5] * 100 * BLOCK)  # larger than everything
    assert cache.bytes <= 6 * BLOCK * 8
    cache.clear()
    assert (found(cache, two), cache.tokens) == (0, 0)


def test_every_token_and_the_digest_count() -> None:
    cache = PrefixCache(1 << 20)
    tokens = list(range(4 * BLOCK))
    put(cache, tokens)
    assert found(cache, tokens) == 64
    assert found(cache, tokens, "y") == 0
    for place in (0, 17, 40, 63):
        other = [*tokens[:place], -1, *tokens[place + 1 :]]
        assert found(cache, other) == place // BLOCK * BLOCK
