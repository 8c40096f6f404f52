"""train, eval and report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetune.cli.app import Overrides, RecipePath, app, out, say
from finetune.cli.sizes import parse_bytes
from finetune.errors import FinetuneError

EXIT_CODES = {"none": 0, "pass": 0, "fail": 1, "inconclusive": 3}


@app.command()
def train(
    what: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="recipes, and dotted overrides such as train.epochs=1"),
    ],
    fresh: Annotated[bool, typer.Option("--fresh", help="discard what an interrupted run left")] = False,
    checkpoint_every: Annotated[
        int, typer.Option(metavar="STEPS", min=1, help="optimizer steps between checkpoints to resume from")
    ] = 100,
    tracker: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="experiment tracker by accelerate's name, such as tensorboard; repeatable"),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="of the device that may be used, such as 8GB; default: all free")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="compile what lies between matrix products: slower start; steps may gain")
    ] = False,
) -> None:
    """Train the recipe's adapter; run it again after an interruption and it goes on.

    Several recipes of one base are trained at once: each adapter comes out as if trained alone, sooner.
    It runs on the GPU if there is one, else on the CPU; CUDA_VISIBLE_DEVICES= (empty) hides GPUs.
    """
    from finetune.recipe import load_recipe

    cap = None if memory is None else parse_bytes(memory, "--memory")
    recipes, overrides = split_overrides(what, "train")
    loaded = [load_recipe(recipe, overrides) for recipe in recipes]
    from finetune import pipeline
    from finetune.jobs import RunOptions
    from finetune.terminal.progress import RunDisplay

    main_process = os.environ.get("RANK", "0") == "0"
    with RunDisplay(out if main_process else Console(quiet=True)) as show:
        options = RunOptions(checkpoint_every, cap, compiled)
        adapters = pipeline.train_together(loaded, options, emit=show, fresh=fresh, trackers=tracker or [])
    for recipe, adapter in zip(recipes, adapters, strict=True) if main_process else ():
        say(f"adapter written to {adapter.folder}")
        say(f"next: finetune eval {recipe} · finetune chat --adapter {adapter.folder}")


def split_overrides(what: list[str], command: str) -> tuple[list[Path], list[str]]:
    """Tell recipes from overrides. Raises FinetuneError where no recipe is named."""
    first, *rest = what
    named = [word for word in rest if word.endswith((".yaml", ".yml"))]
    if "=" in first and not Path(first).exists():
        raise FinetuneError(f"no recipe was given, only {first}", fix=f"finetune {command} RECIPE [KEY=VALUE]...")
    return [Path(first), *map(Path, named)], [word for word in rest if word not in named]


@app.command("eval")
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="name or folder; default: the recipe's")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="an earlier report folder that gates hold it against")] = None,
    compare: Annotated[
        list[str] | None, typer.Option(help="a further adapter or report folder to set beside it (repeatable)")
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=1, max=1000, help="answers to each prompt; above 1 needs generation.temperature")
    ] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="compute again what an earlier evaluation computed")] = False,
) -> None:
    """Compare an adapter with its base and write the report; the recipe's gates decide the exit code.

    Run it again after an interruption and it goes on.
    """
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from finetune import pipeline
    from finetune.terminal.progress import RunDisplay
    from finetune.terminal.tables import gates_table, report_table

    with RunDisplay(out) as show:
        report, folder = pipeline.evaluate(
            loaded, adapter, baseline=baseline, compare=compare or (), repeat=repeat, fresh=fresh, emit=show
        )
    out.print(report_table(report))
    if gates := gates_table(report):
        out.print(gates)
    say(f"verdict: {report.verdict}" if report.gates else "no gates in the recipe, so no verdict")
    say(f"report: {folder / 'report.html'}")
    raise typer.Exit(EXIT_CODES[report.verdict])


@app.command()
def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER...", help="as finetune eval writes them")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of report.json")] = False,
) -> None:
    """Show a saved report, or compare several with the first, without any model; exits as the one report's eval did."""
    from finetune.evaluation.folder import read_evaluation, read_report
    from finetune.evaluation.report import render_schema
    from finetune.terminal import tables

    if schema:
        typer.echo(render_schema(), nl=False)
        return
    if not folders:
        raise FinetuneError("no report folder was given", fix="finetune report FOLDER..., or finetune report --schema")
    if len(folders) > 1:
        tables.compare_reports(out, [(str(folder), read_evaluation(folder)) for folder in folders])
        return
    found = read_report(folders[0])
    out.print(tables.report_table(found))
    if gates := tables.gates_table(found):
        out.print(gates)
    say(f"verdict: {found.verdict}" if found.gates else "no gates, so no verdict")
    raise typer.Exit(EXIT_CODES[found.verdict])
