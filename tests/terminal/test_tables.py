"""The tables of an evaluation in the terminal."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

from finetune.evaluation.gates import apply_gates
from finetune.evaluation.report import Evaluation
from finetune.recipe import Gate
from finetune.terminal.tables import compare_reports, gates_table, report_table
from tests.evaluation.builders import an_evaluation


def lines(shown: RenderableType | None, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_model_is_a_row_and_the_adapter_is_held_against_it() -> None:
    found = an_evaluation(["x", "x", "pizza"], ["pizza", "x", "pizza"], {"other": ["x", "pizza", "x"]})
    shown = lines(report_table(found.report))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert [row[0] for row in rows if " of 3" in row[1]] == ["tiny", "pizza", "other"]
    assert [row[4] for row in rows if row[0] in ("tiny", "pizza", "other")] == ["+33.3 points", "-", "+33.3 points"]
    assert "against other: 1 prompts passed less often (p-1), 2 prompts passed more often (p-0, p-2)" in shown
    assert "too few prompts" in shown


def test_only_what_was_measured_is_a_column() -> None:
    shown = lines(report_table(an_evaluation(general=False).report))
    assert "general" not in shown
    assert "passed" not in shown
    assert "perplexity, held-out" in shown


def test_prompts_answered_several_times_and_the_flaky_ones() -> None:
    found = an_evaluation([["x"] * 4] * 2, [["pizza", "x", "pizza", "pizza"], ["pizza"] * 4])
    shown = lines(report_table(found.report))
    assert "prompts answered several times" in shown
    assert "flaky: 1 of 2 (p-0 3/4)" in shown


def test_gates_say_why() -> None:
    found = apply_gates({"prompts.pass_rate": Gate(at_least=0.99)}, an_evaluation(["x"] * 30, ["x"] * 30))
    assert "fail the whole 95% interval is below 0.99" in lines(gates_table(found.report))
    assert gates_table(an_evaluation().report) is None


def test_no_name_or_reason_is_read_as_markup() -> None:
    found = apply_gates({"prompts.pass_rate": Gate(at_least=0.5)}, an_evaluation(["x"], ["x"], {"[red]r[/red]": ["x"]}))
    gate = found.report.gates[0].model_copy(update={"reason": "[bold]why[/] [link=x]"})
    report = found.report.model_copy(update={"name": "[/]", "base": "[blink]b", "gates": (gate,)})
    assert "[bold]why[/] [link=x]" in lines(gates_table(report))
    shown = lines(report_table(report))
    assert all(text in shown for text in ("[/] against its base [blink]b", "[red]r[/red]"))


def compared(first: Evaluation, second: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=160)
    compare_reports(console, [("[a]", first), ("b", second)])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_reports_are_compared_prompt_by_prompt() -> None:
    shown = compared(an_evaluation(["x"] * 3, ["pizza", "x", "x"]), an_evaluation(["x"] * 3, ["x", "pizza", "pizza"]))
    assert "b against [a]:" in shown
    assert "answers passed +33.3 points" in shown
    assert "fixed: 2 (p-1, p-2)" in shown
    assert "broken: 1 (p-0)" in shown
