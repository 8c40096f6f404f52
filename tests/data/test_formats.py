"""Each format: what a row becomes, and what is said about a row that does not fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.data.formats import FORMATS, Row, build, custom_file, fitting
from finetune.data.messages import Message, RowError, Talk, check_roles
from finetune.errors import DataError
from finetune.recipe.schema import FORMAT_COLUMNS

ASK, ANSWER = Message("user", "How much?"), Message("assistant", "5 dollars.")
BRIEF = Message("system", "Be brief.")


def part(text: str) -> Row:
    return {"type": "text", "text": text}


def turns(*roles: str) -> Row:
    return {"messages": [{"role": role, "content": f"{role} says"} for role in roles]}


def test_the_recipe_offers_exactly_these_formats() -> None:
    assert set(FORMATS) == set(FORMAT_COLUMNS)
    for name, spec in FORMATS.items():
        assert set(spec.keys) <= set(FORMAT_COLUMNS[name])


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
        ("question_answer", {"question": "How much?", "answer": "5 dollars."}, (ASK, ANSWER)),
        (
            "question_answer",
            {"question": "How much?", "answer": "5 dollars.", "context": "A menu.", "system": "Be brief."},
            (BRIEF, Message("user", "A menu.\n\nHow much?"), ANSWER),
        ),
        ("text", {"text": " Once upon a time.\n"}, (Message("text", " Once upon a time.\n"),)),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "How much?"}, {"from": "gpt", "value": "5 dollars."}]},
            (ASK, ANSWER),
        ),
        (
            "sharegpt",
            {
                "conversations": [{"from": "user", "value": "How much?"}, {"from": "assistant", "value": "5 dollars."}],
                "system": "Be brief.",
            },
            (BRIEF, ASK, ANSWER),
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "much?"}]},
                    ANSWER._asdict(),
                ]
            },
            (ASK, ANSWER),
        ),
        (
            "messages",
            {"messages": [BRIEF._asdict(), ASK._asdict(), {**ANSWER._asdict(), "name": "bot"}]},
            (BRIEF, ASK, ANSWER),
        ),
    ],
)
def test_a_row_becomes_messages(name: str, row: Row, expected: tuple[Message, ...]) -> None:
    assert build(row, name, {}) == Talk(expected)


def test_text_is_kept_to_the_letter() -> None:
    text = "  \ttwo\r\n lines 🍕 \u2028 "
    assert build({"instruction": text, "output": text}, "instruction", {}).messages[0].content == text


def test_all_turns_of_a_long_conversation_are_kept() -> None:
    built = build(turns("system", "user", "assistant", "user", "assistant"), "messages", {})
    assert [message.role for message in built.messages] == ["system", "user", "assistant", "user", "assistant"]


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
            "turn 1: 'content' has parts that are not text",
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
        build(row, name, {})
    assert reason in str(error.value)


def test_a_long_wrong_value_is_shown_in_part() -> None:
    with pytest.raises(RowError) as error:
        build({"instruction": list(range(9999)), "output": "a"}, "instruction", {})
    assert len(str(error.value)) < 200


def test_roles_of_prompts_may_end_with_the_user() -> None:
    check_roles((BRIEF, ASK))
    check_roles((ASK, ANSWER, ASK))


CALL = {"id": "call_1", "type": "function", "function": {"name": "price", "arguments": {"item": "cola", "count": 2}}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "5 dollars"}


def calling(*turns: object, **row: object) -> Row:
    return {"messages": [ASK._asdict(), *turns], **row}


def asking(call: object) -> Row:
    return {"role": "assistant", "tool_calls": [call]}


def test_tool_calls_and_their_results_are_kept() -> None:
    row = calling(
        {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT, ANSWER._asdict(), tools=[{"a": 1}]
    )
    talk = build(row, "messages", {})
    assert [m.role for m in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(talk.messages[1].extra) == {"tool_calls": [CALL]}
    assert json.loads(talk.messages[2].extra) == {"tool_call_id": "call_1"}
    assert (talk.messages[1].content, talk.tools) == ("", '[{"a": 1}]')


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "price", "arguments": '{"item": "cola"}'}},
        {"name": "price", "arguments": {"item": "cola"}},
        '{"name": "price", "arguments": {"item": "cola"}}',
    ],
)
def test_tool_calls_are_understood_in_every_spelling(call: object) -> None:
    calls = f"[{call}]" if isinstance(call, str) else [call]
    talk = build(calling({"role": "assistant", "tool_calls": calls}, RESULT, ANSWER._asdict()), "messages", {})
    (made,) = json.loads(talk.messages[1].extra)["tool_calls"]
    assert made == {"type": "function", "function": {"name": "price", "arguments": {"item": "cola"}}}


def test_sharegpt_calls_functions_and_observes() -> None:
    turns = [
        ("human", "How much?"),
        ("function_call", '{"name": "price", "arguments": {}}'),
        ("observation", "5"),
        ("gpt", "5."),
    ]
    row = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], "tools": "[]"}
    talk = build(row, "sharegpt", {})
    assert [m.role for m in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(talk.messages[1].extra)["tool_calls"][0]["function"]["name"] == "price"
    assert talk.tools == ""


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (calling(asking(CALL), ASK._asdict(), ANSWER._asdict()), "expected 'tool'"),
        (calling(ANSWER._asdict(), RESULT, ANSWER._asdict()), "turn 3 has role 'tool', expected 'user'"),
        (calling({"role": "assistant", "tool_calls": "nothing"}), "'tool_calls' are not valid JSON"),
        (calling(asking({"id": "a"})), "a tool call has no function name"),
        (
            calling({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}),
            "arguments of 'f' are not valid",
        ),
        (
            calling({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}),
            "are no object with named values",
        ),
        (
            calling({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"<|x|>": 1}}]}),
            "the key '<|x|>' holds",
        ),
        ({"messages": [{"role": "user", "tool_calls": [CALL]}]}, "which only an assistant makes"),
        (calling(ANSWER._asdict(), tools={"a": 1}), "'tools' is dict, expected a list"),
        (calling(ANSWER._asdict(), tools="[1"), "'tools' are not valid JSON"),
    ],
)
def test_broken_tool_calls_are_explained(row: Row, reason: str) -> None:
    with pytest.raises(RowError) as error:
        build(row, "messages", {})
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ("hello", "'conversations' is no list of turns"),
        ([{"role": "user", "content": "a"}], "turn 1 has no 'from' and 'value'"),
        ([{"from": "alien", "value": "a"}], "turn 1 is from 'alien', expected one of system, human"),
        ([{"from": "gpt", "value": "a"}], "turn 1 has role 'assistant', expected 'user'"),
        (
            [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{"}],
            "the function call is not valid JSON",
        ),
    ],
)
def test_broken_sharegpt_turns_are_explained(turns: object, reason: str) -> None:
    with pytest.raises(RowError) as error:
        build({"conversations": turns}, "sharegpt", {})
    assert reason in str(error.value)


def test_columns_are_renamed() -> None:
    row = {"Frage": "How much?", "Antwort": "5 dollars.", "output": "not this"}
    talk = build(row, "instruction", {"instruction": "Frage", "output": "Antwort"})
    assert talk == Talk((ASK, ANSWER))
    with pytest.raises(
        RowError, match=r"no column 'Frag', which data\.columns names \(it has 'Frage', 'Antwort', 'output'\)"
    ):
        build(row, "instruction", {"instruction": "Frag"})


def test_every_format_is_found_by_its_keys() -> None:
    for name, spec in FORMATS.items():
        row: dict[str, object] = dict.fromkeys(spec.keys, "x") | ({"input": "y"} if name == "alpaca" else {})
        assert fitting(row) == [name]
    assert fitting({"a": 1}) == []


CUSTOM = """
def turns(row):
    return [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]

