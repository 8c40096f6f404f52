"""Reports -> tables. Nothing here loads torch.

A cell is never read as rich's markup: what stands in it may come from a model, a data file or a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from finetune.evaluation.report import Evaluation, Repeats, Report
    from finetune.evaluation.standings import Cell, Standing

MAX_LISTED = 10  # prompts or differences in one line
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
_TONES = {"good": "green", "bad": "red", "unclear": "yellow", "": ""}


def report_table(report: Report) -> Group:
    """The headline numbers of an evaluation: every model in a row, and the adapter held against it."""
    from finetune.evaluation.standings import standings
    from finetune.evaluation.tiles import detectable

    general, prompts = report.perplexity.general is not None, report.prompts is not None
    columns: list[tuple[str, bool, Callable[[Standing], Cell | None]]] = [
        ("answers passed", prompts, lambda row: row.rate),
        ("perplexity, held-out", True, lambda row: row.heldout),
        ("perplexity, general", general, lambda row: row.general),
        ("adapter against it: passed", prompts, lambda row: row.gain),
        ("held-out ratio", True, lambda row: row.heldout_ratio),
        ("general ratio", general, lambda row: row.general_ratio),
    ]
    shown = [(heading, cell_of) for heading, measured, cell_of in columns if measured]
    table = make_table(["", *(heading for heading, _ in shown)], f"{report.name} against its base {report.base}")
    table.show_lines = True
    for row in standings(report):
        name = Text.assemble((row.name, "bold"), "\n", row.kind)
        table.add_row(name, *(_cell(cell_of(row)) for _, cell_of in shown))
    notes = [detectable(report)] if prompts else []
    for rival in report.rivals:
        notes += _changed(rival.name, rival.fixed, rival.broken) if rival.gain else []
    repeats = report.prompts.repeats if report.prompts else None
    extra = [*_tasks(report), *(_repeats(repeats) if repeats else ())]
    return Group(table, *extra, *(Text(note) for note in notes))


def gates_table(report: Report) -> Table | None:
    """Each gate with its verdict, or None if the recipe has none."""
    if not report.gates:
        return None
    table = make_table(["gate", "value", "verdict"], "gates")
    for gate in report.gates:
        verdict = Text(gate.verdict, style=_COLOURS[gate.verdict])
        reason = "" if gate.verdict == "pass" else f" {gate.reason}"
        add_row(table, f"{gate.metric} {gate.bound}", f"{gate.value:.4g}", verdict + Text(reason))
    return table


def compare_reports(console: Console, reports: Sequence[tuple[str, Evaluation]]) -> None:
    """Print several reports, each with its folder, side by side, then each against the first, prompt by prompt."""
    from finetune.evaluation.tiles import number, percent, span

    headings = ["report", "adapter", "answers passed", "perplexity, held-out", "adapter / base", "verdict"]
    table = make_table(headings)
    for folder, found in reports:
        heldout, prompts = found.report.perplexity.heldout, found.report.prompts
        passed = (
            f"{prompts.adapter.passed:,} of {prompts.adapter.total:,}"
            f"  ({percent(prompts.adapter.low)} to {percent(prompts.adapter.high)})"
            if prompts
            else "-"
        )
        numbers = (heldout.adapter.interval, heldout.ratio.interval)
        shown = (f"{number(interval.value)}  ({span(interval, number)})" for interval in numbers)
        add_row(table, folder, found.report.name, passed, *shown, found.report.verdict)
    console.print(table)
    for folder, found in reports[1:]:
        _print_pair(console, reports[0], (folder, found))


def _print_pair(console: Console, first: tuple[str, Evaluation], second: tuple[str, Evaluation]) -> None:
    """Say what changed from one report's adapter to another's, and what forbids a comparison."""
    from finetune.evaluation.baseline import pair
    from finetune.evaluation.tiles import chance, points, span

    paired = pair(first[1], second[1])
    lines = [f"{second[0]} against {first[0]}:"]
    if paired.differences:
        lines.append("  they were made under different conditions, so a difference says little about the adapter:")
        lines += [f"    {text}" for text in paired.differences[:MAX_LISTED]]
        lines += [f"    ... and {len(paired.differences) - MAX_LISTED} more"] * (len(paired.differences) > MAX_LISTED)
    gain = f"{points(paired.gain.value)} points ({span(paired.gain, points)})"
    tail = f", exact McNemar {chance(paired.p_value)}" if paired.p_value is not None else ""
    lines.append(f"  answers passed {gain}{tail}")
    for word, names in (("fixed", paired.fixed), ("broken", paired.broken)):
        lines.append(f"  {word}: {len(names)}" + (f" ({_listed(names)})" if names else ""))
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _tasks(report: Report) -> Iterable[Table]:
    """Scores of lm-eval's tasks, if there are any."""
    from finetune.evaluation.standings import task_rows

    rows = task_rows(report)
    if rows:
        headings = ["task", "metric", "questions", "adapter", "base's score", "its score", "difference"]
        table = make_table(headings, "tasks of lm-eval")
        for *texts, difference in rows:
            add_row(table, *(str(text) for text in texts), _cell(difference))
        yield table


def _repeats(repeats: Repeats) -> Iterable[Table | Text]:
    """Prompts answered several times: how steady they are, and which are not."""
    from finetune.evaluation.tiles import percent

    table = make_table([f"of {repeats.k} answers", "base", "adapter"], "prompts answered several times")
    for what, both in (("one or more pass", repeats.pass_any), ("all pass", repeats.pass_all)):
        sides = (both.base, both.adapter)
        shown = (f"{percent(side.value)}  ({percent(side.low)} to {percent(side.high)})" for side in sides)
        add_row(table, what, *shown)
    yield table
    flaky = [f"{prompt.id} {prompt.passed}/{prompt.total}" for prompt in repeats.flaky]
    if flaky:
        yield Text(f"flaky: {len(flaky)} of {repeats.prompts} ({_listed(flaky)})")


def _changed(name: str, fixed: Sequence[str], broken: Sequence[str]) -> list[str]:
    changes = [f"{len(ids)} prompts passed {word} often ({_listed(ids)})"
               for word, ids in (("less", broken), ("more", fixed)) if ids]  # fmt: skip
    return [f"against {name}: {', '.join(changes)}"] if changes else []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-")
    return Text.assemble((cell.value, _TONES[cell.tone]), "\n", (cell.range.replace("; ", "\n"), "dim"))


def make_table(headings: Sequence[str], title: str | None = None) -> Table:
    """An empty table whose title is no markup."""
    return Table(*headings, title=Text(title) if title else None, title_justify="left")


def add_row(table: Table, *cells: str | Text) -> None:
    """Add a row in which no text is markup."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
