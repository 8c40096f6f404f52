"""The answers as CSV, for a spreadsheet: one line per answer.

A spreadsheet computes a cell that begins like a formula, wherever the text came from. Such a cell gets
a leading apostrophe, as OWASP recommends ("CSV Injection"); samples.jsonl has the text as it was.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from finetune.evaluation.escaping import visible
from finetune.evaluation.page import missed_checks
from finetune.evaluation.report import Answers, Sample

COLUMNS = (
    "id", "tags", "model", "attempt", "passed", "error", "tokens", "stopped", "prompt", "answer", "failed_checks"
)  # fmt: skip
# Spreadsheets skip white space and what is invisible before they look for a formula; U+FF0B and so on are full width.
_FORMULA = re.compile(r"[\s\u200b-\u200f\u2060\ufeff\x00-\x20]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def render_csv(samples: Sequence[Sample]) -> str:
    """Render one line per answer of every model, in RFC 4180."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for sample in samples:
        writer.writerows(map(_cell, row) for row in _rows(sample))
    return file.getvalue()


def _rows(sample: Sample) -> Iterator[tuple[object, ...]]:
    tags, prompt = ", ".join(sample.tags), sample.messages[-1].content
    models: list[tuple[str, Answers]] = [("base", sample.base), ("adapter", sample.adapter), *sample.rivals.items()]
    for model, answers in models:
        for number, answer in enumerate(answers, start=1):
            missed = missed_checks(answer)
            yield (
                sample.id, tags, model, number, answer.passed, any(outcome.error for outcome in missed),
                answer.tokens, answer.stopped, prompt, answer.text,
                "\n".join(f"{outcome.check}: {outcome.detail}" for outcome in missed),
            )  # fmt: skip


def _cell(value: object) -> str:
    if not isinstance(value, str):
        return str(value).lower()  # true and false
    return ("'" if _FORMULA.match(value) else "") + visible(value)
