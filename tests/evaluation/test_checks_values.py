"""Numbers, JSON and functions of one's own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import DataError
from finetune.evaluation.checks import Answer, make_check, run_check


def detail(kind: str, value: object, text: str, **options: Any) -> str:
    return run_check(make_check(kind, value, **options), Answer(text, True, 1)).detail


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("The sum is 99.", "99"),
        ("It costs $1,234.50, or 1,234,567.", "1234.5 1234567"),
        ("1,23 and 1,2345", "1 23 1 2345"),
        ("1,234,56", "1234 56"),
        ("12345,678", "12345 678"),
        ("-5, −6, +7, -$8.50 and $-9", "-5 -6 7 -8.5 -9"),
        ("3-5 pizzas, (2)-1, COVID-19", "3 5 2 1 19"),
        ("A4, H2O, x86_64", ""),
        ("5kg, 20%, 3rd", "5 20 3"),
        (".5 or 0.5", "0.5 0.5"),
        ("12:30, 1/2", "12 30 1 2"),
        ("6.02e23 and 1E-3", "6.02e23 1e-3"),
        ("two", ""),
        ("٣ ５", ""),
        ("€5 £6", "5 6"),
        ("Version 1.2.3", "1.2 3"),
    ],
)
def test_numbers_are_read_as_in_english(text: str, numbers: str) -> None:
    found = [float(number) for number in numbers.split()]
    for value in (found[0], found[-1]) if found else ():
        which = "first" if value == found[0] else "last"
        assert detail("number", value, text, which=which) == ""
    if len(found) == 1:
        assert detail("number", found[0], text) == ""
    elif found:
        assert detail("number", found[0], text).startswith("more than one number: ")
    else:
        assert detail("number", 1, text) == "no number"


def test_the_number_that_counts_is_declared() -> None:
    text = "3 pizzas at 12 make 36"
    assert detail("number", 36, text) == "more than one number: '3', '12', '36'"
    assert detail("number", 36, text, which="last") == ""
    assert detail("number", 3, text, which="first") == ""
    assert detail("number", 12, text, which="last") == "got '36'"
    assert detail("number", 5, "5, I said 5").startswith("more than one")


def test_the_tolerance_is_absolute_exact_and_may_be_reached() -> None:
    assert detail("number", 0.3, "0.4", tolerance=0.1) == ""  # in binary the difference is more than 0.1
    assert detail("number", 0.3, "0.4000000000000000000000000000000000001", tolerance=0.1) != ""
    assert detail("number", 100, "99.5", tolerance=0.5) == ""
    assert detail("number", 5, "5.0") == ""
    assert detail("number", 5, "5.01") == "got '5.01'"
    assert detail("number", 5, "9" * 1000).startswith("got '999")


@given(st.integers(-(10**12), 10**12), st.integers(0, 99))
def test_a_number_written_with_separators_is_the_number(whole: int, hundredths: int) -> None:
    text = f"That is {whole:,}.{hundredths:02}, all told."
    assert detail("number", float(f"{whole}.{hundredths:02}"), text) == "" or abs(whole) >= 10**13
    assert detail("number", whole + (200 if whole >= 0 else -200), text, tolerance=100) != ""


@pytest.mark.parametrize(
    ("text", "good", "good_fenced"),
    [
        ('{"a": [1, 2.5e3, null, true, "\\u00e9"]}', True, True),
        (' "text" \n', True, True),
        ("3", True, True),
        ("", False, False),
        ("Here: {}", False, False),
        ("{} {}", False, False),
        ("{'a': 1}", False, False),
        ("[1,]", False, False),
        ("NaN", False, False),
        ("-Infinity", False, False),
        ("1e999", False, False),
        ('{"a": 1, "a": 2}', False, False),
        ("[" * 200_000, False, False),
        ('Here you are:\n```json\n{"a": 1}\n```\nEnjoy!', False, True),
        ("~~~\n[1]\n~~~", False, True),
        ("````\n```\n````", False, False),
        ("```\n1\n```\nor\n```\n2\n```", False, False),
        ("```json\n{}", False, True),
        ("```\nno\n```", False, False),
        ('"```\\n1\\n```"', True, True),
        ("`{}`", False, False),
    ],
)
def test_json_is_what_the_standard_says(text: str, good: bool, good_fenced: bool) -> None:
    for fenced, expected in ((False, good), (True, good_fenced)):
        assert (detail("json", True, text, fenced=fenced) == "") is expected
        assert (detail("json", False, text, fenced=fenced) == "") is not expected
        assert (detail("json_schema", {}, text, fenced=fenced) == "") is (expected and len(text) <= 100_000)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_every_json_value_is_json(value: object) -> None:
    text = json.dumps(value)
    assert detail("json", True, text) == ""
    assert detail("json", True, f"So:\n```json\n{text}\n```", fenced=True) == ""


ORDER = {
    "type": "object",
    "required": ["size"],
    "properties": {"size": {"$ref": "#/$defs/size"}, "count": {"type": "integer", "minimum": 1}},
    "patternProperties": {"^x-": True},
    "additionalProperties": False,
    "$defs": {"size": {"enum": ["small", "large"]}},
}


@pytest.mark.parametrize(
    ("schema", "value", "part"),
    [
        (ORDER, {"size": "small", "count": 2, "x-note": 1}, ""),
        (ORDER, {"count": 2}, r"$: 'size' is a required property"),
        (ORDER, {"size": "huge"}, "$.size: 'huge' is not one of"),
        (ORDER, {"size": "small", "count": 0}, "$.count: 0 is less than"),
        (ORDER, {"size": "small", "note": 1}, "$: 'note' is not allowed here"),
        ({"additionalProperties": {"type": "string"}}, {"a": 1}, "$.a: 1 is not of type"),
        ({"patternProperties": {"^n": {"type": "number"}}}, {"n1": "x"}, "$.n1: 'x' is not of type"),
        ({"pattern": "^a+$"}, "aab", "$: 'aab' does not match '^a+$'"),
        ({"pattern": "^a+$"}, 5, ""),
        ({"uniqueItems": True}, [1, 1.0], "$: the items are not unique"),
        ({"uniqueItems": True}, [1, True, "1", [1], {"a": 1}], ""),
        ({"uniqueItems": True}, [{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], "not unique"),
        ({"uniqueItems": False}, [1, 1], ""),
        ({"type": "integer"}, 1.0, ""),
        ({"multipleOf": 0.01}, 1e308, None),
    ],
)
def test_answers_are_held_to_the_schema(schema: dict[str, object], value: object, part: str | None) -> None:
    found = detail("json_schema", schema, json.dumps(value))
    assert part is None or (part in found if part else found == "")


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ("object", "json_schema: 'object' should be a mapping"),
        ({"type": "objekt"}, r"the schema is wrong at \$.type: 'objekt' is not valid"),
        ({"minimum": "1"}, "the schema is wrong"),
        ({"pattern": "("}, r"the schema is wrong at \$.pattern: '\(' is not a 'regex'"),
        ({"patternProperties": {"(": True}}, "the schema is wrong"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "should be 'https://json-schema.org/draft/2020-12"),
        ({"$schema": 7}, "or left out"),
        ({"$ref": "https://example.com/schema.json"}, "is never fetched; copy it into"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "is never fetched"),
        ({"$ref": "file:///etc/passwd"}, "is never fetched"),
        ({"$ref": "#/$defs/none"}, "'#/.defs/none' is not in the schema"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"const": float("inf")}, "nothing but what JSON has"),
        ({"const": {1, 2}}, "nothing but what JSON has"),
        ({"patternProperties": {"a": True}, "unevaluatedProperties": False}, "is not supported"),
        ({"enum": ["x" * 200_000]}, "characters are more than 100,000"),
    ],
)
def test_a_wrong_schema_is_refused_at_load(schema: object, part: str) -> None:
    with pytest.raises(DataError, match=part):
        make_check("json_schema", schema)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a schema was fetched")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    text = '{"$schema": "https://example.com/x", "$ref": "https://example.com/y"}'
    assert detail("json_schema", {"$schema": "https://json-schema.org/draft/2020-12/schema"}, text) == ""


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "^(a|aa)+$"}, json.dumps("a" * 80 + "b")),
        ({"patternProperties": {"^(a|aa)+$": True}}, json.dumps({"a" * 80 + "b": 1})),
        ({"patternProperties": {"^(a|aa)+$": True}, "additionalProperties": False}, json.dumps({"a" * 80 + "b": 1})),
        ({"uniqueItems": True}, json.dumps([{"a": i} for i in range(7_000)])),
        ({"items": {"type": "integer"}}, json.dumps([1] * 30_000)),
    ],
)
def test_no_answer_keeps_a_schema_busy(schema: dict[str, object], text: str) -> None:
    check = make_check("json_schema", schema)
    start = time.process_time()
    run_check(check, Answer(text, True, 1))
    assert time.process_time() - start < 6


def test_deep_answers_and_recursive_schemas_end_in_a_finding() -> None:
    schema = {"$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    assert detail("json_schema", schema, "[[[]]]") == ""
    found = detail("json_schema", schema, "[" * 900 + "]" * 900)
    assert found.startswith(("cannot be validated: RecursionError", "no JSON: nested too deeply"))


MODULE = """
def long_enough(text, words=2):
    return len(text.split()) >= words or f"only {len(text.split())} words"
