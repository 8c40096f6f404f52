"""Which format a file's rows are in, from a look at the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from finetune.data.formats import FORMATS, Row, build
from finetune.data.messages import RowError
from finetune.data.readers import BadRow
from finetune.data.sources import read_rows
from finetune.errors import DataError

LOOKED_AT = 100  # rows
# What columns are called elsewhere; the first that a file has is taken.
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "user", "human", "request", "source", "message")
_ANSWERS = ("completion", "output", "answer", "response", "reply", "assistant", "target", "solution", "chosen", "label")
_SYSTEMS = ("system", "system_prompt")
_TEXTS = ("text", "content", "body", "document", "story")


class Detected(NamedTuple):
    format: str
    columns: dict[str, str]  # our key -> the file's column, where they differ
    rows: int  # looked at
    fitting: int  # of these


def detect_format(path: str) -> Detected:
    """Find the format of a data file. Raises DataError naming its columns if it has none of ours."""
    found = list(islice(read_rows(path), LOOKED_AT))
    rows = [row.row for row in found if not isinstance(row, BadRow)]
    if not rows:
        bad = next((row for row in found if isinstance(row, BadRow)), None)
        raise DataError(bad.problem, where=bad.where) if bad else DataError("holds no rows", where=path)
    candidates = [(name, dict[str, str]()) for name in FORMATS] + _guesses(rows)
    fitting = [(sum(_fits(row, name, columns) for row in rows), name, columns) for name, columns in candidates]
    most, name, columns = max(fitting, key=lambda item: item[0])  # the first of the best: what needs no guess
    if not most:
        formats = "; ".join(f"{name}: {', '.join(spec.keys)}" for name, spec in FORMATS.items())
        raise DataError(
            f"has the columns {', '.join(map(repr, rows[0]))}, which fit no format",
            where=path,
            fix=f"name yours in data.columns, or write a function package.module:function ({formats})",
        )
    return Detected(name, columns, len(rows), most)


def _fits(row: Row, name: str, columns: Mapping[str, str]) -> bool:
    try:
        return build(row, name, columns) is not None
    except RowError:
        return False


def _guesses(rows: Sequence[Row]) -> list[tuple[str, dict[str, str]]]:
    """Formats with other names for their keys, the likeliest first."""
    row = rows[0]
    guesses: list[tuple[str, dict[str, str]]] = []
    for column, value in row.items():
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            name, key = ("sharegpt", "conversations") if "from" in value[0] else ("messages", "messages")
            guesses.append((name, {key: column}))
    prompt, answer, system = (_named(row, names) for names in (_PROMPTS, _ANSWERS, _SYSTEMS))
    if prompt and answer:
        columns = {"prompt": prompt, "completion": answer, **({"system": system} if system else {})}
        guesses.append(("prompt_completion", _differing(columns)))
    texts = [column for column, value in row.items() if isinstance(value, str)]
    if len(texts) == 2:
        guesses.append(("prompt_completion", _differing({"prompt": texts[0], "completion": texts[1]})))
    if text := _named(row, _TEXTS) or (texts[0] if len(texts) == 1 else None):
        guesses.append(("text", _differing({"text": text})))
    return guesses


def _named(row: Row, names: Sequence[str]) -> str | None:
    columns = {column.lower(): column for column, value in row.items() if isinstance(value, str)}
    return next((columns[name] for name in names if name in columns), None)


def _differing(columns: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for ours, theirs in columns.items() if ours != theirs}
