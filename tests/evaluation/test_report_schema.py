"""docs/report.schema.json is the schema of what an evaluation writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from finetune.evaluation.gates import apply_gates
from finetune.evaluation.report import Report, render_schema
from finetune.recipe import Gate
from tests.evaluation.builders import a_report, an_evaluation

PAGE = Path(__file__).parents[2] / "docs" / "report.schema.json"


def mistakes(report: Any) -> list[str]:
    schema = json.loads(render_schema())
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema).iter_errors(report)]


def test_the_page_is_made_from_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_schema(), "run make docs"


def test_every_kind_of_report_is_valid_and_comes_back() -> None:
    full = an_evaluation([["no", "pizza"]] * 8, [["pizza", "pizza"]] * 8, {"other": [["no", "no"]] * 8})
    gated = apply_gates({"prompts.pass_rate": Gate(at_least=0.1, no_worse_than_base=0.1)}, full).report
    unbounded = a_report(["no"], ["pizza"])  # one prompt can show no drop: infinity, which JSON has not
    for report in (gated, unbounded, a_report(general=False)):
        text = report.model_dump_json()
        assert mistakes(json.loads(text)) == []
        assert Report.model_validate_json(text) == report
    assert json.loads(unbounded.model_dump_json())["prompts"]["detectable_drop"] is None


@pytest.mark.parametrize(
    "change", [{"schema_version": 1}, {"more": 1}, {"verdict": "maybe"}, {"name": 5}, {"perplexity": None}]
)
def test_anything_else_is_not(change: dict[str, Any]) -> None:
    tree = {**json.loads(a_report().model_dump_json()), **change}
    assert len(mistakes(tree)) == 1
    with pytest.raises(ValueError, match=r"[12] validation error"):
        Report.model_validate_json(json.dumps(tree))
