"""train and eval."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from finetune.cli.app import Overrides, RecipePath, app, out, say

EXIT_CODES = {"none": 0, "pass": 0, "fail": 1, "inconclusive": 3}


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="discard what an interrupted run left")] = False,
) -> None:
    """Train the recipe's adapter; run it again after an interruption and it goes on."""
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from finetune import pipeline
    from finetune.terminal.progress import RunDisplay

    main_process = os.environ.get("RANK", "0") == "0"
    with RunDisplay(out if main_process else Console(quiet=True)) as show:
        adapter = pipeline.train(loaded, emit=show, fresh=fresh)
    if main_process:
        say(f"adapter written to {adapter.folder}")
        say(f"next: finetune eval {recipe} · finetune chat --adapter {adapter.folder}")


@app.command("eval")
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="name or folder; default: the recipe's")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="an earlier report folder to hold it against")] = None,
    margin: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="drop in pass rate against the baseline that is put up with")
    ] = 0.05,
) -> None:
    """Compare an adapter with its base and write the report; the recipe's gates decide the exit code."""
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from finetune import pipeline
    from finetune.terminal.progress import RunDisplay
    from finetune.terminal.tables import gates_table, report_table

    with RunDisplay(out) as show:
        report, folder = pipeline.evaluate(loaded, adapter, baseline=baseline, margin=margin, emit=show)
    out.print(report_table(report))
    if gates := gates_table(report):
        out.print(gates)
    say(f"verdict: {report.verdict}" if report.gates else "no gates in the recipe, so no verdict")
    say(f"report: {folder / 'report.html'}")
    raise typer.Exit(EXIT_CODES[report.verdict])
