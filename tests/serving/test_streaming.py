"""Text of answers and streams: whole characters, no stop string, pieces that add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.serving.generation import generate, stream
from finetune.serving.settings import SamplingSettings

Script = Callable[[Sequence[int], int], PreTrainedModel]
Constant = Callable[[Tensor], PreTrainedModel]


def spelled(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    return ids


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ((" sat on",), "the cat"),
        (("t on the m",), "the cat sa"),
        (("hello", "mat"), "the cat sat on the "),
        (("mat", "on the"), "the cat sat "),
        (("the",), ""),
        (("😀",), "the cat sat on the mat "),
        (("nothing",), "the cat sat on the mat 😀 x"),
    ],
)
def test_stop_strings_across_tokens(
    bytelevel: PreTrainedTokenizerFast, script: Script, stop: tuple[str, ...], text: str
) -> None:
    ids = spelled(bytelevel, "the cat sat on the mat 😀 x")
    ids[3:3] = [bytelevel.eos_token_id] * 20  # not shown, so they must not hide a stop string either
    model = script(ids, len(bytelevel))
    settings = SamplingSettings(max_new_tokens=len(ids), stop=stop)
    answer = generate(model, bytelevel, [[1]], stop_ids=(), settings=settings, seed=0)[0]
    assert (answer.text, answer.stopped) == (text, stop != ("nothing",))
    pieces = list(stream(model, bytelevel, [1], stop_ids=(), settings=settings, seed=0))
    assert "".join(pieces) == text
    if answer.stopped:
        assert answer.tokens < len(ids)


def test_special_tokens_are_not_text(bytelevel: PreTrainedTokenizerFast, script: Script) -> None:
    ids = [bytelevel.eos_token_id, *spelled(bytelevel, " the"), bytelevel.eos_token_id, *spelled(bytelevel, " cat")]
    settings = SamplingSettings(max_new_tokens=len(ids))
    answer = generate(script(ids, len(bytelevel)), bytelevel, [[1]], stop_ids=(), settings=settings, seed=0)[0]
    assert answer == (" the cat", False, len(ids))


def test_stream_gives_whole_characters(bytelevel: PreTrainedTokenizerFast, script: Script) -> None:
    text = "é 你 🙂 the 👩‍👩‍👧 mat"
    ids = spelled(bytelevel, text)
    settings = SamplingSettings(max_new_tokens=len(ids))
    model = script(ids, len(bytelevel))
    pieces = list(stream(model, bytelevel, [1], stop_ids=(), settings=settings, seed=0))
    assert "".join(pieces) == text
    assert len(pieces) > 8
    assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_a_character_cut_by_the_limit_is_left_out(bytelevel: PreTrainedTokenizerFast, script: Script) -> None:
    ids = spelled(bytelevel, "the🙂")
    settings = SamplingSettings(max_new_tokens=len(ids) - 1)
    model = script(ids, len(bytelevel))
    assert generate(model, bytelevel, [[1]], stop_ids=(), settings=settings, seed=0)[0].text == "the"
    assert "".join(stream(model, bytelevel, [1], stop_ids=(), settings=settings, seed=0)) == "the"


def test_stream_with_byte_fallback(fallback: PreTrainedTokenizerFast, script: Script) -> None:
    good = [1 + byte for byte in "你好".encode()]
    broken = [1 + byte for byte in "你".encode() + b"\xe5"]
    for ids, text in [
        ([258, *good, 260, 259], "a你好 catb"),
        ([258, *broken, 260, 259], "a\ufffd\ufffd\ufffd\ufffd catb"),  # the last byte spoils the whole run
    ]:
        settings = SamplingSettings(max_new_tokens=len(ids))
        model = script(ids, 261)
        assert generate(model, fallback, [[1]], stop_ids=(), settings=settings, seed=0)[0].text == text
        assert "".join(stream(model, fallback, [1], stop_ids=(), settings=settings, seed=0)) == text


@pytest.mark.parametrize("stop", [(), ("e", " t"), ("the cat", "😀")])
def test_stream_adds_up_to_generate(
    bytelevel: PreTrainedTokenizerFast, constant: Constant, stop: tuple[str, ...]
) -> None:
    likely = set(spelled(bytelevel, "the cat 😀 你好 naïve")) | {bytelevel.eos_token_id}
    logits = torch.full((len(bytelevel),), -3.0)
    logits[list(likely)] = 2.0
    model = constant(logits)
    settings = SamplingSettings(temperature=1.0, max_new_tokens=30, stop=stop)
    texts = set()
    for seed in range(40):
        answer = generate(model, bytelevel, [[1, 2]], stop_ids=(), settings=settings, seed=seed)[0]
        pieces = list(stream(model, bytelevel, [1, 2], stop_ids=(), settings=settings, seed=seed))
        assert "".join(pieces) == answer.text
        assert all(pieces)
        assert not any(text in answer.text for text in stop)
        texts.add(answer.text)
    assert len(texts) > 10
