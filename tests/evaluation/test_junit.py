"""junit.xml: each prompt a test; a failure, an error and what is undecided are told apart."""

from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.gates import apply_gates
from finetune.evaluation.junit import MAX_TEXT, render_junit
from finetune.evaluation.report import Evaluation, Sample, SampleOutcome
from finetune.recipe import Gate
from tests.evaluation.builders import HOSTILE, Texts, an_evaluation

BROKEN = SampleOutcome(check="function checks.py:price", passed=False, detail="ZeroDivisionError", error=True)


def document(found: Evaluation) -> Element:
    return fromstring(render_junit(found.report, found.samples).encode())


def parsed(texts: Texts) -> Element:
    return document(an_evaluation(["no" if isinstance(text, str) else ["no"] * len(text) for text in texts], texts))


def counts(element: Element) -> list[str | None]:
    return [element.get(name) for name in ("tests", "failures", "errors", "skipped")]


def with_outcomes(sample: Sample, *outcomes: SampleOutcome) -> Sample:
    answers = tuple(a.model_copy(update={"passed": False, "outcomes": outcomes}) for a in sample.adapter)
    return sample.model_copy(update={"adapter": answers})


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
    assert counts(root) == counts(root[0]) == ["3", "1", "0", "0"]


def test_a_flaky_prompt_is_a_failure_that_says_how_many_passed() -> None:
    root = parsed([["pizza", "no", "pizza", "pizza", "no"], ["pizza"] * 5, ["no"] * 5])
    found = [case.find("failure") for case in root.iter("testcase")]
    assert [failure.get("message") if failure is not None else None for failure in found] == [
        "3 of 5 answers passed; contains 'pizza': missing: 'pizza'",
        None,
        "0 of 5 answers passed; contains 'pizza': missing: 'pizza'",
    ]
    said = next(root.iter("system-out")).text or ""
    assert "adapter, answer 2, failed: no\n\nadapter, answer 3, passed: pizza" in said
    assert counts(root) == ["3", "2", "0", "0"]


def test_only_checks_that_could_not_be_carried_out_make_an_error() -> None:
    found = an_evaluation(["no"] * 3, ["no"] * 3)
    first, second, third = found.samples
    failed = third.adapter[0].outcomes[0]
    samples = (
        with_outcomes(first, BROKEN),
        with_outcomes(second, BROKEN, BROKEN),
        with_outcomes(third, BROKEN, failed),
    )
    root = document(found.model_copy(update={"samples": samples}))
    assert [case[0].tag for case in root.iter("testcase")] == ["error", "error", "failure"]
    assert root[0][0][0].get("message") == "function checks.py:price: ZeroDivisionError"
    assert counts(root) == counts(root[0]) == ["3", "1", "2", "0"]


@pytest.mark.parametrize(
    ("bound", "tag"),
    [({"at_most": 10.0}, None), ({"at_most": 0.001}, "failure"), ({"at_least": 0.5}, "skipped")],
)
def test_a_gate_passes_fails_or_is_left_open(bound: dict[str, float], tag: str | None) -> None:
    metric = "prompts.pass_rate" if tag == "skipped" else "perplexity.heldout.ratio"
    found = apply_gates({metric: Gate(**bound)}, an_evaluation(["pizza", "no"] * 3, ["pizza", "no"] * 3))  # type: ignore[dict-item]
    (case,) = document(found).findall("testsuite[@name='gates']/testcase")
    assert (case.get("name") or "").startswith(metric)
    assert [child.tag for child in case] == ([tag] if tag else [])


def test_without_prompts_and_gates_there_is_an_empty_document() -> None:
    root = document(an_evaluation())
    assert (counts(root), len(root)) == (["0", "0", "0", "0"], 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(HOSTILE) | st.text(), min_size=1, max_size=4))
def test_no_answer_changes_the_structure(texts: list[str]) -> None:
    root = parsed(texts)
    assert [case.get("name") for case in root.iter("testcase")] == [f"p-{n}" for n in range(len(texts))]
    assert {element.tag for element in root.iter()} <= {"testsuites", "testsuite", "testcase", "failure", "system-out"}


def test_every_control_character_is_made_visible() -> None:
    text = "".join(map(chr, range(0x20))) + "\ud800\ufffe\uffff]]>&<"
    said = next(parsed([text]).iter("system-out")).text or ""
    assert "\t\n␋" in said
    assert "?[U+FFFE][U+FFFF]]]>&<" in said
    assert not any(ord(c) < 0x20 and c not in "\t\n" for c in said)


def test_a_long_answer_is_cut_and_says_so() -> None:
    said = next(parsed(["x" * 10**6]).iter("system-out")).text or ""
    assert len(said) < MAX_TEXT + 100
    assert said.endswith("more characters)")


def test_ten_thousand_prompts_are_ten_thousand_tests() -> None:
    found = an_evaluation(["no", "no"], ["pizza", "no"])
    root = document(found.model_copy(update={"samples": found.samples * 5000}))
    assert counts(root) == ["10000", "5000", "0", "0"]
