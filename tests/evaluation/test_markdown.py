"""report.md, the job summary: the worst first, all of it within the limit, and what was left out is said."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.gates import apply_gates
from finetune.evaluation.render import markdown_code, markdown_text, render_markdown
from finetune.recipe import Gate
from tests.evaluation.builders import a_report, an_evaluation


def rows(markdown: str, heading: str) -> list[str]:
    """The table below a heading, without its own."""
    return markdown.split(f"### {heading}\n")[1].strip().split("\n\n")[0].splitlines()[2:]


def test_a_person_sees_the_verdict_the_numbers_and_how_small_a_drop_was_looked_for() -> None:
    found = an_evaluation(["x"] * 40, ["pizza"] * 39 + ["x"])
    report = apply_gates({"prompts.gain": Gate(at_least=0.5), "prompts.pass_rate": Gate(at_least=0.95)}, found).report
    markdown = render_markdown(report, found.samples)
    assert markdown.startswith("## ❔ pizza on tiny: 1 of 2 gates is undecided")
    assert "| Prompts passed | **0 → 39 of 40** | +97.5 points" in markdown
    assert "prompts instead of 40" in markdown
    assert re.search(
        r"So many prompts show a drop of \d+ points or more from one adapter to the next 9 times out of 10, if 20% of",
        markdown,
    )
    assert "| `prompts.pass_rate` | `at_least 0.95` |" in markdown


def test_regressions_come_first_and_say_so() -> None:
    found = an_evaluation(["x", "pizza", "x"], ["x", "no", "pizza"])
    assert [row[:8] for row in rows(render_markdown(found.report, found.samples), "Answers that failed")] == [
        "| `p-1` ",
        "| `p-0` ",
    ]
    first, second = rows(render_markdown(found.report, found.samples), "Answers that failed")
    assert first.endswith("| `no` | `contains 'pizza'` `missing: 'pizza'` | passed: **a regression** |")
    assert second.endswith("| failed |")


def test_rivals_and_what_changed_against_them() -> None:
    found = an_evaluation(["x", "x"], ["pizza", "x"], {"first": ["x", "pizza"]})
    markdown = render_markdown(found.report, found.samples)
    assert [row.split(" | ")[0] for row in rows(markdown, "Against others")] == [
        "| `tiny`, base",
        "| `pizza`, this adapter",
        "| `first`, adapter",
    ]
    assert "Against `first`: 1 prompts passed less often (`p-1`), 1 more often (`p-0`)." in markdown


def test_flaky_prompts_and_checks_that_could_not_be_carried_out() -> None:
    found = an_evaluation([["x"] * 4] * 2, [["pizza", "x", "pizza", "pizza"], ["x"] * 4])
    answer = found.samples[1].adapter[0]
    broken = answer.model_copy(update={"outcomes": (answer.outcomes[0].model_copy(update={"error": True}),)})
    second = found.samples[1].model_copy(update={"adapter": (broken,) * 4})
    markdown = render_markdown(found.report, (found.samples[0], second))
    assert rows(markdown, "Flaky prompts") == ["| `p-0` | 3 of 4 | 30.1% to 95.4% |"]
    assert "3 of 4 answers passed; `contains 'pizza'`" in markdown
    assert "0 of 4 answers passed; ⚠ not carried out: `contains 'pizza'`" in markdown


def test_ten_thousand_prompts_stay_within_the_limit_and_say_what_was_left_out() -> None:
    for text in ("`|<'" * 500, "no " * 12):
        found = an_evaluation([[text, "pizza"]] * 2, [[text, "pizza"]] * 2)
        prompts = found.report.prompts
        assert prompts is not None
        assert prompts.repeats is not None
        changed = {
            "repeats": prompts.repeats.model_copy(update={"flaky": prompts.repeats.flaky * 5_000}),
            "by_tag": {f"tag-{place}" + "`" * 500: prompts.by_tag["odd"] for place in range(10_000)},
        }
        report = found.report.model_copy(update={"prompts": prompts.model_copy(update=changed)})
        markdown = render_markdown(report, found.samples * 5_000)
        assert len(markdown.encode()) < 1_000_000
        assert "9,980 more prompts failed; they are left out here" in markdown
        assert "9,950 more flaky prompts are in report.json" in markdown
        assert "9,950 more tags are left out here" in markdown


def test_every_state_of_the_report_renders() -> None:
    for report in (a_report(general=False), a_report()):
        assert "not measured" in render_markdown(report, ())
        assert "Answers that failed" not in render_markdown(report, ())


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    escaped = markdown_text(text)
    assert not re.search(r"[\x00-\x1f|<>`*\[\]\\]", escaped)
    assert len(escaped.splitlines()) <= 1
    assert not re.search("(?<!&)#|@", escaped)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_a_code_span_is_one_line_whose_every_backtick_is_ours(text: str) -> None:
    written = markdown_code(text)
    assert "|" not in written
    assert len(written.splitlines()) == 1
    assert written.count("`") % 2 == 0
    assert "``" not in written
