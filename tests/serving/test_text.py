"""Text of a growing answer: piece by piece the same as all at once, whatever the tokenizer."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerFast

from finetune.serving.text import WINDOW, AnswerReader, RunningText


@pytest.mark.parametrize("kind", ["bytelevel", "fallback", "words"])
@pytest.mark.parametrize("stop", [(), ("th", "cat s")])
def test_pieces_are_what_the_whole_text_begins_with(
    kind: str, stop: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(kind)
    rng, longest = random.Random(0), 0
    for trial in range(15):
        last = range(len(tokenizer) - 4, len(tokenizer))  # of the tokenizer with bytes: those that are none
        common = [*last, *(rng.randrange(len(tokenizer)) for _ in range(4))]
        reader = AnswerReader(tokenizer, stop)
        running, ids, sent = RunningText(reader), list[int](), ""
        for _ in range(150):
            ids.append(rng.choice(common) if rng.random() < 1 - 0.02 * trial else rng.randrange(len(tokenizer)))
            if len(settled := reader.settled(ids)) > len(sent) and settled.startswith(sent):
                sent = settled
            running.more(ids)
            assert running.sent == sent
        longest = max(longest, len(sent))
    assert longest > 4 * WINDOW


def test_a_long_answer_costs_no_more_per_token_than_a_short_one(bytelevel: PreTrainedTokenizerFast) -> None:
    reader = AnswerReader(bytelevel, ())
    ids = bytelevel.encode("the cat sat on the mat, the cat said hello 😀 naïve 你好 " * 20, add_special_tokens=False)
    plain, sizes = reader.decode, list[int]()

    def counted(tokens: list[int]) -> str:
        sizes.append(len(tokens))
        return plain(tokens)

    reader.decode = counted  # type: ignore[method-assign, assignment]
    running = RunningText(reader)
    pieces = [running.more(ids[: end + 1]) for end in range(len(ids))]
    assert "".join(pieces) + running.rest(plain(ids)) == plain(ids)
    assert len(ids) > 5 * WINDOW
    assert max(sizes) <= 2 * WINDOW
