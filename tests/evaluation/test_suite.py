from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path

import pytest

from finetune.data.messages import Message
from finetune.errors import DataError, RecipeError
from finetune.evaluation.checks import Answer, Check
from finetune.evaluation.suite import grade, load_prompts, refuse_equal_answers

GOOD = """\
prompts:
- id: order-001
  prompt: "2 lg pepperoni thin crust plz"
  tags: [order, sloppy]
  checks:
  - {contains: "two large thin-crust pepperoni pizzas", ignore_case: true}
  - {stops: true}
- id: talk
  system: Be brief.
  messages:
  - {role: user, content: Hi}
  - {role: assistant, content: Hello.}
  - {role: user, content: One margherita}
  checks:
  - not_contains: [sorry, unable]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(DataError) as error:
        load_prompts(path, None)
    return [line.removeprefix(str(path)) for line in str(error.value).splitlines()]


def one(body: str) -> str:
    return "prompts:\n- id: a\n" + "".join(f"  {line}\n" for line in body.splitlines())


def test_reads_prompts(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    order, talk = load_prompts(path, "You take orders.")
    assert order.messages == (Message("system", "You take orders."), Message("user", "2 lg pepperoni thin crust plz"))
    assert order.tags == ("order", "sloppy")
    assert order.checks == (
        Check("contains", ("two large thin-crust pepperoni pizzas",), (("normalize", ("case",)),)),
        Check("stops", True),
    )
    assert order.where == f"{path}:2"
    assert [m.role for m in talk.messages] == ["system", "user", "assistant", "user"]
    assert talk.messages[0].content == "Be brief."
    assert talk.checks == (Check("not_contains", ("sorry", "unable")),)
    assert all(type(text) is str for m in talk.messages for text in m), "no YAML classes leak out"


def test_system_prompt_is_overridden_or_absent(tmp_path: Path) -> None:
    none = one("prompt: hi\nsystem: ''\nchecks: [{stops: true}]")
    assert load_prompts(write(tmp_path, none), "recipe")[0].messages == (Message("user", "hi"),)
    own = one("messages: [{role: system, content: own}, {role: user, content: hi}]\nchecks: [{stops: true}]")
    assert load_prompts(write(tmp_path, own), "recipe")[0].messages[0] == Message("system", "own")
    plain = one("prompt: hi\nchecks: [{stops: true}]")
    assert load_prompts(write(tmp_path, plain), None)[0].messages == (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (one("prompt: hi\nchecks: [{contain: x}]"), ":4:13: no such key 'contain'; did you mean 'contains'?"),
        (one("promt: hi\nchecks: [{stops: true}]"), ":3:3: no such key 'promt'; did you mean 'prompt'?"),
        (one("prompt: hi\nchecks: []"), ":4:3: 'checks' should be a list with at least one check"),
        (one("prompt: hi"), ":2:3: required key 'checks' is missing"),
        (one("prompt: 5\nchecks: [{stops: true}]"), ":3:3: 'prompt' is 5, should be text; put it in quotes"),
        (one("prompt: ''\nchecks: [{stops: true}]"), ":3:3: 'prompt' is empty"),
        (one("prompt: hi\ntags: order\nchecks: [{stops: true}]"), ":4:3: 'tags' should be a list"),
        (one("prompt: hi\ntags: [a, a]\nchecks: [{stops: true}]"), ":4:13: tag 'a' is given twice"),
        (one("prompt: hi\ntags: [a, 1]\nchecks: [{stops: true}]"), ":4:13: tag 1 should be text"),
        (one("prompt: hi\nchecks: [{regex: '('}]"), ":4:13: regex: '(' is no valid pattern"),
        (one("prompt: hi\nchecks: [{contains: 2}]"), ":4:13: contains: 2 should be text; put it in quotes"),
        (one("prompt: hi\nchecks: [{stops: 1}]"), ":4:13: stops: 1 should be true or false"),
        (one("prompt: hi\nchecks: [{stops: true, ignore_case: true}]"), ":4:26: stops has no option 'ignore_case'"),
        (one("prompt: hi\nchecks: [{number: 5, tolerence: 1}]"), ":4:24: number has no option 'tolerence'; did you"),
        (one("prompt: hi\nchecks: [{number: 5, tolerance: much}]"), ":4:24: tolerance: 'much' should be a number"),
        (one("prompt: hi\nchecks: [{f1: a}]"), ":4:13: f1: required option 'at_least' is missing"),
        (one("prompt: hi\nchecks: [{equals: a, normalize: [cases]}]"), ":4:24: normalize: 'cases' is not known; did"),
        (one("prompt: hi\nchecks: [{at_least: 1, f1: a}]\ntags: a"), ":5:3: 'tags' should be a list"),
        (one("prompt: hi\nchecks: [{json_schema: {type: x}}]"), ":4:13: json_schema: the schema is wrong at $.type"),
        (one("prompt: hi\nchecks: [{function: 'no_such.thing:f'}]"), ":4:13: function: 'no_such.thing:f' cannot be"),
        (one("prompt: hi\nchecks: [{contain: a, at_least: 1}]"), ":4:13: no such key 'contain'; did you mean"),
        (one("prompt: hi\nchecks: [{at_least: 1}]"), ":4:12: a check should have exactly one of"),
        (one("prompt: hi\nchecks: [{contains: a, equals: b}]"), ":4:12: a check should have exactly one of"),
        (one("prompt: hi\nchecks: [{ignore_case: true}]"), ":4:12: a check should have exactly one of"),
        (one("prompt: hi\nchecks: [stops]"), ":4:12: a check should be written like {contains: text}"),
        (one("prompt: hi\nmessages: []\nchecks: [{stops: true}]"), ":2:3: give either 'prompt' or 'messages'"),
        (one("messages: []\nchecks: [{stops: true}]"), ":3:3: 'messages' should be a list"),
        (one("messages: [{role: usr, content: x}]\nchecks: [{stops: true}]"), ":3:15: role 'usr' should be one of"),
        (one("messages: [{role: user}]\nchecks: [{stops: true}]"), ":3:14: required key 'content' is missing"),
        (
            one("messages: [{role: user, content: x}, {role: assistant, content: y}]\nchecks: [{stops: true}]"),
            ":3:40: 'messages' should end with a user turn",
        ),
        (
            one("messages: [{role: user, content: x}, {role: user, content: y}]\nchecks: [{stops: true}]"),
            ":3:3: 'messages': turn 2 has role 'user', expected 'assistant'",
        ),
        (
            one("system: s\nmessages: [{role: system, content: x}, {role: user, content: y}]\nchecks: [{stops: true}]"),
            ":3:3: the messages already begin with a system turn",
        ),
        ("prompts: []\n", ":1:1: 'prompts' should be a list with at least one prompt"),
        ("prompts:\n", ":1:1: 'prompts' should be a list with at least one prompt"),
        ("", ":1:1: expected `prompts:`"),
        ("- id: a\n", ":1:1: expected `prompts:`"),
        ("prompts:\n- hello\n", ":2:3: a prompt should have the keys id, prompt"),
        ("prompts:\n- id: a\n  id: b\n", "is not valid YAML"),
        ("prompts: [\n", "is not valid YAML"),
    ],
)
def test_each_mistake_is_named_where_it_stands(tmp_path: Path, text: str, expected: str) -> None:
    found = mistakes(tmp_path, text)
    assert any(expected in line for line in found), found


def test_all_mistakes_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("tags: [order, sloppy]", "tags: order").replace("id: talk", "id: order-001")
    text = text.replace("stops: true", "stop: true").replace("not_contains:", "not_contain:")
    found = mistakes(tmp_path, text)
    assert [line.split(":")[1] for line in found] == ["4", "7", "8", "15"]
    assert "already used in line 2" in found[2]


def test_all_mistakes_of_one_check_are_named(tmp_path: Path) -> None:
    found = mistakes(tmp_path, one("prompt: hi\nchecks:\n- {number: five, tolerance: -1, wich: last}"))
    assert [line.split(": ")[0] for line in found] == [":5:6", ":5:20", ":5:35"]


def test_options_that_come_from_yaml_are_plain_values(tmp_path: Path) -> None:
    text = one(
        "prompt: hi\nchecks:\n- {number: 1_000.5, tolerance: 1e-1}\n- {f1: 'a', at_least: 0.5}\n- {max_tokens: 0x10}"
    )
    number, f1, tokens = load_prompts(write(tmp_path, text), None)[0].checks
    assert number == Check("number", Decimal("1000.5"), (("tolerance", Decimal("0.1")),))
    assert f1 == Check("f1", ("a",), (("at_least", 0.5),))
    assert tokens == Check("max_tokens", 16)
    assert type(tokens.value) is int


def test_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_prompts(tmp_path / "none.yaml", None)


def test_merged_keys_and_aliases_do_not_crash(tmp_path: Path) -> None:
    text = (
        "prompts:\n- &first\n  id: a\n  prompt: hi\n  checks: &c [{stops: true}]\n"
        "- <<: *first\n  id: b\n- {id: c, prompt: x, checks: *c}\n"
    )
    assert [p.id for p in load_prompts(write(tmp_path, text), None)] == ["a", "b", "c"]
    assert "is already used" in mistakes(tmp_path, text.replace("  id: b\n", ""))[0]


def test_aliases_cannot_multiply_without_bound(tmp_path: Path) -> None:
    checks = ", ".join(["{stops: true}"] * 300)
    text = f"prompts:\n- id: p\n  prompt: x\n  checks: &c [{checks}]\n"
    text += "".join(f"- {{id: p{i}, prompt: x, checks: *c}}\n" for i in range(400))
    assert "more than 100000 checks" in mistakes(tmp_path, text)[0]


def test_many_prompts_load_in_linear_time(tmp_path: Path) -> None:
    body = GOOD.removeprefix("prompts:\n")
    text = "prompts:\n" + "".join(body.replace("order-001", f"o{i}").replace("talk", f"t{i}") for i in range(110))
    path = write(tmp_path, text)
    start = time.process_time()
    assert len(load_prompts(path, None)) == 220
    assert time.process_time() - start < 9


def test_grade(tmp_path: Path) -> None:
    prompts = load_prompts(write(tmp_path, GOOD), None)
    right = Answer("Two large thin-crust pepperoni pizzas.", True, 9)
    wrong = Answer("sorry", True, 1)
    first, second = grade(prompts, [[right], [wrong, right]])
    assert [attempt.passed for attempt in first.attempts] == [True]
    assert [attempt.passed for attempt in second.attempts] == [False, True]
    assert not grade(prompts[:1], [[right._replace(stopped=False)]])[0].attempts[0].passed
    with pytest.raises(ValueError, match="shorter"):
        grade(prompts, [[right]])


def test_a_prompt_says_how_often_it_is_answered(tmp_path: Path) -> None:
    text = (
        "prompts:\n- {id: a, prompt: Hi, samples: 4, checks: [{stops: true}]}\n"
        "- {id: b, prompt: Hi, checks: [{stops: true}]}\n"
    )
    prompts = load_prompts(write(tmp_path, text), None)
    assert [prompt.samples for prompt in prompts] == [4, None]
    refuse_equal_answers(prompts, 1, 0.7)
    refuse_equal_answers(prompts[1:], 1, 0.0)
    with pytest.raises(RecipeError, match=r"prompts.yaml:2: prompt 'a' is to be answered 4 times at temperature 0"):
        refuse_equal_answers(prompts, 1, 0.0)
    with pytest.raises(RecipeError, match=r"prompts.yaml:3: prompt 'b' is to be answered 2 times"):
        refuse_equal_answers(prompts[1:], 2, 0.0)
    for wrong in ("0", "1001", "1.5", "true", "many", "null"):
        with pytest.raises(DataError, match=r":2:23: 'samples' should be a whole number from 1 to 1000"):
            load_prompts(write(tmp_path, text.replace("samples: 4", f"samples: {wrong}")), None)
