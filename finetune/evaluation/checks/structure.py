"""Checks of answers that should be JSON."""

from __future__ import annotations

import json as json_library
import re
from collections.abc import Iterator
from math import isfinite
from typing import Any

from finetune.evaluation.checks.core import Answer, check, check_at_load
from finetune.evaluation.checks.schemas import first_mistake, validator_of
from finetune.evaluation.checks.values import Flag, JsonText, one_line

LONGEST = 100_000  # characters that are validated; a schema can ask for a lot of work on each
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


@check
def json(answer: Answer, wanted: Flag, *, fenced: Flag = False) -> str | None:
    """Whether the answer is one JSON value (RFC 8259) and nothing else.

    `NaN` and a key that is given twice are mistakes. With `fenced: true` the value may also stand in a
    Markdown code block, the only one of the answer, with other text around it.

    Example: {json: true, fenced: true}
    """
    try:
        _parsed(answer.text, fenced)
    except ValueError as error:
        return str(error) if wanted else None
    return None if wanted else "is JSON"


def _buildable(schema: str, **options: object) -> None:
    validator_of(schema)


@check_at_load(_buildable)
def json_schema(answer: Answer, schema: JsonText, *, fenced: Flag = False) -> str | None:
    """The answer is JSON, as `json` has it, and valid by a JSON Schema of Draft 2020-12.

    The schema stands in the prompts file; `$ref` reaches definitions inside it, and nothing is ever
    fetched. `format` is not checked. An answer of over 100,000 characters fails.

    Example: {json_schema: {type: object, required: [size], properties: {size: {enum: [small, large]}}}}
    """
    if len(answer.text) > LONGEST:
        return f"too long to be validated: {len(answer.text):,} characters"
    try:
        value = _parsed(answer.text, fenced)
    except ValueError as error:
        return str(error)
    return first_mistake(schema, value)


def strict_json(text: str) -> Any:
    """Parse JSON without the liberties of Python's parser. Raises ValueError, for nesting without end, too."""
    try:
        return json_library.loads(
            text, parse_float=_finite, parse_constant=_no_constant, object_pairs_hook=_without_repetition
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _parsed(text: str, fenced: bool) -> Any:
    if fenced:
        blocks = list(_code_blocks(text))
        if len(blocks) > 1:
            raise ValueError(f"{len(blocks)} code blocks, should be one")
        text = blocks[0] if blocks else text
    try:
        return strict_json(text)
    except ValueError as error:
        raise ValueError(f"no JSON: {one_line(error)}") from None


def _code_blocks(text: str) -> Iterator[str]:
    """Find fenced code as CommonMark does; a block that is not closed reaches to the end."""
    fence = ""
    body: list[str] = []
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if found and not fence and "`" not in found[2]:
            fence, body = found[1], []
        elif found and fence and found[1].startswith(fence) and not found[2].strip():
            yield "\n".join(body)
            fence = ""
        elif fence:
            body.append(line)
    if fence:
        yield "\n".join(body)


def _finite(text: str) -> float | int:
    if not isfinite(number := float(text)):
        raise ValueError(f"{text} is out of range")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is given twice")
    return made
