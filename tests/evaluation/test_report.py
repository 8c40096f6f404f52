"""The report as data: its keys, its blocks, and the folder that is written whole or not at all."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.evaluation import folder as folder_module
from finetune.evaluation.blocks import perplexity_block, samples_of
from finetune.evaluation.folder import read_evaluation, read_report, write_report
from finetune.evaluation.gates import apply_gates
from finetune.evaluation.render import render_html, render_markdown
from finetune.evaluation.report import Evaluation, Perplexity, Report
from finetune.evaluation.statistics import Scores
from finetune.recipe import Gate
from tests.evaluation.builders import HOSTILE, PNG, a_report, an_evaluation, graded

FILES = ["junit.xml", "report.html", "report.json", "report.md", "samples.csv", "samples.jsonl", "scores.json"]


def an_example() -> Evaluation:
    return an_evaluation(["pizza", *HOSTILE], ["no", *HOSTILE], {"other": ["pizza", *HOSTILE]})


def test_json_has_exactly_the_agreed_keys() -> None:
    found = an_evaluation(["x", "pizza", "pizza"], ["pizza", "pizza", "x"], {"other": ["x"] * 3})
    report = json.loads(apply_gates({"prompts.gain": Gate(at_least=0.0)}, found).report.model_dump_json())
    assert list(report) == list(Report.model_fields)
    assert report["schema_version"] == 2
    assert set(report["versions"]) == {"python", "torch", "transformers", "peft", "bitsandbytes", "finetune"}
    for kind in ("heldout", "general"):
        assert set(report["perplexity"][kind]) == {"base", "adapter", "ratio"}
        assert set(report["perplexity"][kind]["base"]) == {"value", "nll", "tokens", "low", "high", "bits_per_byte"}
        assert set(report["perplexity"][kind]["ratio"]) == {"value", "low", "high"}
    assert set(report["prompts"]) == {"base", "adapter", "gain", "by_tag", "repeats", "detectable_drop"}
    assert set(report["prompts"]["base"]) == {"passed", "total", "low", "high"}
    assert set(report["prompts"]["gain"]) == {"value", "low", "high", "p_value"}
    assert report["prompts"]["by_tag"]["odd"] == {
        "base": {"passed": 1, "total": 1},
        "adapter": {"passed": 1, "total": 1},
    }
    assert set(report["gates"][0]) == {"metric", "bound", "value", "low", "high", "verdict", "reason"}
    assert report["prompts"]["base"]["passed"] == report["prompts"]["adapter"]["passed"] == 2
    assert report["rivals"][0]["fixed"] == ["p-0", "p-1"]


def test_what_was_not_measured_is_null() -> None:
    found = json.loads(a_report(general=False).model_dump_json())
    assert found["perplexity"]["general"] is None
    assert found["prompts"] is None
    assert found["verdict"] == "none"


def test_perplexity_block_closed_form() -> None:
    nll = tuple(n * 8 * math.log(2) for n in (3, 5, 9))
    pair = perplexity_block(Scores(nll, (3, 5, 9), (3, 5, 9)), Scores(nll, (3, 5, 9), (3, 5, 9)))
    assert pair.base.value == pytest.approx(256)
    assert pair.base.bits_per_byte == pytest.approx(8.0)
    assert pair.base.nll == pytest.approx(sum(nll))
    assert pair.base.tokens == 17
    assert pair.ratio.interval == (1.0, 1.0, 1.0)


def test_different_rows_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="different tokens"):
        perplexity_block(Scores((1.0,), (1,), (1,)), Scores((1.0,), (2,), (1,)))
    with pytest.raises(ValueError, match="different prompts"):
        samples_of(graded(["a", "b"]), graded(["a"]))


def test_unbounded_interval_is_null_in_json_and_comes_back() -> None:
    one = Scores((2.0,), (1,), (1,))
    report = a_report().model_copy(update={"perplexity": Perplexity(heldout=perplexity_block(one, one), general=None)})
    text = report.model_dump_json()
    assert json.loads(text)["perplexity"]["heldout"]["base"]["high"] is None
    assert "Infinity" not in text
    assert Report.model_validate_json(text) == report
    assert "∞" in render_html(report, ())
    assert "∞" in render_markdown(report, ())


def test_writes_and_reads_the_folder(tmp_path: Path) -> None:
    found = an_example()
    png = tmp_path / "loss.png"
    png.write_bytes(PNG)
    folder = tmp_path / "report"
    write_report(folder, found, loss_png=png, recipe="name: pizza\n")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert read_report(folder) == found.report
    assert read_evaluation(folder) == read_evaluation(folder / "report.json") == found
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert base64.b64encode(PNG).decode() in page
    assert "<pre>name: pizza\n</pre>" in page
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_bytes().split(b"\n")[:-1]]
    assert list(lines[0]) == ["id", "tags", "messages", "base", "adapter", "rivals"]
    assert lines[0]["adapter"][0]["outcomes"][0] == {
        "check": "contains 'pizza'", "passed": False, "detail": "missing: 'pizza'", "error": False
    }  # fmt: skip


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, an_example())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("broken", ["render_markdown", "render_html", "render_junit", "render_csv"])
def test_failure_while_writing_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    found = an_example()
    write_report(tmp_path / "report", found)
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}

    def fail(*_: object, **__: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(folder_module, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        renamed = found.report.model_copy(update={"name": "new"})
        write_report(tmp_path / "report", found.model_copy(update={"report": renamed}))
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_report_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path)
    write_report(tmp_path / "r", an_evaluation())
    text = (tmp_path / "r" / "report.json").read_text()
    (tmp_path / "r" / "report.json").write_text(text.replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(DataError, match="version 2: schema_version"):
        read_report(tmp_path / "r")
    (tmp_path / "r" / "report.json").write_text(text.replace('"seed"', '"sed"'))
    with pytest.raises(DataError, match="seed"):
        read_report(tmp_path / "r")
