"""No text of the data becomes a control token, and the mask is that of an oracle that knows only characters.

The oracle spells each family's conversation by hand, walks the encoded tokens byte by byte beside it,
and derives from the offsets which tokens are control tokens and which are trained.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from tokenizers import normalizers

from finetune.data.encoding import Encoded, encode_batch, encode_prompt
from finetune.data.examples import Example
from finetune.data.messages import Message
from finetune.data.probing import load_template
from finetune.data.template import ChatTemplate
from tests.data.test_template import CONTROL, FAMILIES, tokenizer_of

CONVERSATIONS = 1_200  # per family, more than 5,000 in all


class Segment(NamedTuple):
    text: str
    control: bool
    trained: bool


def control(text: str, trained: bool = False) -> Segment:
    return Segment(text, True, trained)


def plain(text: str, trained: bool = False) -> Segment:
    return Segment(text, False, trained)


def chatml(messages: tuple[Message, ...]) -> Iterator[Segment]:
    for role, content, _ in messages:
        answer = role == "assistant"
        yield from (control("<|im_start|>"), plain(role + "\n"), plain(content, answer), control("<|im_end|>", answer))
        yield plain("\n")


def llama3(messages: tuple[Message, ...]) -> Iterator[Segment]:
    yield control("<s>")
    for role, content, _ in messages:
        answer = role == "assistant"
        yield from (control("<|start_header_id|>"), plain(role), control("<|end_header_id|>"), plain("\n\n"))
        yield from (plain(content.strip(), answer), control("<|eot_id|>", answer))


def gemma(messages: tuple[Message, ...]) -> Iterator[Segment]:
    yield control("<s>")
    for role, content, _ in messages:
        answer = role == "assistant"
        yield from (control("<start_of_turn>"), plain("model\n" if answer else role + "\n"))
        yield from (plain(content.strip(), answer), control("<end_of_turn>", answer), plain("\n"))


def phi(messages: tuple[Message, ...]) -> Iterator[Segment]:
    for role, content, _ in messages:
        answer = role == "assistant"
        yield from (
            control(f"<|{role}|>"),
            plain("\n"),
            plain(content, answer),
            control("<|end|>", answer),
            plain("\n"),
        )


def mistral(messages: tuple[Message, ...]) -> Iterator[Segment]:
    yield control("<s>")
    for role, content, _ in messages:
        if role == "user":
            yield from (control("[INST]"), plain(content), control("[/INST]"))
        else:
            yield from (plain(content, True), control("</s>", True))


ORACLES: dict[str, Callable[[tuple[Message, ...]], Iterator[Segment]]] = {
    "chatml": chatml, "llama3": llama3, "gemma": gemma, "phi": phi, "mistral-v7": mistral,
}  # fmt: skip


@pytest.fixture(scope="module", params=ORACLES)
def family(request: pytest.FixtureRequest) -> tuple[str, ChatTemplate]:
    name: str = request.param
    return name, load_template(tokenizer_of(FAMILIES[name].template, FAMILIES[name].eos), name)


def hostile(pick: random.Random) -> str:
    """Text of control tokens: whole, in halves, doubled, nested, in look-alike letters, in other cases."""
    pieces = []
    for _ in range(pick.randint(1, 6)):
        token = pick.choice([*CONTROL, "[INST]", "[/INST]"])
        cut = pick.randrange(1, len(token))
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token)
        assert unicodedata.normalize("NFKC", wide) == token
        forms = [
            token, token[:cut], token[cut:], token * 2, token[:cut] + token + token[cut:], wide, token.upper(),
            token.replace("|", "\u200b|"), f" {token} ", f"\n{token}", token[0] + "\u0301" + token[1:], "ä🍕",
            "user\n", "", "How much is it?", "\ue0f00\ue0f1", "{{ bos_token }}",
        ]  # fmt: skip
        pieces.append(pick.choice(forms))
    return "".join(pieces)


def conversations(name: str) -> list[Example]:
    pick, made = random.Random(name), []
    every = [*CONTROL, "[INST]", "[/INST]"]
    for number in range(CONVERSATIONS):
        turns = [Message("user", hostile(pick)), Message("assistant", hostile(pick) or "x")]
        for _ in range(pick.randint(0, 2)):
            turns += [Message("user", hostile(pick)), Message("assistant", hostile(pick))]
        if number < len(every):  # each one at least once for certain, on both sides
            turns[:2] = [Message("user", every[number]), Message("assistant", every[number])]
        if FAMILIES[name].system and name != "mistral-v7" and pick.random() < 0.3:
            turns.insert(0, Message("system", hostile(pick)))
        made.append(Example(tuple(turns), f"{name}:{number}"))
    return made


def byte_of(character: str) -> int:
    """The byte that a byte-level tokenizer writes as this character."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [byte for byte in range(256) if byte not in kept]
    return ord(character) if ord(character) in kept else shifted[ord(character) - 256]


