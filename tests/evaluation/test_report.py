from __future__ import annotations

import base64
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.messages import Message
from finetune.errors import DataError
from finetune.evaluation import report as report_module
from finetune.evaluation.checks import Answer, make_check
from finetune.evaluation.gates import apply_gates
from finetune.evaluation.render import markdown_text, render_html, render_markdown
from finetune.evaluation.report import (
    Perplexity,
    Report,
    Sample,
    Versions,
    perplexity_block,
    prompts_block,
    read_report,
    samples_of,
    write_report,
)
from finetune.evaluation.statistics import Scores
from finetune.evaluation.suite import Graded, Prompt, grade
from finetune.recipe import Gate, GenerationSection, Metric

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></article><img src=x onerror=alert(1)>",
    '"><a href="https://example.com">x</a>',
    "' onmouseover='alert(1)",
    "| a | b |\n|---|---|\n| forged | ✅ pass |",
    "```\n# Heading\n```",
    "`code` **bold** _it_ [x](https://example.com) ![i](http://example.com/i.png) <!-- -->",
    "]]>", "{{ 7 * 7 }} {% raw %}", "\x00\x07\x1b[31mred\x1b[0m\r\nnext", "a\u202egnp.exe", "\ud800 lone", "",
    "</details>", "www.example.com", "&lt;b&gt;",
]  # fmt: skip


def scores(seed: int, examples: int = 40, shift: float = 0.0) -> Scores:
    rng = random.Random(seed)
    tokens = [rng.randint(5, 40) for _ in range(examples)]
    rates = [rng.uniform(1.5, 3.0) for _ in range(examples)]
    noise = random.Random(shift)
    nll = [n * (r - shift + noise.gauss(0, 0.02)) for n, r in zip(tokens, rates, strict=True)]
    return Scores(tuple(nll), tuple(tokens), tuple(4 * n for n in tokens))


def graded(texts: list[str], wanted: str = "pizza") -> tuple[Graded, ...]:
    checks = (make_check("contains", wanted), make_check("stops", True))
    prompts = []
    for i in range(len(texts)):
        messages = (Message("system", "Be kind."), Message("user", f"question {i}"))
        prompts.append(Prompt(f"p-{i}", messages, ("all", "odd" if i % 2 else "even"), checks, f"f:{i}"))
    return grade(prompts, [Answer(text, True, 5) for text in texts])


def a_report(base: tuple[Graded, ...] = (), adapter: tuple[Graded, ...] = (), *, general: bool = True) -> Report:
    heldout = perplexity_block(scores(1), scores(1, shift=0.8))
    other = perplexity_block(scores(2), scores(2, shift=-0.01)) if general else None
    return Report(
        name="pizza",
        base="tiny",
        created="2026-01-02T03:04:05Z",
        versions=Versions(
            python="3.11.7", torch="2.13.0", transformers="5.5", peft="0.21", bitsandbytes=None, finetune="1"
        ),
        seed=0,
        generation=GenerationSection(),
        data={"data/pizza/heldout.jsonl": "0" * 64},
        perplexity=Perplexity(heldout=heldout, general=other),
        prompts=prompts_block(base, adapter) if base else None,
    )


def hostile() -> tuple[Report, tuple[Sample, ...]]:
    base, adapter = graded(["pizza" + text for text in HOSTILE]), graded(HOSTILE)
    return a_report(base, adapter), samples_of(base, adapter)