def fine(text): return None
def no(text): return False
def odd(text): return 3
def lines(text): return "one\\ntwo"
def broken(text): raise KeyError("menu")
constant = 5
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"my_checks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_bad.py").write_text("import nothing_of_that_name")
    monkeypatch.chdir(tmp_path)
    yield name


def test_a_function_of_one_s_own_is_a_check(mine: str) -> None:
    assert detail("function", f"{mine}:fine", "x") == ""
    assert detail("function", f"{mine}:no", "x") == "returned False"
    assert detail("function", f"{mine}:long_enough", "one two") == ""
    assert detail("function", f"{mine}:long_enough", "one two", options={"words": 3}) == "only 2 words"
    assert detail("function", f"{mine}:odd", "x") == "returned int, not text, True, False or None"
    assert detail("function", f"{mine}:lines", "x") == "one two"
    assert detail("function", f"{mine}:broken", "x") == "raised KeyError: 'menu'"


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("NAME", {}, "should be written package.module:name"),
        ("no.such.module:check", {}, "cannot be imported: ModuleNotFoundError"),
        ("NAME:none", {}, "cannot be imported: AttributeError"),
        ("NAME_bad:check", {}, "No module named 'nothing_of_that_name'.* importable from the working folder"),
        ("NAME:constant", {}, "is int, not a function"),
        ("NAME:fine", {"words": 3}, "cannot be called with the answer and these options: got an unexpected"),
        (5, {}, "should be text"),
    ],
)
def test_a_function_s_mistakes_are_found_at_load(mine: str, name: object, options: dict[str, Any], part: str) -> None:
    named = name.replace("NAME", mine) if isinstance(name, str) else name
    with pytest.raises(DataError, match=part):
        make_check("function", named, options=options)
    with pytest.raises(DataError, match="options: 'fast' should be a mapping"):
        make_check("function", f"{mine}:fine", options="fast")