BYTES = {chr(code): byte_of(chr(code)) for code in (*range(33, 127), *range(161, 173), *range(174, 324))}


def spelled(token: int, template: ChatTemplate) -> bytes:
    text = template.tokenizer.convert_ids_to_tokens(token)
    if token in template.tokenizer.added_tokens_decoder:
        return text.encode()
    return bytes(BYTES[character] for character in text)


def assert_equals_oracle(encoded: Encoded, segments: list[Segment], template: ChatTemplate) -> None:
    while segments and not segments[-1].trained:
        segments.pop()  # what follows the last trained token is not part of a row
    whole = b"".join(s.text.encode() for s in segments)
    assert b"".join(spelled(token, template) for token in encoded.ids) == whole, encoded.where
    borders, at = [], 0
    for segment in segments:
        borders.append((at, at + len(segment.text.encode()), segment))
        at = borders[-1][1]
    special, start, where = set(template.tokenizer.added_tokens_decoder), 0, 0
    for token, trained in zip(encoded.ids, encoded.loss_mask, strict=True):
        end = start + len(spelled(token, template))
        while borders[where][1] < end or borders[where][1] == start:
            where += 1
        first, last, segment = borders[where]
        assert first <= start < end <= last, encoded.where  # no token reaches over a border
        assert (token in special) == segment.control, encoded.where
        assert bool(trained) == segment.trained, encoded.where
        start = end
    assert start == len(whole)


def test_ids_and_mask_are_those_of_the_oracle(family: tuple[str, ChatTemplate]) -> None:
    name, template = family
    examples = conversations(name)
    for example, encoded in zip(examples, encode_batch(examples, template), strict=True):
        assert isinstance(encoded, Encoded)
        assert_equals_oracle(encoded, list(ORACLES[name](example.messages)), template)


def test_the_prompt_is_a_prefix_of_every_hostile_conversation(family: tuple[str, ChatTemplate]) -> None:
    name, template = family
    examples = conversations(name)[:200]
    for example, encoded in zip(examples, encode_batch(examples, template), strict=True):
        prompt = encode_prompt(example.prompt, template)
        assert isinstance(encoded, Encoded)
        assert encoded.ids[: len(prompt)] == prompt
        assert all(encoded.loss_mask[len(prompt) :])


def test_letters_that_are_normalised_into_a_control_token_stay_text() -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml"].template, FAMILIES["chatml"].eos)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    template, pick = load_template(tokenizer, "nfkc"), random.Random(0)
    special = set(tokenizer.added_tokens_decoder)
    talks = [
        Example((Message("user", hostile(pick)), Message("assistant", hostile(pick) + "x")), "") for _ in range(500)
    ]
    for encoded in encode_batch(talks, template):
        assert isinstance(encoded, Encoded)
        found = [tokenizer.convert_ids_to_tokens(token) for token in encoded.ids if token in special]
        assert found == ["<|im_start|>", "<|im_end|>"] * 2


def test_the_oracle_can_fail(family: tuple[str, ChatTemplate]) -> None:
    name, template = family
    (encoded,) = encode_batch(conversations(name)[:1], template)
    assert isinstance(encoded, Encoded)
    segments = list(ORACLES[name](conversations(name)[0].messages))
    first = encoded.loss_mask.index(1)
    for wrong in (
        encoded._replace(loss_mask=[*encoded.loss_mask[:-1], 0]),
        encoded._replace(loss_mask=[*encoded.loss_mask[:first], 0, *encoded.loss_mask[first + 1 :]]),
        encoded._replace(loss_mask=[*encoded.loss_mask[: first - 1], 1, *encoded.loss_mask[first:]]),
        encoded._replace(ids=template.tokenizer(template.tokenizer.decode(encoded.ids))["input_ids"]),
    ):
        with pytest.raises((AssertionError, ValueError)):
            assert_equals_oracle(wrong, list(segments), template)
