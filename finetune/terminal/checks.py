"""What `finetune check` found: for a person, for a program, for a CI run's annotations."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.data.lint.check import Part
from finetune.data.lint.findings import Finding
from finetune.data.lint.rules import RULES, SEVERITIES, Severity
from finetune.inspection.check import CheckReport

SHOWN = 3  # places of one finding
BARS, WIDEST = 10, 40  # of the histogram
_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_ANNOTATIONS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}
_PLACE = re.compile(r"^(?P<file>.+?):(?:row )?(?P<line>\d+)(?::(?P<column>\d+))?$")


def show_report(console: Console, report: CheckReport) -> None:
    """Print the summary, the lengths and every finding with its first places."""
    if report.parts:
        console.print(_summary(report.parts))
        _histogram(console, report)
    for finding in report.findings:
        _show_finding(console, finding)
    counts = _counts(report.findings)
    said = ", ".join(
        f"{count} {name}{'s' * (count != 1 and name != 'info')}" for name, count in counts.items() if count
    )
    console.print(said or "nothing was found", style="green" if report.sound else "bold red", highlight=False)


def to_json(report: CheckReport) -> str:
    """Everything as one JSON object."""
    findings = [
        {
            "code": finding.code,
            "severity": finding.severity,
            "title": finding.rule.title,
            "count": finding.count,
            "why": finding.rule.why,
            "fix": finding.rule.fix,
            "places": [place._asdict() for place in finding.places],
        }
        for finding in report.findings
    ]
    parts = [
        {
            "name": part.name,
            "path": part.path,
            "total": part.total,
            "accepted": part.accepted,
            "rejected": dict(part.rejected),
            "tokens": part.tokens,
            "trained_tokens": part.trained,
            "lengths": _quantiles(part.lengths),
        }
        for part in report.parts
    ]
    whole = {"sound": report.sound, "counts": _counts(report.findings), "parts": parts, "findings": findings}
    return json.dumps(whole, indent=2, ensure_ascii=False)


def to_github(report: CheckReport) -> str:
    """Workflow commands that a GitHub run shows beside the lines of the pull request."""
    lines = []
    for finding in report.findings:
        title = f"{finding.code} {finding.rule.title}"
        for place in finding.places:
            found = _PLACE.match(place.where)
            where = [f"{key}={_escaped(value)}" for key, value in found.groupdict().items() if value] if found else []
            where = [item.replace("column=", "col=") for item in where]
            properties = ",".join([*where, f"title={_escaped(title)}"])
            text = place.message if found or not place.where else f"{place.where}: {place.message}"
            lines.append(f"::{_ANNOTATIONS[finding.severity]} {properties}::{_escaped(text, value=False)}")
    return "\n".join(lines)


def explain(code: str) -> str:
    """Say what a code means."""
    rule = RULES[code]
    return f"{code} ({rule.severity}): {rule.title}\n\nwhy: {rule.why}\nfix: {rule.fix}"


def _summary(parts: Sequence[Part]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("part")
    for name in ("rows", "accepted", "rejected", "tokens", "trained", "per row: median", "99 %", "longest"):
        table.add_column(name, justify="right")
    table.add_column("rejected because")
    for part in parts:
        rejected = part.total - part.accepted
        why = ", ".join(f"{code} {count:,}" for code, count in sorted(part.rejected.items()))
        share = f"{part.trained:,} ({part.trained / part.tokens:.0%})" if part.tokens else "0"
        lengths = [f"{value:,}" for value in list(_quantiles(part.lengths).values())[1:]]
        table.add_row(
            part.name,
            f"{part.total:,}",
            f"{part.accepted:,}",
            f"{rejected:,}",
            f"{part.tokens:,}",
            share,
            *lengths,
            why,
        )
    return table


def _histogram(console: Console, report: CheckReport) -> None:
    """Lengths of the training rows, and the limit."""
    lengths = next(part.lengths for part in report.parts if part.name == "train")
    if not len(lengths):
        return
    least = int(lengths.min())
    width = (int(lengths.max()) - least) // BARS + 1
    counts = np.bincount((lengths - least) // width)
    console.print(f"\ntokens of the training rows (data.max_length {report.max_length:,})", highlight=False)
    for number, count in enumerate(counts.tolist()):
        low = least + number * width
        label = f"{low:,} to {low + width - 1:,}" if width > 1 else f"{low:,}"
        bar = "█" * max(round(WIDEST * count / counts.max()), int(count > 0))
        style = "red" if low > report.max_length else "default"
        console.print(f"{label:>17}  {bar} {count:,}", style=style, highlight=False)
    console.print()


def _show_finding(console: Console, finding: Finding) -> None:
    style, rule = _STYLES[finding.severity], finding.rule
    times = f" ({finding.count:,} times)" if finding.count > 1 else ""
    console.print(f"[{style}]{finding.severity} {finding.code}[/] {escape(rule.title)}{times}", highlight=False)
    for place in finding.places[:SHOWN]:
        where = f"{place.where}: " if place.where else ""
        console.print(f"    {where}{place.message}", markup=False, highlight=False, soft_wrap=True)
    if finding.count > SHOWN:
        console.print(f"    ... and {finding.count - SHOWN:,} more", highlight=False)
    console.print(f"    why: {rule.why}", style="dim", markup=False, highlight=False, soft_wrap=True)
    console.print(f"    fix: {rule.fix}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {name: sum(f.count for f in findings if f.severity == name) for name in SEVERITIES}


def _quantiles(lengths: NDArray[np.int32]) -> dict[str, int]:
    if not len(lengths):
        return {"shortest": 0, "median": 0, "p99": 0, "longest": 0}
    low, middle, most, high = np.quantile(lengths, [0.0, 0.5, 0.99, 1.0], method="inverted_cdf").tolist()
    return {"shortest": int(low), "median": int(middle), "p99": int(most), "longest": int(high)}


def _escaped(text: str, *, value: bool = True) -> str:
    """Escape what a workflow command would read as its own syntax."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if value else text