def whole(row):
    return {"messages": turns(row), "tools": [{"name": "f"}]}

def nothing(row):
    return None

def wrong(row):
    return [{"role": "user", "content": 5}]

constant = 5
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working folder, which is not on Python's path."""
    (tmp_path / "my_formats.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    yield "my_formats"
    sys.modules.pop("my_formats", None)


def test_a_function_of_one_s_own_is_a_format(custom: str) -> None:
    row = {"q": "How much?", "a": "5 dollars."}
    assert build(row, f"{custom}:turns", {}) == Talk((ASK, ANSWER))
    assert build(row, f"{custom}:whole", {}) == Talk((ASK, ANSWER), '[{"name": "f"}]')
    assert build(row, f"{custom}:nothing", {}) is None
    assert custom_file(f"{custom}:turns") == Path.cwd() / "my_formats.py"
    assert custom_file("instruction") is None
    assert str(Path.cwd()) not in sys.path


def test_a_function_s_mistakes_are_explained(custom: str) -> None:
    with pytest.raises(RowError, match="my_formats:turns raised KeyError: 'q'"):
        build({}, f"{custom}:turns", {})
    with pytest.raises(RowError, match="turn 1: 'content' is int 5"):
        build({}, f"{custom}:wrong", {})
    for name, reason in (("absent", "AttributeError"), ("constant", "is int, not a function")):
        with pytest.raises(DataError, match=reason):
            build({}, f"{custom}:{name}", {})
    with pytest.raises(DataError, match="importable from the working folder"):
        build({}, "no_such_module:f", {})
