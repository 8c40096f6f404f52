"""Adapters -> tables. Nothing here loads torch, and no cell is read as rich's markup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.store.folders import WEIGHTS, Card, StoredAdapter
from finetune.terminal.tables import add_row, make_table

if TYPE_CHECKING:
    from finetune.store.difference import Difference, Pair
    from finetune.store.verify import Check

_COLOURS = {"ok": "green", "wrong": "red", "unknown": "yellow"}


def adapters_table(adapters: Sequence[StoredAdapter]) -> Table:
    table = make_table(["adapter", "base", "method", "r", "size", "held-out loss", "prompts passed", "trained"])
    for adapter in adapters:
        card, size = adapter.card, (adapter.folder / WEIGHTS).stat().st_size
        rate = card.metrics.get("prompts.pass_rate")
        add_row(
            table,
            adapter.name,
            f"{card.base.model} ({card.base.quantization})",
            card.method,
            str(card.r),
            f"{size / 1024**2:.1f} MiB",
            f"{card.loss['heldout']:.3f}" if "heldout" in card.loss else "-",
            f"{rate['value']:.1%}" if rate else "not evaluated",
            card.created[:10],
        )
    return table


def show_adapter(console: Console, adapter: StoredAdapter) -> None:
    """Everything a card says, in words."""
    card = adapter.card
    table = Table(show_header=False, box=None, title=Text(f"{adapter.name}  ({adapter.folder})"))
    table.title_justify = "left"
    for name, value in _facts(card, adapter.folder):
        add_row(table, name, value)
    console.print(table)


def _facts(card: Card, folder: Path) -> Iterator[tuple[str, str]]:
    size = (folder / WEIGHTS).stat().st_size
    if card.source is not None:
        at = f" at {card.source.revision}" if card.source.revision else ""
        yield "from", f"{card.source.kind}: {card.source.place}{at}"
    yield from _facts_of_base(card)
    yield "adapter", f"{card.method}, r {card.r}, alpha {card.alpha:g}, {size / 1024**2:.1f} MiB"
    yield from _facts_of_training(card)
    yield "system prompt", card.system or "none"
    yield "created", card.created
    yield "versions", ", ".join(f"{name} {value}" for name, value in card.versions.items()) or "not known"
    for name, m in card.metrics.items():
        yield name, f"{m['value']:.4g} ({m['low']:.4g} to {m['high']:.4g})"
    yield from (("data", f"{name} sha256 {digest[:12]}") for name, digest in card.data.items())
    if not card.data:
        yield "data", "not known"
    yield "recipe", f"sha256 {card.recipe_sha256[:12]}" if card.recipe_sha256 else "no hash in the card"
    yield from (("file", f"{name} sha256 {digest[:12]}") for name, digest in card.files.items())
    report = folder / "report" / "report.html"
    yield "report", str(report) if report.exists() else "none; run finetune eval"


def _facts_of_base(card: Card) -> Iterator[tuple[str, str]]:
    base = card.base
    yield "base", f"{base.model} {base.revision or ''} in {base.quantization}"
    # In full: whoever compares two bases compares these.
    yield from ((f"base {part.replace('_', ' ')}", f"sha256 {digest}") for part, digest in base.fingerprint.items())
    yield from (("base file", f"{name} sha256 {digest}") for name, digest in base.weights_sha256.items())
    if not base.verified:
        yield "base checked", "not verified: named at the import"
    yield "licence of the base", base.licence or "not known"


def _facts_of_training(card: Card) -> Iterator[tuple[str, str]]:
    trained, total = card.parameters.get("trained"), card.parameters.get("total")
    if trained is not None:
        yield "trained parameters", f"{trained:,}" + (f" of {total:,}" if total is not None else "")
    if card.train_rows is not None and card.heldout_rows is not None:
        yield "rows", f"{card.train_rows:,} to train on, {card.heldout_rows:,} held out"
    if card.steps is not None and card.trained_tokens is not None:
        yield "training", f"{card.steps:,} steps, {card.trained_tokens:,} trained tokens, seed {card.seed}"
    if card.seconds is not None and card.peak_memory_bytes is not None:
        yield "cost", f"{card.seconds:,.0f} s, {card.peak_memory_bytes / 1024**3:.1f} GiB peak"
    if card.loss:
        yield "loss", ", ".join(f"{name} {value:.4f}" for name, value in card.loss.items())


def checks_table(checks: Sequence[Check]) -> Table:
    """What was verified: ok, wrong, or not to be known here."""
    table = make_table(["checked", "", "found"])
    for check in checks:
        add_row(table, check.what, Text(check.state, style=_COLOURS[check.state]), check.text)
    return table


def show_difference(console: Console, found: Difference) -> None:
    """Print in what two adapters differ, then how far apart their weights are."""
    names = (found.first.name, found.second.name)
    for title, pairs in (("base", found.base), ("recipe", found.recipe), ("data", found.data)):
        _print_pairs(console, title, pairs, names)
    if found.metrics:
        table = make_table(["metric", *names], "metrics")
        for name, both in found.metrics.items():
            shown = (f"{m['value']:.4g} ({m['low']:.4g} to {m['high']:.4g})" if m else "-" for m in both)
            add_row(table, name, *shown)
        console.print(table)
    if found.weights is None:
        console.print(Text(f"weights: not compared: {found.note}"))
        return
    table = make_table(["module", "distance", "cosine"], f"weights: |{names[0]} - {names[1]}| / |{names[0]}|")
    for name, distance in [*found.modules.items(), ("all", found.weights)]:
        apart = "not in the first" if math.isinf(distance.relative) else f"{distance.relative:.4f}"
        add_row(table, name, apart, "-" if distance.cosine is None else f"{distance.cosine:+.4f}")
    console.print(table)


def _print_pairs(console: Console, title: str, pairs: dict[str, Pair], names: tuple[str, str]) -> None:
    if not pairs:
        console.print(Text(f"{title}: the same"))
        return
    table = make_table([title, *names])
    for key, both in pairs.items():
        add_row(table, key, *("-" if value is None else value[:12] if _is_hash(value) else value for value in both))
    console.print(table)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(sign in "0123456789abcdef" for sign in text)
