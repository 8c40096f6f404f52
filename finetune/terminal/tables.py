"""Reports and adapters -> tables. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from finetune.model.store import WEIGHTS, Card, StoredAdapter

if TYPE_CHECKING:
    from finetune.evaluation.baseline import Baseline

MAX_LISTED = 10  # prompts or differences in one line
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def report_table(report: object) -> Table:
    """The headline numbers of an evaluation, base beside adapter, each with its 95% interval."""
    from finetune.evaluation.report import Estimate, Report

    assert isinstance(report, Report)

    def cell(e: Estimate) -> str:
        return f"{e.value:.3f}  ({e.low:.3f} to {e.high:.3f})"

    table = Table(title=f"{report.name} against its base {report.base}", title_justify="left")
    for heading in ("", "base", "adapter", "adapter / base"):
        table.add_column(heading)
    for name, pair in (("held-out", report.perplexity.heldout), ("general", report.perplexity.general)):
        if pair:
            table.add_row(f"perplexity, {name}", cell(pair.base), cell(pair.adapter), cell(pair.ratio))
    if prompts := report.prompts:
        sides = [f"{p.passed}/{p.total}  ({p.low:.1%} to {p.high:.1%})" for p in (prompts.base, prompts.adapter)]
        table.add_row("prompts passed", *sides, f"{prompts.gain.value:+.1%}")
    return table


def gates_table(report: object) -> Table | None:
    """Each gate with its verdict, or None if the recipe has none."""
    from finetune.evaluation.report import Report

    assert isinstance(report, Report)
    if not report.gates:
        return None
    table = Table("gate", "value", "verdict", title="gates", title_justify="left")
    for gate in report.gates:
        colour = _COLOURS[gate.verdict]
        table.add_row(
            f"{gate.metric} {gate.bound}",
            f"{gate.value:.4g}",
            f"[{colour}]{gate.verdict}[/]" + ("" if gate.verdict == "pass" else f" {gate.reason}"),
        )
    return table


def compare_reports(console: Console, reports: Sequence[Baseline]) -> None:
    """Print several reports side by side, then each against the first, prompt by prompt."""
    table = Table("report", "adapter", "prompts passed", "perplexity, held-out", "adapter / base", "verdict")
    for found in reports:
        heldout, prompts = found.report.perplexity.heldout, found.report.prompts
        rate = f"{prompts.adapter.passed}/{prompts.adapter.total}" if prompts else "-"
        span = f"  ({prompts.adapter.low:.1%} to {prompts.adapter.high:.1%})" if prompts else ""
        ratio = f"{heldout.ratio.value:.3f}  ({heldout.ratio.low:.3f} to {heldout.ratio.high:.3f})"
        perplexity = f"{heldout.adapter.value:.3f}  ({heldout.adapter.low:.3f} to {heldout.adapter.high:.3f})"
        table.add_row(found.where, found.report.name, rate + span, perplexity, ratio, found.report.verdict)
    console.print(table)
    for found in reports[1:]:
        _print_pair(console, reports[0], found)


def _print_pair(console: Console, first: Baseline, second: Baseline) -> None:
    from finetune.evaluation.baseline import pair

    paired = pair(first, second)
    lines = [f"{second.where} against {first.where}:"]
    if paired.differences:
        lines.append("  they were made under different conditions, so a difference says little about the adapter:")
        lines += [f"    {text}" for text in paired.differences[:MAX_LISTED]]
        lines += [f"    ... and {len(paired.differences) - MAX_LISTED} more"] * (len(paired.differences) > MAX_LISTED)
    gain = f"{paired.gain.value:+.1%} ({paired.gain.low:+.1%} to {paired.gain.high:+.1%})"
    lines.append(f"  prompts passed {gain}, exact McNemar p = {paired.p_value:.2g}")
    for word, names in (("fixed", paired.fixed), ("broken", paired.broken)):
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        lines.append(f"  {word}: {len(names)}" + (f" ({', '.join(names[:MAX_LISTED])}{more})" if names else ""))
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def adapters_table(adapters: Sequence[StoredAdapter]) -> Table:
    table = Table("adapter", "base", "method", "r", "size", "held-out loss", "prompts passed", "trained")
    for adapter in adapters:
        card, size = adapter.card, (adapter.folder / WEIGHTS).stat().st_size
        rate = card.metrics.get("prompts.pass_rate")
        table.add_row(
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
    table = Table(show_header=False, box=None, title=f"{adapter.name}  ({adapter.folder})", title_justify="left")
    for name, value in _facts(card, adapter.folder):
        table.add_row(name, value)
    console.print(table)


def _facts(card: Card, folder: Path) -> list[tuple[str, str]]:
    size = (folder / WEIGHTS).stat().st_size
    facts = [
        ("base", f"{card.base.model} {card.base.revision or ''} in {card.base.quantization}"),
        ("base fingerprint", ", ".join(f"{part} {digest[:12]}" for part, digest in card.base.fingerprint.items())),
        ("adapter", f"{card.method}, r {card.r}, alpha {card.alpha:g}, {size / 1024**2:.1f} MiB"),
        ("trained parameters", f"{card.parameters['trained']:,} of {card.parameters['total']:,}"),
        ("training", f"{card.steps:,} steps, {card.trained_tokens:,} trained tokens, seed {card.seed}"),
        ("cost", f"{card.seconds:,.0f} s, {card.peak_memory_bytes / 1024**3:.1f} GiB peak"),
        ("loss", ", ".join(f"{name} {value:.4f}" for name, value in card.loss.items())),
        ("system prompt", card.system or "none"),
        ("created", card.created),
        ("versions", ", ".join(f"{name} {value}" for name, value in card.versions.items())),
    ]
    facts += [(name, f"{m['value']:.4g} ({m['low']:.4g} to {m['high']:.4g})") for name, m in card.metrics.items()]
    facts += [("data", f"{name} sha256 {digest[:12]}") for name, digest in card.data.items()]
    report = folder / "report" / "report.html"
    return [*facts, ("report", str(report) if report.exists() else "none; run finetune eval")]
