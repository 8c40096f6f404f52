"""plan: what a run needs and costs, before it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from finetune.cli.app import Overrides, RecipePath, app, out
from finetune.cli.sizes import parse_bytes


class PlanFormat(StrEnum):
    text = "text"
    json = "json"


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(metavar="SIZE", help="memory of a GPU to compare with: 24GB")] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help="speed to compute the time from")] = None,
    price: Annotated[float | None, typer.Option(help="of an hour, in any currency")] = None,
    watts: Annotated[float | None, typer.Option(help="drawn while training")] = None,
    format: Annotated[PlanFormat, typer.Option(help="json: sizes in bytes")] = PlanFormat.text,
) -> None:
    """Count memory, steps, time and cost of a recipe without its weights; exit code 1 if it does not fit --gpu."""
    from finetune.recipe import load_recipe

    size = None if gpu is None else parse_bytes(gpu, "--gpu")
    loaded = load_recipe(recipe, overrides or [])
    from finetune.planning.plan import Assumptions, make_plan
    from finetune.terminal.plan import show_plan, to_json

    report = make_plan(loaded, Assumptions(size, tokens_per_second, price, watts))
    if format is PlanFormat.json:
        print(to_json(report))
    else:
        show_plan(out, report, gpu=size is not None)
    raise typer.Exit(0 if size is None or report.fits else 1)
