"""check and init: before the first run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.app import Overrides, app, out, say
from finetune.errors import FinetuneError, RecipeError

if TYPE_CHECKING:
    from finetune.inspection.check import CheckReport


class ReportFormat(StrEnum):
    text = "text"
    json = "json"
    github = "github"


@app.command("check")
def check_command(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="such as recipes/pizza.yaml")] = None,
    overrides: Overrides = None,
    format: Annotated[ReportFormat, typer.Option(help="github: annotations of a workflow run")] = ReportFormat.text,
    explain: Annotated[str | None, typer.Option(metavar="CODE", help="say what a code means, such as D013")] = None,
) -> None:
    """Find what would ruin a run: in the recipe, the rows and their tokens; exit code 1 on errors."""
    if explain is not None:
        _explain(explain.upper())
        return
    if recipe is None:
        raise FinetuneError("no recipe was given", fix="write finetune check RECIPE, or --explain CODE")
    from finetune.terminal import checks

    report = _report(recipe, overrides or [])
    if format is ReportFormat.text:
        checks.show_report(out, report)
    else:
        print(checks.to_json(report) if format is ReportFormat.json else checks.to_github(report))
    raise typer.Exit(0 if report.sound else 1)


def _report(recipe: Path, overrides: list[str]) -> CheckReport:
    from finetune.inspection.check import check, invalid_recipe
    from finetune.recipe import resolve_recipe

    try:
        resolved = resolve_recipe(recipe, overrides)
    except RecipeError as error:
        return invalid_recipe(error)
    return check(resolved.recipe, resolved.origins)


def _explain(code: str) -> None:
    from finetune.data.lint.rules import RULES

    if code not in RULES:
        raise FinetuneError(f"no finding has the code {code!r}", fix=f"there are {', '.join(RULES)}")
    from finetune.terminal.checks import explain

    say(explain(code))


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="a data file, folder, glob or hf://datasets/... path")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="default: NAME.yaml")] = None,
    base: Annotated[str, typer.Option(help="base model: tiny, a Hub id or a folder")] = "tiny",
    name: Annotated[str | None, typer.Option(help="the adapter's name; default: from the file")] = None,
) -> None:
    """Look at a data file and write a commented recipe for it that runs."""
    from finetune.files import atomic_write_text
    from finetune.inspection.draft import draft_recipe

    draft = draft_recipe(data, base, name, output)
    if draft.file.exists():
        raise FinetuneError("is already there", where=str(draft.file), fix="name another file with --output")
    atomic_write_text(draft.file, draft.text)
    say(draft.found)
    say(f"recipe: {draft.file}")
    say(f"next: finetune check {draft.file} · finetune train {draft.file}")
