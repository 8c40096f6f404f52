"""list and show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.app import Store, app, out, say


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
def show(name: Annotated[str, typer.Argument(help="adapter name or folder")], store: Store = Path("adapters")) -> None:
    """Show everything known about one adapter."""
    from finetune.model.store import find_adapter
    from finetune.terminal.tables import show_adapter

    show_adapter(out, find_adapter(name, store))
