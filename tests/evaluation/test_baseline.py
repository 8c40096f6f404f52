"""Earlier reports: refused where anything but the adapter differs, and compared prompt by prompt."""

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
from finetune.evaluation.baseline import beside, pair, refuse_mismatch, scores_beside
from finetune.evaluation.checks import make_check
from finetune.evaluation.folder import is_report, read_evaluation, write_report
from finetune.evaluation.report import Evaluation
from finetune.evaluation.suite import Prompt
from tests.evaluation.builders import Texts, an_evaluation, prompts

CONDITIONS = {
    "base.model": "tiny", "base.quantization": "nf4", "base.dtype": "auto", "base's config": "c1",
    "base's tokenizer": "t1", "base's chat_template": "p1", "base's weights": "w1", "seed": "0",
    "generation.temperature": "0.0", "generation.max_new_tokens": "64",
    "data.system": "Be kind.", "held-out rows": "h1",
    "general rows": "g1",
}  # fmt: skip


def texts(passed: int, total: int, seed: int = 0) -> list[str]:
    made = ["pizza"] * passed + ["no"] * (total - passed)
    random.Random(seed).shuffle(made)
    return made


def saved(folder: Path, adapter: Texts, conditions: dict[str, str] | None = None) -> Evaluation:
    made = an_evaluation(["no"] * len(adapter), adapter)
    report = made.report.model_copy(update={"conditions": CONDITIONS if conditions is None else conditions})
    write_report(folder, made.model_copy(update={"report": report}))
    return read_evaluation(folder)


def test_a_report_is_read_from_its_folder_or_its_file(tmp_path: Path) -> None:
    made = saved(tmp_path / "old", texts(3, 5))
    assert read_evaluation(tmp_path / "old" / "report.json") == made
    assert [sample.passed for sample in made.samples].count(True) == 3
    assert len(made.scores.heldout.adapter) == 40
    for name, found in {"old": True, "old/report.json": True, "new": False, "old/samples.jsonl": False}.items():
        assert is_report(tmp_path / name) == found


def test_the_same_conditions_and_prompts_in_any_order_are_accepted(tmp_path: Path) -> None:
    made = saved(tmp_path / "old", texts(3, 5))
    refuse_mismatch(made, "old", dict(reversed(CONDITIONS.items())), prompts(5)[::-1])


@pytest.mark.parametrize("name", CONDITIONS)
def test_each_other_condition_is_refused_by_name(name: str, tmp_path: Path) -> None:
    made = saved(tmp_path / "old", texts(3, 5))
    with pytest.raises(DataError) as error:
        refuse_mismatch(made, "some/folder", {**CONDITIONS, name: "other"}, prompts(5))
    assert f"{name}: the earlier one has {CONDITIONS[name]!r}, this one 'other'" in str(error.value)
    assert str(error.value).startswith("some/folder: ")
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
    change, words = CHANGES[name]
    with pytest.raises(DataError) as error:
        refuse_mismatch(saved(tmp_path / "old", texts(3, 5)), "old", CONDITIONS, change(prompts(5)))
    assert words in str(error.value)
    assert str(error.value).count("prompt '") == 1


def test_a_report_without_conditions_and_an_id_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not say under which conditions"):
        refuse_mismatch(saved(tmp_path / "old", texts(3, 5), {}), "old", CONDITIONS, prompts(5))
    made = saved(tmp_path / "new", texts(3, 5))
    doubled = made.model_copy(update={"samples": (*made.samples, made.samples[0])})
    with pytest.raises(DataError, match="has an id twice"):
        refuse_mismatch(doubled, "new", CONDITIONS, prompts(5))


def test_earlier_answers_and_scores_stand_beside_these_by_id(tmp_path: Path) -> None:
    old = saved(tmp_path / "old", ["pizza", "no", "no"])
    mixed = old.model_copy(update={"samples": old.samples[::-1]})
    new = an_evaluation(["no"] * 3, ["no", "pizza", "pizza"])
    found = beside(new.samples, {"old one": mixed})
    assert [sample.rivals["old one"][0].text for sample in found] == ["pizza", "no", "no"]
    scores = scores_beside(new.scores, {"old one": mixed})
    assert scores.heldout.rivals["old one"] == old.scores.heldout.adapter
    assert old.scores.general is not None
    assert scores.general is not None
    assert scores.general.rivals == {"old one": old.scores.general.adapter}


def test_two_saved_reports_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", ["pizza"] * 3 + ["no"] * 7)
    second = saved(tmp_path / "b", ["no"] + ["pizza"] * 7 + ["no"] * 2)
    paired = pair(first, second)
    assert paired.differences == ()
    assert (paired.fixed, paired.broken) == (("p-3", "p-4", "p-5", "p-6", "p-7"), ("p-0",))
    assert paired.gain.value == pytest.approx(0.4)
    assert paired.p_value == pytest.approx(14 / 64)  # 2 * (1 + 6) / 2**6
    other = saved(tmp_path / "c", ["pizza"] * 4, {**CONDITIONS, "seed": "1"})
    found = pair(first, other)
    assert found.differences[0] == "seed: the earlier one has '0', this one '1'"
    assert "prompt 'p-9' is missing now" in found.differences
    assert found.fixed == ("p-3",)
    nothing = pair(first, other.model_copy(update={"samples": ()}))
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

    saved(tmp_path / "a", ["pizza"] * 3 + ["no"] * 7)
    saved(tmp_path / "b", ["no"] * 10, {**CONDITIONS, "seed": "1"})
    code, text = run("a")
    assert (code, "3 of 10" in text, "no gates, so no verdict" in text) == (0, True, True)
    code, text = run("a", "b")
    assert code == 0
    assert "answers passed −30.0 points" in text
    assert "seed: the earlier one has '0', this one '1'" in text
    assert "broken: 3 (p-0, p-1, p-2)" in text
    assert run("none")[0] == 2


@pytest.mark.parametrize("text", ["{", '{"id": 5}\n'])
@pytest.mark.parametrize("name", ["samples.jsonl", "scores.json"])
def test_a_broken_report_is_named(name: str, text: str, tmp_path: Path) -> None:
    saved(tmp_path / "old", texts(3, 5))
    (tmp_path / "old" / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}: is not of a report of version 2: .*; run finetune eval again"):
        read_evaluation(tmp_path / "old")
    (tmp_path / "old" / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        read_evaluation(tmp_path / "old")
    with pytest.raises(DataError, match=r"report\.json: cannot be read"):
        read_evaluation(tmp_path / "none")
    assert json.loads((tmp_path / "old" / "report.json").read_text())["conditions"] == CONDITIONS
