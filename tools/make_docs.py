"""Write the pages of docs/ that are made from the code: `make docs`.

recipe.md and recipe.schema.json from the schema, checks.md from the rules, prompts.md from the checks of prompts,
report.schema.json from the report.
"""

from __future__ import annotations

from pathlib import Path

from finetune.data.lint.rules import render_rules
from finetune.evaluation.checks.reference import render_checks
from finetune.evaluation.report import render_schema as render_report_schema
from finetune.recipe.reference import render_reference, render_schema

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Write the five files."""
    (DOCS / "recipe.md").write_text(render_reference(), encoding="utf-8")
    (DOCS / "recipe.schema.json").write_text(render_schema(), encoding="utf-8")
    (DOCS / "checks.md").write_text(render_rules(), encoding="utf-8")
    (DOCS / "prompts.md").write_text(render_checks(), encoding="utf-8")
    (DOCS / "report.schema.json").write_text(render_report_schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
