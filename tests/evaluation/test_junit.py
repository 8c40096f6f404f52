"""junit.xml: each prompt a test, failures told from what is undecided, and hostile text that stays text."""

from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.gates import apply_gates
from finetune.evaluation.junit import MAX_TEXT, render_junit
from finetune.evaluation.report import Report, samples_of
from finetune.recipe import Gate
from tests.evaluation.test_report import HOSTILE, a_report, graded


def parsed(texts: list[str], report: Report | None = None) -> Element:
    base, adapter = graded(["no"] * len(texts)), graded(texts)
    made = report or a_report(base, adapter)
    return fromstring(render_junit(made, samples_of(base, adapter)).encode())


def test_each_prompt_is_a_test_and_a_missed_check_is_a_failure() -> None:
    root = parsed(["one pizza", "a cola", "two pizzas"])
    cases = root.findall("testsuite[@name='prompts']/testcase")
    assert [case.get("name") for case in cases] == ["p-0", "p-1", "p-2"]
    assert [len(case.findall("failure")) for case in cases] == [0, 1, 0]
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.get("message") == "contains 'pizza': missing: 'pizza'"
    said = cases[1].findtext("system-out") or ""
    assert said == "system: Be kind.\nuser: question 1\n\nadapter: a cola\n\nbase: no"
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "0")


@pytest.mark.parametrize(
    ("bound", "tag"),
    [({"at_most": 10.0}, None), ({"at_most": 0.001}, "failure"), ({"at_least": 0.5}, "skipped")],
)
def test_a_gate_passes_fails_or_is_left_open(bound: dict[str, float], tag: str | None) -> None:
    base, adapter = graded(["pizza", "no"] * 3), graded(["pizza", "no"] * 3)
    metric = "prompts.pass_rate" if tag == "skipped" else "perplexity.heldout.ratio"
    report = apply_gates({metric: Gate(**bound)}, a_report(base, adapter))  # type: ignore[dict-item]
    (case,) = parsed(["x"], report).findall("testsuite[@name='gates']/testcase")
    assert (case.get("name") or "").startswith(metric)
    assert [child.tag for child in case] == ([tag] if tag else [])


def test_without_prompts_and_gates_there_is_an_empty_document() -> None:
    root = fromstring(render_junit(a_report(), ()).encode())
    assert (root.get("tests"), len(root)) == ("0", 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(HOSTILE) | st.text(), min_size=1, max_size=4))
def test_no_answer_changes_the_structure(texts: list[str]) -> None:
    root = parsed(texts)
    assert [case.get("name") for case in root.iter("testcase")] == [f"p-{n}" for n in range(len(texts))]
    assert {element.tag for element in root.iter()} <= {"testsuites", "testsuite", "testcase", "failure", "system-out"}


def test_every_control_character_is_replaced() -> None:
    text = "".join(map(chr, range(0x20))) + "\ud800\ufffe\uffff]]>&<"
    said = next(parsed([text]).iter("system-out")).text or ""
    assert "\t\n" in said
    assert "]]>&<" in said
    assert not any(ord(c) < 0x20 and c not in "\t\n\r" for c in said)


def test_a_long_answer_is_cut_and_says_so() -> None:
    said = next(parsed(["x" * 10**6]).iter("system-out")).text or ""
    assert len(said) < MAX_TEXT + 100
    assert said.endswith("more characters)")


def test_ten_thousand_prompts_are_ten_thousand_tests() -> None:
    assert parsed(["pizza", "no"] * 5000).get("tests") == "10000"
