"""samples.csv: one line per answer, read back by two parsers, and no cell that a spreadsheet would compute."""

from __future__ import annotations

import csv
import io

import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.report import Sample
from finetune.evaluation.table import COLUMNS, render_csv
from tests.evaluation.builders import an_evaluation

FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "  =1",
    "\u00a0+1",
    "＝1",
    "＋1",
    "－1",
    "＠1",
    "\u200b=1",
    "\n-1",
]


def rows(samples: tuple[Sample, ...]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render_csv(samples), newline=""), strict=True))


def answers(*texts: str) -> list[str]:
    found = an_evaluation(["base"] * len(texts), texts)
    return [row["answer"] for row in rows(found.samples) if row["model"] == "adapter"]


def test_every_answer_of_every_model_is_a_line() -> None:
    found = an_evaluation([["no", "pizza"]], [["pizza", 'a, "b"\nc']], {"other": [["no", "no"]]})
    table = rows(found.samples)
    assert list(table[0]) == list(COLUMNS)
    assert [(row["model"], row["attempt"], row["passed"]) for row in table] == [
        ("base", "1", "false"), ("base", "2", "true"), ("adapter", "1", "true"), ("adapter", "2", "false"),
        ("other", "1", "false"), ("other", "2", "false"),
    ]  # fmt: skip
    assert table[3] == {
        "id": "p-0", "tags": "all, even", "model": "adapter", "attempt": "2", "passed": "false", "error": "false",
        "tokens": "5", "stopped": "true", "prompt": "question 0", "answer": 'a, "b"\nc',
        "failed_checks": "contains 'pizza': missing: 'pizza'",
    }  # fmt: skip


def test_a_check_that_could_not_be_carried_out_is_named() -> None:
    sample = an_evaluation(["x"], ["x"]).samples[0]
    broken = sample.adapter[0].outcomes[0].model_copy(update={"error": True})
    answer = sample.adapter[0].model_copy(update={"outcomes": (broken,)})
    table = rows((sample.model_copy(update={"adapter": (answer,)}),))
    assert [row["error"] for row in table] == ["false", "true"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_like_a_formula(text: str) -> None:
    (cell,) = answers(text)
    assert cell.startswith("'")
    assert cell.lstrip("'").replace("␍", "\r").replace("[U+200B]", "\u200b") == text


@pytest.mark.parametrize("text", ["1+1", "a=b", "two - three", "'quoted'", "x\t=1", "5", "(-1)", ""])
def test_an_ordinary_cell_stays_as_it_is(text: str) -> None:
    assert answers(text) == [text]


def test_control_characters_are_seen() -> None:
    assert answers("a\x00b\x1b[31m\x7f\u202e") == ["a␀b␛[31m␡[U+202E]"]


def test_lines_end_as_rfc_4180_says() -> None:
    text = render_csv(an_evaluation(["x"], ["a\nb"]).samples)
    assert text.endswith('"\r\n')
    assert text.count("\r\n") == 3
    text.encode("utf-8")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text() | st.sampled_from(FORMULAS), min_size=1, max_size=4))
def test_two_parsers_read_the_same_back(texts: list[str]) -> None:
    found = an_evaluation(texts, texts)
    text = render_csv(found.samples)
    ours = rows(found.samples)
    parsed = pyarrow.csv.read_csv(
        io.BytesIO(text.encode("utf-8")),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, "string")),
    )
    assert parsed.to_pylist() == ours
    assert len(ours) == 2 * len(texts)
