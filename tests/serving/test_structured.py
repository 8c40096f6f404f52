"""Answers that follow a JSON schema, from random models that would never do it by themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from finetune.errors import FinetuneError
from finetune.model.base import Base, load_base
from finetune.recipe import BaseSection
from finetune.serving.engine import Engine
from finetune.serving.requests import Failure, Finish, Request
from finetune.serving.settings import SamplingSettings
from finetune.serving.structured import JsonConstraint, SchemaError

ORDER = {
    "type": "object",
    "properties": {
        "size": {"enum": ["small", "medium", "large"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["size", "count", "name", "tags"],
    "additionalProperties": False,
}
SCHEMAS: tuple[Mapping[str, Any], ...] = (
    ORDER,
    {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    {"type": "array", "items": {"const": "é🍕"}, "maxItems": 2},
    {"type": "string", "pattern": "^[A-F]{3}-[0-9]{2}$"},
    {
        "$defs": {"n": {"enum": [1, 2]}},
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/n"}},
        "required": ["x"],
        "additionalProperties": False,
    },
)
SAMPLED = SamplingSettings(max_new_tokens=150, temperature=1.0)
GREEDY = SamplingSettings(max_new_tokens=150, frequency_penalty=0.2)


@pytest.fixture(scope="module")
def base(model_folder: Path) -> Base:
    return load_base(BaseSection(model=str(model_folder), quantization="none", dtype="float32"), torch.device("cpu"))


@pytest.fixture(scope="module")
def engine(base: Base) -> Engine:
    return Engine(base, None)


def asked(schema: Mapping[str, Any] | None, seed: int, settings: SamplingSettings = SAMPLED) -> Request:
    return Request((7, 8, 9 + seed), None, settings, seed, schema=schema)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
@pytest.mark.parametrize("seeds", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_answers_parse_and_validate_beside_free_ones(
    base: Base, engine: Engine, schema: Mapping[str, Any], seeds: int
) -> None:
    requests = [asked(schema, seed, settings) for seed in range(seeds) for settings in (SAMPLED, GREEDY)]
    short = SamplingSettings(max_new_tokens=20)
    free = [asked(None, seed, short) for seed in range(3)]
    found = engine.run([*free[:2], *requests, *free[2:]])
    alone = [engine.run([request])[0].text for request in free]
    assert [finish.text for finish in (*found[:2], found[-1])] == alone
    for finish in found[2:-1]:
        if finish.reason == "stop":
            jsonschema.validate(json.loads(finish.text), dict(schema))
    assert sum(finish.reason == "stop" for finish in found[2:-1]) > 0.8 * len(requests)


def test_a_constrained_answer_is_the_same_alone_and_in_a_batch(engine: Engine) -> None:
    requests = [asked(schema, seed) for seed, schema in enumerate(SCHEMAS)]
    together = engine.run(requests)
    assert [finish.text for finish in together] == [engine.run([request])[0].text for request in requests]


def test_any_json_object(engine: Engine) -> None:
    settings = SamplingSettings(max_new_tokens=240, temperature=1.0)
    ends = engine.run([asked({"type": "object"}, seed, settings) for seed in range(12)])
    whole = [json.loads(end.text) for end in ends if end.reason == "stop"]
    assert whole
    assert all(isinstance(value, dict) for value in whole)


def test_an_answer_that_is_cut_says_so(engine: Engine) -> None:
    for limit in (1, 5, 12):
        (end,) = engine.run([asked(ORDER, 1, SamplingSettings(max_new_tokens=limit))])
        assert (end.reason, end.completion_tokens) == ("length", limit)
        with pytest.raises(json.JSONDecodeError):
            json.loads(end.text)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"not": {"type": "string"}}, "Unimplemented keys"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable"),
        ({"$ref": "http://example.com/schema"}, ""),
    ],
)
def test_schemas_that_cannot_be_followed_are_refused(engine: Engine, schema: dict[str, Any], why: str) -> None:
    with pytest.raises(SchemaError, match="the JSON schema cannot be") as caught:
        engine.submit(asked(schema, 0))
    assert why in str(caught.value)
    assert engine.stats.waiting == 0


def test_without_the_package_the_error_names_the_extra(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(FinetuneError, match=r"need the package llguidance; pip install 'finetune\[serve\]'"):
        Engine(base, None).submit(asked(ORDER, 0))


def test_a_constraint_that_breaks_fails_its_own_request(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(base, None)
    broken, sound = engine.submit(asked(ORDER, 0)), engine.submit(asked(ORDER, 1))
    constraint = engine._arrived[0].row.draws.constraint
    assert isinstance(constraint, JsonConstraint)
    assert not constraint._matcher.consume_token(8)  # no JSON begins with it: from now on it is in error
    while broken.end is None or sound.end is None:
        engine._turn()
    assert isinstance(broken.end, Failure)
    assert isinstance(broken.end.error, SchemaError)
    assert "cannot follow its JSON schema" in str(broken.end.error)
    assert isinstance(sound.end, Finish)
