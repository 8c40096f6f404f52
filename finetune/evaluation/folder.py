"""The report folder: what is written into it, all or nothing, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from finetune.errors import DataError
from finetune.evaluation.junit import render_junit
from finetune.evaluation.render import render_html, render_markdown
from finetune.evaluation.report import Evaluation, Report, Sample, ScoreTable
from finetune.evaluation.table import render_csv
from finetune.files import recover_folder, replace_folder

VERSION = 2  # of what is in the folder
_Read = TypeVar("_Read")


def write_report(folder: Path, found: Evaluation, *, loss_png: Path | None = None, recipe: str = "") -> None:
    """Write report.json, .md, .html, junit.xml, samples.jsonl, samples.csv and scores.json, all or none.

    An earlier report in `folder` is replaced as a whole. `recipe`: its text, shown in the page.
    """
    curve = loss_png.read_bytes() if loss_png else None
    report, samples = found.report, found.samples
    with replace_folder(folder) as new:
        _write(new / "report.json", report.model_dump_json(indent=2) + "\n")
        _write(new / "report.md", render_markdown(report, samples))
        _write(new / "report.html", render_html(report, samples, loss_png=curve, recipe=recipe))
        _write(new / "junit.xml", render_junit(report, samples))
        _write(new / "samples.csv", render_csv(samples))
        _write(new / "samples.jsonl", "".join(map(_line, samples)))
        _write(new / "scores.json", found.scores.model_dump_json() + "\n")


def is_report(place: str | Path) -> bool:
    """Say whether this is a report folder, or the report.json in one."""
    return Path(place).name == "report.json" or (Path(place) / "report.json").is_file()


def read_report(folder: Path) -> Report:
    """Read the numbers of a report folder back. Raises DataError if it is missing or of another version."""
    recover_folder(folder)
    return _read(folder / "report.json", Report.model_validate_json)


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read a report folder, or the report.json in one, with its answers and row scores. Raises DataError."""
    place = Path(folder).parent if Path(folder).name == "report.json" else Path(folder)
    report = read_report(place)
    samples = _read(place / "samples.jsonl", lambda content: tuple(_samples(content)))
    scores = _read(place / "scores.json", ScoreTable.model_validate_json)
    return Evaluation(report=report, samples=samples, scores=scores)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def _line(sample: Sample) -> str:
    return json.dumps(sample.model_dump(mode="json"), ensure_ascii=False) + "\n"


def _samples(content: bytes) -> Iterator[Sample]:
    for line in content.split(b"\n"):
        if line:
            yield Sample.model_validate_json(line)


def _read(path: Path, parse: Callable[[bytes], _Read]) -> _Read:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=str(path), fix="run finetune eval") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = f"is not of a report of version {VERSION}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DataError(what, where=str(path), fix="run finetune eval again") from None
