"""train, eval and report."""

from __future__ import annotations

import os
from pathlib import Path
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


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="as finetune eval writes them")],
) -> None:
    """Show a saved report, or compare several with the first, without any model; exits as the one report's eval did."""
    from finetune.evaluation.baseline import read_baseline
    from finetune.evaluation.report import read_report
    from finetune.terminal import tables

    if len(folders) > 1:
        tables.compare_reports(out, [read_baseline(folder) for folder in folders])
        return
    found = read_report(folders[0])
    out.print(tables.report_table(found))
    if gates := tables.gates_table(found):
        out.print(gates)
    say(f"verdict: {found.verdict}" if found.gates else "no gates, so no verdict")
    raise typer.Exit(EXIT_CODES[found.verdict])
