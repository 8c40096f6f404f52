"""What `finetune plan` found: for a person, and for a program."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.model.memory import Estimate
from finetune.planning.plan import Option, PlanReport
from finetune.planning.together import TogetherReport
from finetune.training.budget import MemoryPlan


def show_plan(console: Console, report: PlanReport | TogetherReport, gpu: bool) -> None:
    """Print a plan within 80 columns. `gpu`: it was asked whether a given GPU suffices."""
    if isinstance(report, PlanReport):
        _show_alone(console, report, gpu)
    else:
        _show_together(console, report, gpu)
    _show_cost(console, report)


def to_json(report: PlanReport | TogetherReport) -> str:
    """Everything as one JSON object; sizes in bytes."""
    whole = _alone(report) if isinstance(report, PlanReport) else _together(report)
    return json.dumps(whole, indent=2)


def _show_alone(console: Console, report: PlanReport, gpu: bool) -> None:
    total, trained = report.shape.parameters, report.trained
    _line(console, "model", f"{report.base}: {total:,} parameters, {trained:,} of them trained ({trained / total:.2%})")
    load = report.load
    _line(console, "data", f"{load.examples:,} examples an epoch, the longest of {load.longest:,} tokens")
    _line(console, "run", f"{load.steps:,} steps, {load.tokens:,.0f} tokens, {load.trained:,.0f} of them trained")
    _line(console, "plan", report.plan.describe())
    console.print()
    console.print(_memory(report))
    console.print()
    if report.paged:
        _line(console, "paged", f"{_size(report.paged)} of the optimizer, on the GPU only while there is room")
    _line(console, "room", _room(report, gpu))
    for option in report.options:
        _line(console, option.name, _verdict(option, report.plan), "green" if option.fits else "red")


def _show_together(console: Console, report: TogetherReport, gpu: bool) -> None:
    base = f"{report.base}: {report.parameters:,} parameters, {_size(report.base_bytes)}, there once for all"
    _line(console, "model", base)
    _line(console, "plan", report.plan.describe())
    console.print()
    console.print(_members(report))
    console.print()
    _line(console, "room", _room(report, gpu))
    fits = "fits" if report.fits else "does not fit"
    one = max(member.alone.peak for member in report.members)
    text = f"{fits}: {_size(report.peak)}, and one after the other {_size(one)}"
    _line(console, "at once", text, "green" if report.fits else "red")


def _members(report: TogetherReport) -> Table:
    """A row for each adapter as it would be alone, and one for all at once."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 1))
    unit, name = (1e9, "GB") if report.peak >= 1e10 else (1e6, "MB")
    table.add_column(f"memory in {name}")
    for column in ("examples", "steps", "tokens", "states", "step", "peak"):
        table.add_column(column, justify="right")
    for member in report.members:
        load, sizes = member.need.load, (member.states, member.step, member.alone.peak)
        counts = (f"{load.examples:,}", f"{load.steps:,}", f"{load.tokens:,.0f}")
        table.add_row(Text(member.name), *counts, *(f"{size / unit:,.1f}" for size in sizes))
    sizes = (report.states, report.step, report.peak)
    counts = ("", f"{report.steps:,}", f"{report.tokens:,.0f}")
    table.add_row("all at once", *counts, *(f"{size / unit:,.1f}" for size in sizes), style="bold")
    return table


def _alone(report: PlanReport) -> dict[str, Any]:
    options = [
        {
            "name": option.name,
            "asked_for": option.own,
            "fits": option.fits,
            "peak": option.estimate.peak,
            "parts": _parts(option.estimate),
            "best_plan": asdict(option.plan),
            "best_plan_peak": option.needs,
        }
        for option in report.options
    ]
    return {
        "name": report.name,
        "base": report.base,
        "device": report.device,
        "room": report.room,
        "fits": report.fits,
        "parameters": {"total": report.shape.parameters, "trained": report.trained},
        "load": asdict(report.load),
        "plan": asdict(report.plan),
        "options": options,
        "paged": report.paged,
        "flops": report.flops,
        "cost": report.cost._asdict() if report.cost else None,
    }


def _together(report: TogetherReport) -> dict[str, Any]:
    adapters = [
        {
            "name": member.name,
            "trained": member.trained,
            "load": asdict(member.need.load),
            "states": member.states,
            "alone": {
                "plan": asdict(member.plan),
                "peak": member.alone.peak,
                "fits": member.alone.peak <= report.room,
                "parts": _parts(member.alone),
            },
        }
        for member in report.members
    ]
    return {
        "base": report.base,
        "device": report.device,
        "room": report.room,
        "fits": report.fits,
        "parameters": report.parameters,
        "adapters": adapters,
        "together": {
            "plan": asdict(report.plan),
            "steps": report.steps,
            "tokens": report.tokens,
            "peak": report.peak,
            "parts": {"base": report.base_bytes, "states": report.states, "step": report.step},
        },
        "flops": report.flops,
        "cost": report.cost._asdict() if report.cost else None,
    }


def _parts(found: Estimate) -> dict[str, int]:
    return {part.name: part.bytes for part in found.parts}


def _room(report: PlanReport | TogetherReport, gpu: bool) -> str:
    where = "on such a GPU" if gpu else f"on this machine ({report.device})"
    return f"{_size(report.room)} {where}, what libraries and others take left out"


def _memory(report: PlanReport) -> Table:
    """Bytes of every part, the precisions side by side."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 1))
    unit, name = (1e9, "GB") if max(option.estimate.peak for option in report.options) >= 1e10 else (1e6, "MB")
    table.add_column(f"memory in {name}")
    for option in report.options:
        table.add_column(Text(option.name), justify="right", style="bold" if option.own else "")
    parts = [_parts(option.estimate) for option in report.options]
    for name in dict.fromkeys(name for each in parts for name in each):
        table.add_row(name, *(f"{each[name] / unit:,.1f}" if name in each else "-" for each in parts))
    table.add_row("peak", *(f"{option.estimate.peak / unit:,.1f}" for option in report.options), style="bold")
    return table


def _verdict(option: Option, plan: MemoryPlan) -> str:
    """Whether it fits; the plan that it would need, where that is another one."""
    fits = "fits" if option.fits else "does not fit"
    same = replace(option.plan, dense_bytes=0) == replace(plan, dense_bytes=0)
    return f"{fits}: {_size(option.needs)}" + ("" if same else f" with {option.plan.describe()}")


def _show_cost(console: Console, report: PlanReport | TogetherReport) -> None:
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
