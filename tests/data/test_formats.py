"""Each format: what a row becomes, and what is said about a row that does not fit."""

from __future__ import annotations

from typing import get_args

import pytest

from finetune.data.formats import FORMATS, Message, Row, RowError, check_roles
from finetune.recipe.schema import Format

ASK, ANSWER = Message("user", "How much?"), Message("assistant", "5 dollars.")
BRIEF = Message("system", "Be brief.")


def turns(*roles: str) -> Row:
    return {"messages": [{"role": role, "content": f"{role} says"} for role in roles]}


def test_the_recipe_offers_exactly_these_formats() -> None:
    assert set(FORMATS) == set(get_args(Format))


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("instruction", {"instruction": "How much?", "output": "5 dollars."}, (ASK, ANSWER)),
        ("instruction", {"instruction": "How much?", "output": "5 dollars.", "input": "", "id": 3}, (ASK, ANSWER)),
        (
            "instruction",
            {"instruction": "How much?", "output": "5 dollars.", "system": "Be brief."},
            (BRIEF, ASK, ANSWER),
        ),
        ("instruction", {"instruction": "How much?", "output": "5 dollars.", "system": None}, (ASK, ANSWER)),
        ("alpaca", {"instruction": "How much?", "output": "5 dollars."}, (ASK, ANSWER)),
        ("alpaca", {"instruction": "How much?", "input": None, "output": "5 dollars."}, (ASK, ANSWER)),
        (
            "alpaca",
            {"instruction": "Sum up.", "input": "A long text.", "output": "Text.", "system": "Be brief."},
            (BRIEF, Message("user", "Sum up.\n\nA long text."), Message("assistant", "Text.")),
        ),
        ("prompt_completion", {"prompt": "How much?", "completion": "5 dollars."}, (ASK, ANSWER)),
        (
            "messages",
            {"messages": [BRIEF._asdict(), ASK._asdict(), {**ANSWER._asdict(), "name": "bot"}]},
            (BRIEF, ASK, ANSWER),
        ),
    ],
)
def test_a_row_becomes_messages(name: str, row: Row, expected: tuple[Message, ...]) -> None:
    assert FORMATS[name].build(row) == expected


def test_text_is_kept_to_the_letter() -> None:
    text = "  \ttwo\r\n lines 🍕 \u2028 "
    assert FORMATS["instruction"].build({"instruction": text, "output": text})[0].content == text


def test_all_turns_of_a_long_conversation_are_kept() -> None:
    built = FORMATS["messages"].build(turns("system", "user", "assistant", "user", "assistant"))
    assert [message.role for message in built] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("instruction", {"instruction": "a", "output": " \n"}, "'output' is empty: nothing to train"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "'completion' is empty"),
        ("instruction", {"instruction": 5, "output": "a"}, "'instruction' is int 5, not text"),
        ("instruction", {"instruction": None, "output": "a"}, "'instruction' is NoneType None"),
        ("instruction", {"instruction": "a", "output": ["b"]}, "'output' is list"),
        ("instruction", {"instruction": "a", "output": "b", "system": 1}, "'system' is int"),
        ("alpaca", {"instruction": "a", "output": "b", "input": 7}, "'input' is int 7"),
        ("instruction", {"instruction": "a", "output": "b", "input": "c"}, "would leave out; use format 'alpaca'"),
        (
            "instruction",
            {"instruction": "a\ud800", "output": "b"},
            "'instruction' has half of a UTF-16 pair at character 1",
        ),
        ("messages", {"messages": [{"role": "user", "content": "\udfff"}]}, "turn 1: 'content' has half of a UTF-16"),
        ("messages", {"messages": "hello"}, "'messages' is no list of turns"),
        ("messages", {"messages": []}, "'messages' is no list of turns"),
        ("messages", {"messages": ["hello"]}, "turn 1 has no 'role' and 'content'"),
        ("messages", {"messages": [{"role": "user"}]}, "turn 1 has no 'role' and 'content'"),
        (
            "messages",
            {"messages": [{"role": "human", "content": "a"}]},
            "turn 1 has role 'human', expected one of system",
        ),
        ("messages", {"messages": [{"role": ["user"], "content": "a"}]}, "turn 1 has role"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
            "turn 1: 'content' is list, not text",
        ),
        ("messages", turns("user", "assistant", "user"), "ends with role 'user'"),
        ("messages", turns("system"), "ends with role 'system'"),
        ("messages", turns("assistant"), "turn 1 has role 'assistant', expected 'user'"),
        ("messages", turns("system", "assistant"), "turn 2 has role 'assistant', expected 'user'"),
        ("messages", turns("user", "user", "assistant"), "turn 2 has role 'user', expected 'assistant'"),
        ("messages", turns("user", "assistant", "system", "assistant"), "turn 3 has role 'system', expected 'user'"),
        ("messages", turns("user", "assistant", "assistant"), "turn 3 has role 'assistant', expected 'user'"),
        (
            "messages",
            {"messages": [ASK._asdict(), {"role": "assistant", "content": " "}, ASK._asdict(), ANSWER._asdict()]},
            "an assistant turn is empty",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_explained(name: str, row: Row, reason: str) -> None:
    with pytest.raises(RowError) as error:
        FORMATS[name].build(row)
    assert reason in str(error.value)


def test_a_long_wrong_value_is_shown_in_part() -> None:
    with pytest.raises(RowError) as error:
        FORMATS["instruction"].build({"instruction": list(range(9999)), "output": "a"})
    assert len(str(error.value)) < 200


def test_roles_of_prompts_may_end_with_the_user() -> None:
    check_roles((BRIEF, ASK))
    check_roles((ASK, ANSWER, ASK))
