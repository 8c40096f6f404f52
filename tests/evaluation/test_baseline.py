"""An earlier report as the bar: refused where anything but the adapter differs, and decided by pairs."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from finetune import cli
from finetune.data.messages import Message
from finetune.errors import DataError
from finetune.evaluation.baseline import Baseline, hold_against, pair, read_baseline, refuse_mismatch
from finetune.evaluation.checks import make_check
from finetune.evaluation.report import samples_of, write_report
from finetune.evaluation.suite import Graded, Prompt
from tests.evaluation.test_report import a_report, graded

CONDITIONS = {
    "base.model": "tiny", "base.quantization": "nf4", "base.dtype": "auto", "base's config": "c1",
    "base's tokenizer": "t1", "base's chat_template": "p1", "base's weights": "w1", "seed": "0",
    "generation.temperature": "0.0", "generation.top_p": "1.0", "generation.max_new_tokens": "64",
    "data.system": "Be kind.", "held-out rows": "h1",
    "general rows": "g1",
}  # fmt: skip


def texts(passed: int, total: int, seed: int = 0) -> list[str]:
    made = ["pizza"] * passed + ["no"] * (total - passed)
    random.Random(seed).shuffle(made)
    return made


def saved(folder: Path, adapter: tuple[Graded, ...], conditions: dict[str, str] | None = None) -> Baseline:
    base = graded(["no"] * len(adapter))
    report = a_report(base, adapter).model_copy(update={"conditions": CONDITIONS if conditions is None else conditions})
    write_report(folder, report, samples_of(base, adapter))
    return read_baseline(folder)


def prompts_of(rows: tuple[Graded, ...]) -> list[Prompt]:
    return [row.prompt for row in rows]


def test_a_baseline_is_read_from_its_folder_or_its_file(tmp_path: Path) -> None:
    made = saved(tmp_path / "old", graded(texts(3, 5)))
    assert read_baseline(tmp_path / "old" / "report.json") == made
    assert [sample.adapter.passed for sample in made.samples].count(True) == 3


def test_the_same_conditions_and_prompts_in_any_order_are_accepted(tmp_path: Path) -> None:
    rows = graded(texts(3, 5))
    refuse_mismatch(saved(tmp_path / "old", rows), dict(reversed(CONDITIONS.items())), prompts_of(rows)[::-1])


@pytest.mark.parametrize("name", CONDITIONS)
def test_each_other_condition_is_refused_by_name(name: str, tmp_path: Path) -> None:
    rows = graded(texts(3, 5))
    baseline = saved(tmp_path / "old", rows)
    with pytest.raises(DataError) as error:
        refuse_mismatch(baseline, {**CONDITIONS, name: "other"}, prompts_of(rows))
    assert f"{name}: the baseline has {CONDITIONS[name]!r}, this evaluation 'other'" in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "old"))
    assert "make a new baseline" in str(error.value)


Change = Callable[[list[Prompt]], list[Prompt]]
CHANGES: dict[str, tuple[Change, str]] = {
    "a prompt is new": (lambda p: [*p, replace(p[0], id="extra")], "prompt 'extra' is new"),
    "a prompt is missing": (lambda p: p[1:], "prompt 'p-0' is missing now"),
    "another text": (
        lambda p: [replace(p[0], messages=(Message("user", "else"),)), *p[1:]],
        "prompt 'p-0' has another text",
    ),
    "another check": (
        lambda p: [replace(p[0], checks=(make_check("contains", "cola"),)), *p[1:]],
        "prompt 'p-0' has other checks",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_prompts_are_refused_by_name(name: str, tmp_path: Path) -> None:
    rows = graded(texts(3, 5))
    change, words = CHANGES[name]
    with pytest.raises(DataError) as error:
        refuse_mismatch(saved(tmp_path / "old", rows), CONDITIONS, change(prompts_of(rows)))
    assert words in str(error.value)
    assert str(error.value).count("prompt '") == 1


def test_a_report_without_conditions_and_an_id_twice_are_refused(tmp_path: Path) -> None:
    rows = graded(texts(3, 5))
    with pytest.raises(DataError, match="does not say under which conditions"):
        refuse_mismatch(saved(tmp_path / "old", rows, {}), CONDITIONS, prompts_of(rows))
    baseline = saved(tmp_path / "new", rows)
    with pytest.raises(DataError, match="has an id twice"):
        refuse_mismatch(
            baseline._replace(samples=(*baseline.samples, baseline.samples[0])), CONDITIONS, prompts_of(rows)
        )


@pytest.mark.parametrize(
    ("before", "after", "margin", "verdict"),
    [(180, 180, 0.05, "pass"), (180, 130, 0.05, "fail"), (180, 171, 0.05, "inconclusive"), (100, 180, 0.0, "pass")],
)
def test_the_drop_is_decided_by_pairs(before: int, after: int, margin: float, verdict: str, tmp_path: Path) -> None:
    then = ["pizza"] * before + ["no"] * (200 - before)
    now = ["pizza"] * after + ["no"] * (200 - after)
    base, rows = graded(["no"] * 200), graded(now)
    made = hold_against(saved(tmp_path / "old", graded(then)), a_report(base, rows), samples_of(base, rows), margin)
    (gate,) = made.gates
    assert (gate.verdict, made.verdict) == (verdict, verdict)
    assert gate.value == pytest.approx((before - after) / 200)
    assert gate.bound == f"at_most {margin:g} against pizza of {made.created[:10]}"
    if after < before:
        assert f"passed before and not now: p-{after}" in gate.reason


def test_the_gate_is_one_more_and_the_worst_verdict_counts(tmp_path: Path) -> None:
    base, rows = graded(["no"] * 20), graded(["pizza"] * 20)
    report = a_report(base, rows)
    failed = hold_against(saved(tmp_path / "old", rows), report, samples_of(base, rows), 0.9).model_copy()
    assert failed.verdict == "pass"
    worse = graded(["no"] * 20)
    made = hold_against(saved(tmp_path / "old", rows), failed, samples_of(base, worse), 0.05)
    assert ([gate.verdict for gate in made.gates], made.verdict) == (["pass", "fail"], "fail")


def test_two_saved_reports_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", graded(["pizza"] * 3 + ["no"] * 7))
    second = saved(tmp_path / "b", graded(["no"] + ["pizza"] * 7 + ["no"] * 2))
    paired = pair(first, second)
    assert paired.differences == ()
    assert (paired.fixed, paired.broken) == (("p-3", "p-4", "p-5", "p-6", "p-7"), ("p-0",))
    assert paired.gain.value == pytest.approx(0.4)
    assert paired.p_value == pytest.approx(14 / 64)  # 2 * (1 + 6) / 2**6
    other = saved(tmp_path / "c", graded(["pizza"] * 4), {**CONDITIONS, "seed": "1"})
    found = pair(first, other)
    assert found.differences[0] == "seed: the baseline has '0', this evaluation '1'"
    assert "prompt 'p-9' is missing now" in found.differences
    assert found.fixed == ("p-3",)
    nothing = pair(first, other._replace(samples=()))
    assert (nothing.gain.low, nothing.gain.high, nothing.p_value) == (-1, 1, 1)


def test_the_command_shows_one_report_and_compares_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*folders: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["finetune", "report", *(str(tmp_path / folder) for folder in folders)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out + captured.err

    saved(tmp_path / "a", graded(["pizza"] * 3 + ["no"] * 7))
    saved(tmp_path / "b", graded(["no"] * 10), {**CONDITIONS, "seed": "1"})
    code, text = run("a")
    assert (code, "3/10" in text, "no gates, so no verdict" in text) == (0, True, True)
    code, text = run("a", "b")
    assert code == 0
    assert "prompts passed -30.0%" in text
    assert "seed: the baseline has '0', this evaluation '1'" in text
    assert "broken: 3 (p-0, p-1, p-2)" in text
    assert run("none")[0] == 2


@pytest.mark.parametrize("text", ["{", '{"id": 5}\n', ""])
def test_a_broken_baseline_is_named(text: str, tmp_path: Path) -> None:
    saved(tmp_path / "old", graded(texts(3, 5)))
    (tmp_path / "old" / "samples.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"samples\.jsonl: "):
        read_baseline(tmp_path / "old")
    with pytest.raises(DataError, match=r"report\.json: cannot be read"):
        read_baseline(tmp_path / "none")
    assert json.loads((tmp_path / "old" / "report.json").read_text())["conditions"] == CONDITIONS
