"""blend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.app import Store, app, say


@app.command()
def blend(
    voice: Annotated[str, typer.Argument(metavar="BLEND", help='adapters with weights, as in "pizza+0.5*cheerful"')],
    name: Annotated[str, typer.Argument(help="the new adapter's name")],
    store: Store = Path("adapters"),
    method: Annotated[str, typer.Option(help="cat (exact), svd, ties, dare or linear")] = "cat",
    rank: Annotated[int | None, typer.Option(min=1, help="of svd, ties, dare; default: the largest part's")] = None,
    density: Annotated[float, typer.Option(help="share of the changes that ties and dare keep")] = 0.5,
    seed: Annotated[int, typer.Option(help="seed of what dare drops")] = 0,
) -> None:
    """Save a weighted sum of adapters as an adapter of its own."""
    from finetune.serving.blending import save_blend

    made = save_blend(voice, name, store, method=method, rank=rank, density=density, seed=seed)
    say(f"{made.adapter.folder}: {voice} by {method}, rank {made.rank}")
    if made.error:
        say(f"it differs from the exact sum by {made.error:.1%} of its size (Frobenius norm over all layers)")
