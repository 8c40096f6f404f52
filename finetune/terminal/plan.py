"""What `finetune plan` found: for a person, and for a program."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.planning.plan import Option, PlanReport
from finetune.training.budget import MemoryPlan


def show_plan(console: Console, report: PlanReport, gpu: bool) -> None:
    """Print a plan within 80 columns. `gpu`: it was asked whether a given GPU suffices."""
    total, trained = report.shape.parameters, report.trained
    _line(console, "model", f"{report.base}: {total:,} parameters, {trained:,} of them trained ({trained / total:.2%})")
    load = report.load
    _line(console, "data", f"{load.examples:,} examples an epoch, the longest of {load.longest:,} tokens")
    _line(console, "run", f"{load.steps:,} steps, {load.tokens:,.0f} tokens, {load.trained:,.0f} of them trained")
    _line(console, "plan", report.plan.describe())
    console.print()
    console.print(_memory(report))
    console.print()
    where = "on such a GPU" if gpu else f"on this machine ({report.device})"
    _line(console, "room", f"{_size(report.room)} {where}, what libraries and others take left out")
    for option in report.options:
        _line(console, option.name, _verdict(option, report.plan), "green" if option.fits else "red")
    _show_cost(console, report)


def to_json(report: PlanReport) -> str:
    """Everything as one JSON object; sizes in bytes."""
    options = [
        {
            "name": option.name,
            "asked_for": option.own,
            "fits": option.fits,
            "peak": option.estimate.peak,
            "parts": {part.name: part.bytes for part in option.estimate.parts},
            "best_plan": asdict(option.plan),
            "best_plan_peak": option.needs,
        }
        for option in report.options
    ]
    whole = {
        "name": report.name,
        "base": report.base,
        "device": report.device,
        "room": report.room,
        "fits": report.fits,
        "parameters": {"total": report.shape.parameters, "trained": report.trained},
        "load": asdict(report.load),
        "plan": asdict(report.plan),
        "options": options,
        "flops": report.flops,
        "cost": report.cost._asdict() if report.cost else None,
    }
    return json.dumps(whole, indent=2)


def _memory(report: PlanReport) -> Table:
    """Bytes of every part, the precisions side by side."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 1))
    unit, name = (1e9, "GB") if max(option.estimate.peak for option in report.options) >= 1e10 else (1e6, "MB")
    table.add_column(f"memory in {name}")
    for option in report.options:
        table.add_column(Text(option.name), justify="right", style="bold" if option.own else "")
    parts = [{part.name: part.bytes for part in option.estimate.parts} for option in report.options]
    for name in dict.fromkeys(name for each in parts for name in each):
        table.add_row(name, *(f"{each[name] / unit:,.1f}" if name in each else "-" for each in parts))
    table.add_row("peak", *(f"{option.estimate.peak / unit:,.1f}" for option in report.options), style="bold")
    return table


def _verdict(option: Option, plan: MemoryPlan) -> str:
    """Whether it fits; the plan that it would need, where that is another one."""
    fits = "fits" if option.fits else "does not fit"
    same = replace(option.plan, dense_bytes=0) == replace(plan, dense_bytes=0)
    return f"{fits}: {_size(option.needs)}" + ("" if same else f" with {option.plan.describe()}")


def _show_cost(console: Console, report: PlanReport) -> None:
    if report.cost is None:
        _line(console, "time", "unknown on that GPU; give --tokens-per-second")
        return
    _line(console, "time", f"about {_duration(report.cost.seconds)} {report.cost.basis}")
    if report.cost.kilowatt_hours is not None:
        _line(console, "energy", f"{report.cost.kilowatt_hours:,.3g} kWh")
    if report.cost.price is not None:
        _line(console, "cost", f"{report.cost.price:,.2f}")


def _line(console: Console, name: str, text: str, style: str = "") -> None:
    """A name and what is known, wrapped under itself."""
    grid = Table.grid(padding=(0, 1, 0, 1))
    grid.add_column(width=12)
    grid.add_column()
    grid.add_row(Text(name, style="bold"), Text(text, style=style))
    console.print(grid)


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
