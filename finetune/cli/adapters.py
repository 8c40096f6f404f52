"""list and show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.app import Overrides, Store, app, out, say


@app.command("list")
def list_command(store: Store = Path("adapters")) -> None:
    """List the adapters of a folder."""
    from finetune.model.store import list_adapters
    from finetune.terminal.tables import adapters_table

    adapters = list_adapters(store)
    if not adapters:
        say(f"{store} holds no adapter; train one with finetune train recipes/pizza.yaml")
        return
    out.print(adapters_table(adapters))


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="ADAPTER|RECIPE", help="adapter name or folder, or a recipe's .yaml")],
    overrides: Overrides = None,
    store: Store = Path("adapters"),
    count: Annotated[int, typer.Option("--number", "-n", min=1, help="examples of a recipe to show")] = 3,
    html: Annotated[Path | None, typer.Option(help="write the examples of a recipe as a page, too")] = None,
) -> None:
    """Show everything known about an adapter, or a recipe's examples token by token as the model sees them."""
    if what.endswith((".yaml", ".yml")):
        _show_examples(Path(what), overrides or [], count, html)
        return
    from finetune.model.store import find_adapter
    from finetune.terminal.tables import show_adapter

    show_adapter(out, find_adapter(what, store))


def _show_examples(recipe: Path, overrides: list[str], count: int, html: Path | None) -> None:
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from finetune.files import atomic_write_text
    from finetune.inspection.preview import preview
    from finetune.terminal.preview import previews_html, show_previews

    previews = preview(loaded, count)
    show_previews(out, previews)
    if html is not None:
        atomic_write_text(html, previews_html(loaded.name, previews))
        say(f"page: {html}")
