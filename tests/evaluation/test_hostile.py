"""No text changes the structure of what is written: parsed, it is the same as with harmless words in its place."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import jinja2
import pyarrow.csv
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from selectolax.lexbor import LexborHTMLParser, LexborNode

from finetune.evaluation import junit, render, table
from finetune.evaluation.escaping import one_line, visible
from finetune.evaluation.folder import read_evaluation, write_report
from finetune.evaluation.junit import render_junit
from finetune.evaluation.page import NAME
from finetune.evaluation.render import render_html, render_markdown
from finetune.evaluation.report import Evaluation
from finetune.evaluation.table import render_csv
from finetune.terminal import safety
from finetune.terminal.progress import RunDisplay
from finetune.terminal.safety import guarded
from finetune.terminal.tables import compare_reports, gates_table, report_table
from finetune.training.telemetry import NoticeEvent
from tests.evaluation.builders import PNG
from tests.evaluation.hostile_outputs import FAMILIES, PAYLOADS, harmless, spoiled

MARKDOWN = MarkdownIt("gfm-like", {"html": True, "linkify": True})
FREE = {"id", "href"}  # attributes that hold a text; all others are compared with their value
Tree = tuple[object, ...]


class Sink(NamedTuple):
    """A kind of output: how many texts at a time it shows in full, how it is written and what a parser makes of it."""

    at_once: int
    write: Callable[[Evaluation, list[str]], str]
    structure: Callable[[str], object]


def tree_of(page: str) -> Tree:
    """Elements with their attributes, as an HTML5 parser sees them."""
    root = LexborHTMLParser(page).root
    assert root is not None
    return tuple(_nodes(root))


def _nodes(node: LexborNode) -> Iterator[object]:
    child = node.child
    while child is not None:
        assert not child.is_comment_node
        inside = f"{node.tag} {child.tag}"
        if inside in ("pre ins", "pre del"):  # which words are marked depends on the words
            assert not child.attributes
            assert [inner.tag for inner in child.iter(include_text=True)] == ["-text"]
        elif child.is_element_node and inside != "h4 small":  # nor is it remarked on how far texts differ
            attributes = sorted((key, key in FREE or value) for key, value in child.attributes.items())
            assert child.tag != "a" or (child.attributes["href"] or "").startswith("#")
            text = child.text() if child.tag in ("script", "style") else ""
            yield child.tag, tuple(attributes), text, tuple(_nodes(child))
        child = child.next


def blocks_of(text: str) -> Tree:
    """Blocks, and what is not text in them; raw HTML with its content."""
    return tuple(
        (token.type, token.content if token.type == "html_block" else "", token.attrs == {}, _inline(token))
        for token in MARKDOWN.parse(text)
    )


def _inline(token: Token) -> Tree:
    texts = {"text", "text_special", "code_inline"}
    return tuple((child.type, child.content) for child in token.children or () if child.type not in texts)


def elements_of(text: str) -> list[object]:
    root = ElementTree.fromstring(text.encode())
    return [(element.tag, tuple(element.attrib), len(element)) for element in root.iter()]


def rows_of(text: str) -> list[object]:
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    arrow = pyarrow.csv.read_csv(
        io.BytesIO(text.encode()),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(rows[0], "string")),
    )
    assert [list(row.values()) for row in arrow.to_pylist()] == rows[1:]
    for cell in (cell for row in rows for cell in row):
        assert not re.match(r"[\s\u200b\ufeff]*[=+\-@＝＋－＠]|[\t\r]", cell), cell
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", cell), cell
    return [(row[3:8], len(row)) for row in rows]  # the numbers; everything else is text


def printed(found: Evaluation, texts: list[str]) -> str:
    file = io.StringIO()
    console = guarded(Console(file=file, width=140, emoji=False))
    console.print(report_table(found.report))
    console.print(gates_table(found.report))
    compare_reports(console, [(texts[0], found), (texts[-1], found)])
    show = RunDisplay(console)
    for text in texts:
        show(NoticeEvent(text))
    return file.getvalue()


def lines_of(text: str) -> str:
    for line in re.split("[\n\r\x0b\x0c\x85\u2028\u2029]", text):
        assert not line.lstrip().startswith("::"), line
        assert not re.search(r"##(\w*)\[", line), line
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    return ""  # how lines are wrapped depends on the texts


SINKS = {
    "html": Sink(125, lambda e, texts: render_html(e.report, e.samples, PNG, "\n".join(texts)), tree_of),
    "markdown": Sink(20, lambda e, _: render_markdown(e.report, e.samples), blocks_of),
    "junit": Sink(125, lambda e, _: render_junit(e.report, e.samples), elements_of),
    "csv": Sink(125, lambda e, _: render_csv(e.samples), rows_of),
    "terminal": Sink(125, printed, lines_of),
}


@cache
def expected(name: str, count: int) -> object:
    words = harmless(count)
    return SINKS[name].structure(SINKS[name].write(spoiled(words), words))


def check(name: str, texts: list[str]) -> str:
    """Everything in one document: assert its structure and return it."""
    sink = SINKS[name]
    document = sink.write(spoiled(texts), texts)
    found, wanted = sink.structure(document), expected(name, len(texts))
    assert found == wanted, difference(found, wanted)
    return document


def difference(first: object, second: object, at: str = "") -> str:
    """Where two structures part."""
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        parts = [(a, b, f"{at}.{place}") for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
        return difference(*parts[0]) if parts else f"{at}: {len(first)} parts, not {len(second)}: {first[-1:]!r:.500}"
    return f"{at}: {first!r:.500} is not {second!r:.500}"


def portions(name: str) -> Iterator[list[str]]:
    """All texts, some of them twice: portions of one size need but one comparison."""
    size = SINKS[name].at_once
    yield from (PAYLOADS[start:][:size] for start in range(0, len(PAYLOADS) - size, size))
    yield PAYLOADS[-size:]


def test_there_are_enough_texts_of_every_kind() -> None:
    assert len(PAYLOADS) >= 450
    assert all(len(family) >= 15 for family in FAMILIES.values())


def test_html_is_the_same_tree_and_shows_every_text() -> None:
    for texts in portions("html"):
        found = LexborHTMLParser(check("html", texts)).root
        assert found is not None
        shown = found.text()
        for text in texts:
            assert visible(text).lstrip("\n")[:NAME] in shown, text


def test_markdown_is_the_same_blocks_without_links_mentions_or_markup() -> None:
    kinds, shown = set(), ""
    for texts in portions("markdown"):
        for token in MARKDOWN.parse(check("markdown", texts)):
            for child in token.children or ():
                kinds.add(child.type)
            texts_alone = "".join(c.content for c in token.children or () if c.type in ("text", "text_special"))
            assert not re.search(r"(?<!\w)@\w|#\d|://|www[.]\w|\w@\w", texts_alone), texts_alone
            shown += "".join(child.content for child in token.children or ())
    assert kinds == {"text", "code_inline", "strong_open", "strong_close"}
    for text in PAYLOADS:
        assert one_line(text).strip()[:200].strip() in shown, text


def test_junit_is_the_same_elements() -> None:
    for texts in portions("junit"):
        check("junit", texts)


def test_csv_is_the_same_rows_and_holds_no_formula() -> None:
    for texts in portions("csv"):
        rows = list(csv.DictReader(io.StringIO(check("csv", texts), newline="")))
        given = [row["answer"] for row in rows if row["model"] not in ("base", "adapter") and row["attempt"] == "1"]
        assert [answer.removeprefix("'") for answer in given] == [visible(text).removeprefix("'") for text in texts]


def test_terminal_output_holds_no_control_character_and_no_command_and_every_text_as_it_is() -> None:
    for texts in portions("terminal"):
        shown = check("terminal", texts)
        for text in texts:
            if "::" not in text and "##" not in text:  # rich takes out a few control characters by itself
                first = visible(re.sub("[\x07\x08\x0b-\r]", "", text)).split("\n")[0]
                assert first.expandtabs(8).strip() in shown, text


def test_json_and_the_folder_give_every_text_back(tmp_path: Path) -> None:
    texts = PAYLOADS
    found = spoiled(texts)
    write_report(tmp_path / "report", found, recipe="\n".join(texts))
    assert read_evaluation(tmp_path / "report") == found
    lines = (tmp_path / "report" / "samples.jsonl").read_bytes().split(b"\n")[:-1]
    assert [json.loads(line)["id"] for line in lines] == texts
    assert [rival["name"] for rival in json.loads((tmp_path / "report" / "report.json").read_text())["rivals"]] == texts


def test_what_there_is_only_one_of_is_safe() -> None:
    """Name and base of the adapter, in the title and the heading; names in the gates' headline."""
    for name, limit in (("html", 10_000), ("markdown", 200), ("junit", 900)):
        plain = SINKS[name].structure(SINKS[name].write(_bare("word0"), []))
        for text in _joined(limit):
            page = SINKS[name].write(_bare(text), [])
            assert SINKS[name].structure(page) == plain, text


