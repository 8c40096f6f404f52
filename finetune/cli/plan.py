"""plan: what a run needs and costs, before it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from finetune.cli.app import app, out
from finetune.cli.runs import split_overrides
from finetune.cli.sizes import parse_bytes


class PlanFormat(StrEnum):
    text = "text"
    json = "json"


@app.command()
def plan(
    what: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="recipes, and dotted overrides such as train.epochs=1"),
    ],
    gpu: Annotated[str | None, typer.Option(metavar="SIZE", help="memory of a GPU to compare with: 24GB")] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help="speed to compute the time from")] = None,
    price: Annotated[float | None, typer.Option(help="of an hour, in any currency")] = None,
    watts: Annotated[float | None, typer.Option(help="drawn while training")] = None,
    format: Annotated[PlanFormat, typer.Option(help="json: sizes in bytes")] = PlanFormat.text,
) -> None:
    """Count memory, steps, time and cost of a recipe without its weights; exit code 1 if it does not fit --gpu.

    Several recipes of one base are planned as `finetune train` trains them: at once.
    """
    from finetune.recipe import load_recipe

    size = None if gpu is None else parse_bytes(gpu, "--gpu")
    recipes, overrides = split_overrides(what, "plan")
    loaded = [load_recipe(recipe, overrides) for recipe in recipes]
    from finetune.jobs import check_together
    from finetune.planning.plan import Assumptions, make_plan
    from finetune.planning.together import plan_together
    from finetune.terminal import plan as terminal

    given = Assumptions(size, tokens_per_second, price, watts)
    check_together(loaded)
    report = make_plan(loaded[0], given) if len(loaded) == 1 else plan_together(loaded, given)
    if format is PlanFormat.json:
        print(terminal.to_json(report))
    else:
        terminal.show_plan(out, report, gpu=size is not None)
    raise typer.Exit(0 if size is None or report.fits else 1)