class Page(HTMLParser):
    """Collects what a browser would run or load; everything else is text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.stack == []
    return page


def test_json_has_exactly_the_agreed_keys() -> None:
    base, adapter = graded(["x", "pizza", "pizza"]), graded(["pizza", "pizza", "x"])
    found = json.loads(apply_gates({"prompts.gain": Gate(at_least=0.0)}, a_report(base, adapter)).model_dump_json())
    assert list(found) == [
        "schema_version", "verdict", "name", "base", "created", "versions",
        "seed", "generation", "data", "conditions", "perplexity", "prompts", "gates",
    ]  # fmt: skip
    assert set(found["versions"]) == {"python", "torch", "transformers", "peft", "bitsandbytes", "finetune"}
    for kind in ("heldout", "general"):
        assert set(found["perplexity"][kind]) == {"base", "adapter", "ratio"}
        assert set(found["perplexity"][kind]["base"]) == {"value", "nll", "tokens", "low", "high", "bits_per_byte"}
        assert set(found["perplexity"][kind]["ratio"]) == {"value", "low", "high"}
    assert set(found["prompts"]) == {"base", "adapter", "gain", "by_tag"}
    assert set(found["prompts"]["base"]) == {"passed", "total", "low", "high"}
    assert set(found["prompts"]["gain"]) == {"value", "low", "high", "p_value"}
    assert found["prompts"]["by_tag"]["odd"] == {
        "base": {"passed": 1, "total": 1},
        "adapter": {"passed": 1, "total": 1},
    }
    assert set(found["gates"][0]) == {"metric", "bound", "value", "low", "high", "verdict", "reason"}
    assert found["schema_version"] == 1
    assert found["prompts"]["base"]["passed"] == found["prompts"]["adapter"]["passed"] == 2


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
        prompts_block(graded(["a", "b"]), graded(["a"]))


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
    report, samples = hostile()
    png = tmp_path / "loss.png"
    png.write_bytes(PNG)
    write_report(tmp_path / "report", report, samples, png)
    folder = tmp_path / "report"
    assert sorted(p.name for p in folder.iterdir()) == [
        "junit.xml",
        "report.html",
        "report.json",
        "report.md",
        "samples.jsonl",
    ]
    assert read_report(folder) == report
    with (folder / "samples.jsonl").open(encoding="utf-8", newline="\n") as file:
        lines = [json.loads(line) for line in file]
    assert [line["id"] for line in lines] == [f"p-{i}" for i in range(len(HOSTILE))]
    assert list(lines[0]) == ["id", "tags", "messages", "base", "adapter"]
    assert lines[0]["adapter"]["text"] == HOSTILE[0]
    assert lines[0]["messages"][1] == {"role": "user", "content": "question 0"}
    assert lines[0]["base"]["passed"]
    assert lines[0]["adapter"]["outcomes"][0] == {
        "check": "contains 'pizza'", "passed": False, "detail": "missing: 'pizza'"
    }  # fmt: skip
    assert base64.b64encode(PNG).decode() in (folder / "report.html").read_text(encoding="utf-8")


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    report, samples = hostile()
    for name in ("a", "b"):
        write_report(tmp_path / name, report, samples)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("broken", ["render_markdown", "render_html"])
def test_failure_while_writing_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    report, samples = hostile()
    write_report(tmp_path / "report", report, samples)
    before = {p.name: p.read_bytes() for p in (tmp_path / "report").iterdir()}

    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(report_module, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path / "report", report.model_copy(update={"name": "new"}), samples)
    assert {p.name: p.read_bytes() for p in (tmp_path / "report").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_report_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path)
    write_report(tmp_path / "r", a_report(), ())
    text = (tmp_path / "r" / "report.json").read_text()
    (tmp_path / "r" / "report.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(DataError, match="schema_version"):
        read_report(tmp_path / "r")
    (tmp_path / "r" / "report.json").write_text(text.replace('"seed"', '"sed"'))
    with pytest.raises(DataError, match="seed"):
        read_report(tmp_path / "r")


def test_html_shows_hostile_text_and_runs_none_of_it() -> None:
    html = render_html(*hostile(), loss_png=PNG)
    page = parse(html)
    assert not page.tags & {"script", "a", "iframe", "object", "embed", "link", "base", "form", "svg", "video"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "srcset", "action")]
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 1
    assert str(sources[0]).startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import", html)
    text = "".join(page.text)
    for part in ("<script>alert(1)</script>", "</pre></article>", "{{ 7 * 7 }}", "]]>", "&lt;b&gt;", "␛[31mred"):
        assert part in text
    assert "a[U+202E]gnp.exe" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)
    html.encode("utf-8")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_keeps_both_pages_whole(texts: list[str]) -> None:
    base = graded(texts)
    report, samples = a_report(base, base), samples_of(base, base)
    parse(render_html(report, samples))
    cells = {row.count("|") for row in render_markdown(report, samples).splitlines() if row.startswith("| p-")}
    assert cells <= {6}


def test_markdown_neutralises_hostile_text() -> None:
    markdown = render_markdown(*hostile())
    rows = [line for line in markdown.splitlines() if line.startswith("| p-")]
    assert len(rows) == len(HOSTILE)
    assert all(row.count("|") == 6 for row in rows)
    for forbidden in ("<script", "<img", "</pre", "```", "](", "<!--", "://example", "www.example", "\x1b", "\u202e"):
        assert forbidden not in markdown
    assert markdown.count("</details>") == markdown.count("<details>") == 2
    assert "a regression" in rows[0]


@settings(deadline=None)
@given(st.text())
def test_markdown_text_is_one_line_without_markup(text: str) -> None:
    escaped = markdown_text(text)
    assert not re.search(r"[\n\r\x00-\x1f|<>`*\[\]\\]", escaped)
    assert len(escaped.splitlines()) <= 1


def test_regressions_come_first_and_passed_are_collapsed() -> None:
    base = graded(["x", "pizza", "x", "pizza"])
    adapter = graded(["x", "pizza", "pizza", "x"])
    html = render_html(a_report(base, adapter), samples_of(base, adapter))
    order = [html.index(f"<h3>p-{i}</h3>") for i in (3, 0)] + [html.index("<details>")]
    order += [html.index(f"<h3>p-{i}</h3>") for i in (1, 2)]
    assert order == sorted(order)
    assert "2 prompts that the adapter passed" in html


def test_a_person_sees_the_verdict_and_the_numbers() -> None:
    base, adapter = graded(["x"] * 40), graded(["pizza"] * 39 + ["x"])
    gates: dict[Metric, Gate] = {"prompts.gain": Gate(at_least=0.5), "prompts.pass_rate": Gate(at_least=0.95)}
    report = apply_gates(gates, a_report(base, adapter))
    samples = samples_of(base, adapter)
    for text in ("".join(parse(render_html(report, samples)).text), render_markdown(report, samples)):
        assert "1 of 2 gates is undecided: too little data (prompts.pass_rate)." in text
        assert "0 → 39 of 40" in text
        assert "Held-out perplexity" in text
        assert "prompts instead of 40" in text
    assert render_markdown(report, samples).startswith("## ❔ pizza on tiny")


def test_ten_thousand_samples_stay_within_the_limits() -> None:
    long = graded(["&" * 5000 if i % 2 else "<'\"|`*\u202e" * 500 for i in range(3000)])
    short = graded(["no " * 12] * 10_000)
    for results in (long, short):
        report, samples = a_report(results, results), samples_of(results, results)
        assert report.prompts is not None
        tags = {f"tag-{i}" + "x" * 500: report.prompts.by_tag["odd"] for i in range(10_000)}
        report = report.model_copy(update={"prompts": report.prompts.model_copy(update={"by_tag": tags})})
        markdown = render_markdown(report, samples)
        assert len(markdown.encode()) < 900_000
        assert f"{len(samples) - 20:,} more failed answers omitted" in markdown
        assert len(render_html(a_report(results, results), samples).encode()) < 5_000_000


def test_every_state_of_the_report_renders() -> None:
    for report in (a_report(general=False), a_report()):
        assert "not measured" in render_html(report, ())
        assert "not measured" in render_markdown(report, ())
    base = graded(["pizza"])
    assert "The adapter passed every prompt." not in render_html(a_report(base, base), samples_of(base, graded(["x"])))
    assert "The adapter passed every prompt." in render_html(a_report(base, base), samples_of(base, base))


def test_gates_colour_the_tiles() -> None:
    """Who wrote a gate has said what is acceptable; without one, the interval decides."""
    plain = a_report()
    assert '<section class="card tile good">' in render_html(plain, ())
    strict = apply_gates({"perplexity.heldout.ratio": Gate(at_most=0.01)}, plain)
    assert '<section class="card tile bad">' in render_html(strict, ())
    assert "1 of 1 gates failed (perplexity.heldout.ratio)." in render_markdown(strict, ())