def _bare(text: str) -> Evaluation:
    found = spoiled([text])
    report = found.report.model_copy(update={"rivals": (), "prompts": None, "data": {}})
    return found.model_copy(update={"report": report, "samples": ()})


def _joined(limit: int) -> Iterator[str]:
    """All texts in pieces that are shown in full."""
    joined = ""
    for text in PAYLOADS:
        if joined and len(joined) + len(text) > limit:
            yield joined
            joined = ""
        joined += text[:limit]
    yield joined


def careless_html(*, autoescape: bool) -> jinja2.Environment:
    return _environment(autoescape=False)


_environment = render._environment


@pytest.mark.parametrize(
    ("name", "family", "where", "attribute", "careless"),
    [
        ("html", "tags", render, "_environment", careless_html),
        ("html", "attributes", render, "_environment", careless_html),
        ("html", "closers", render, "_environment", careless_html),
        ("markdown", "markdown", render, "markdown_text", lambda value: value),
        ("markdown", "markdown", render, "markdown_code", lambda text: render.Ready(f"`{text}`")),
        ("markdown", "markdown", render, "markdown_code", lambda text: render.Ready(html.escape(one_line(text)))),
        ("junit", "xml", junit, "_legal", lambda text, limit=0: text),
        ("csv", "csv", table, "_cell", str),
        ("csv", "xml", table, "_cell", lambda value: f"'{value}"),
        ("terminal", "terminal", safety, "visible", lambda text: text),
        ("terminal", "commands", safety._Guard, "_piece", lambda self, text: text),
    ],
)
def test_careless_writing_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, family: str, where: object, attribute: str, careless: object
) -> None:
    texts = [text for text in FAMILIES[family] if text.strip()][: SINKS[name].at_once]
    check(name, texts)
    for template in ("_html_templates", "_markdown_template"):
        monkeypatch.setattr(render, template, getattr(render, template).__wrapped__)  # compiled anew
    monkeypatch.setattr(where, attribute, careless)
    with pytest.raises((AssertionError, ElementTree.ParseError, csv.Error, ValueError)):
        check(name, texts)


@pytest.mark.parametrize("name", SINKS)
def test_half_a_pair_is_shown_by_its_code_point(name: str) -> None:
    """None comes from an answer, which is made valid before, but a file name may have one."""
    report = spoiled(["x"]).report.model_copy(update={"name": "a\ud800b", "base": "a\udfffb"})
    document = SINKS[name].write(spoiled(["x"]).model_copy(update={"report": report}), ["\ud800"])
    document.encode("utf-8")
    assert name == "csv" or "a[U+D800]b" in document.replace("&#91;", "[").replace("&#93;", "]")
