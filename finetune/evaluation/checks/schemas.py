"""JSON Schema for answers that nobody vouches for: no network, no search that never ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from finetune.evaluation.checks.core import CheckError
from finetune.evaluation.checks.values import compile_pattern, one_line, quote

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TIMEOUT = 0.5  # seconds of CPU time for one pattern on one text
REFERENCES = ("$ref", "$dynamicRef")


@lru_cache(maxsize=256)
def validator_of(schema: str) -> Any:
    """Make a validator of a schema in JSON. Raises ValueError saying what is wrong with the schema."""
    tree = json.loads(schema)
    if (dialect := tree.get("$schema", DIALECT)) not in (DIALECT, f"{DIALECT}#"):
        raise ValueError(f"$schema {quote([str(dialect)])} should be {DIALECT!r}, or left out")
    try:
        Draft202012Validator.check_schema(tree)
    except SchemaError as error:
        raise ValueError(f"the schema is wrong at {error.json_path}: {one_line(error.message)}") from None
    _check_references(tree)
    _check_patterns(tree)
    validator = _Checker(tree, registry=Registry())
    try:
        validator.is_valid(None)
    except RecursionError:
        raise ValueError("the schema refers to itself without end") from None
    return validator


def first_mistake(schema: str, value: Any) -> str | None:
    """Say what is wrong with a value, or return None if it is valid."""
    try:
        mistake = next(validator_of(schema).iter_errors(value), None)
    except TimeoutError:
        raise CheckError("a pattern of the schema timed out; simplify it") from None
    except Exception as error:  # a schema can take a value to the limits of Python's numbers and stack
        raise CheckError(f"cannot be validated: {type(error).__name__}: {one_line(error)}") from None
    return f"{one_line(mistake.json_path)}: {one_line(mistake.message)}" if mistake else None


def _check_references(tree: object) -> None:
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(tree))
    for key, target in _members(tree):
        if key not in REFERENCES or not isinstance(target, str):
            continue
        if not target.startswith("#"):
            raise ValueError(f"{key} {quote([target])} leaves the schema and is never fetched; copy it into $defs")
        try:
            resolver.lookup(target)
        except Unresolvable:
            raise ValueError(f"{key} {quote([target])} is not in the schema") from None


def _check_patterns(tree: object) -> None:
    for key, value in _members(tree):
        for pattern in value if key == "patternProperties" else [value] if key == "pattern" else []:
            if isinstance(pattern, str):
                compile_pattern(pattern)
    keys = {key for key, _ in _members(tree)}
    if {"patternProperties", "unevaluatedProperties"} <= keys:  # whose patterns could not be stopped
        raise ValueError("unevaluatedProperties beside patternProperties is not supported; use additionalProperties")


def _members(tree: object) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        yield from tree.items()
    for item in tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ():
        yield from _members(item)


# jsonschema searches with `re`, which a hostile text can keep busy for ever, and compares the items of a
# list pair by pair. These four stand in for its own.


def _found(pattern: str, text: str) -> bool:
    return compile_pattern(pattern).search(text, timeout=TIMEOUT) is not None


def _pattern(validator: Any, pattern: str, value: object, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
    if isinstance(value, str) and not _found(pattern, value):
        yield ValidationError(f"{quote([value])} does not match {quote([pattern])}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    for pattern, below in patterns.items():
        for key, item in value.items() if isinstance(value, dict) else ():
            if _found(pattern, key):
                yield from validator.descend(item, below, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, below: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, item in value.items() if isinstance(value, dict) else ():
        if key in named or any(_found(pattern, key) for pattern in patterns):
            continue
        if below is False:
            yield ValidationError(f"{quote([key])} is not allowed here")
        else:
            yield from validator.descend(item, below, path=key)


def _unique_items(validator: Any, wanted: bool, value: object, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
    if wanted and isinstance(value, list) and len({_canonical(item) for item in value}) < len(value):
        yield ValidationError("the items are not unique")


def _canonical(value: object) -> str:
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    """Write 1.0 as 1: to JSON Schema they are one number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {key: _whole(item) for key, item in value.items()} if isinstance(value, dict) else value


_Checker = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    },
)
