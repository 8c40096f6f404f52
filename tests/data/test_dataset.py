"""From files to tokenised rows: every bad row named, and a split that depends on nothing but each row's prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from finetune.data.dataset import MAX_REPORTED, Rows, load_dataset, load_rows
from finetune.data.encoding import encode
from finetune.data.examples import Example, Rejected, Source, fraction, read_examples
from finetune.data.messages import Message
from finetune.data.probing import load_template
from finetune.data.template import ChatTemplate
from finetune.errors import DataError
from finetune.files import sha256_file
from finetune.recipe import DataSection, MixSource


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return load_template(tokenizer, "test")


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pizzas(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Give me {n} pizzas", "output": f"Here are {n}."} for n in range(count)]


def example(prompt: str, answer: str = "Yes.") -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)), "here:1")


def source(path: str, format: str = "instruction", system: str | None = None) -> Source:
    return Source("train", path, format, system=system)


def examples_of(source: Source) -> list[Example]:
    made = list(read_examples(source))
    assert all(isinstance(row, Example) for row in made)
    return [row for row in made if isinstance(row, Example)]


def texts(rows: Rows, template: ChatTemplate) -> list[str]:
    return [template.tokenizer.decode(row.ids) for row in rows]


def test_examples_know_where_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pizzas(2))
    first, second = examples_of(source(path))
    assert first.messages == (Message("user", "Give me 0 pizzas"), Message("assistant", "Here are 0."))
    assert (first.where, second.where) == (f"{path}:1", f"{path}:2")
    assert first.prompt == first.messages[:1]


def test_the_system_prompt_goes_where_none_is(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*pizzas(1), {**pizzas(1)[0], "system": "Own."}])
    first, second = examples_of(source(path, system="Be short."))
    assert [m.role for m in first.messages] == ["system", "user", "assistant"]
    assert (first.messages[0].content, second.messages[0].content) == ("Be short.", "Own.")
    assert len(second.messages) == 3


@pytest.mark.parametrize(
    ("row", "name", "fits"),
    [
        ({"prompt": "a", "completion": "b"}, "instruction", "the row fits format prompt_completion"),
        ({"instruction": "a", "output": "b"}, "messages", "the row fits format instruction"),
        ({"messages": []}, "alpaca", "the row fits format messages"),
    ],
)
def test_missing_keys_name_the_format_that_would_fit(
    tmp_path: Path, template: ChatTemplate, row: dict[str, str], name: str, fits: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError) as error:
        load_rows(source(path, name), template, 64)
    assert str(error.value).startswith(f"{path}:1: no key ")
    assert fits in str(error.value)
    assert f"format {name!r} needs" in str(error.value)
    assert all(repr(key) in str(error.value) for key in row)


def test_a_row_that_fits_nothing_gets_no_hint(tmp_path: Path, template: ChatTemplate) -> None:
    with pytest.raises(DataError) as error:
        load_rows(source(write(tmp_path / "rows.jsonl", [{"question": "a"}])), template, 64)
    assert "no key 'instruction', 'output' (it has 'question')" in str(error.value)
    assert "the row fits" not in str(error.value)


def test_every_bad_row_is_named_up_to_a_number(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [{**row, "output": ""} if n % 2 else row for n, row in enumerate(pizzas(60))]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as error:
        load_rows(source(path), template, 64)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{path}:2: 'output' is empty")
    assert lines[1].startswith(f"{path}:4: ")
    assert len(lines) == MAX_REPORTED + 2
    assert lines[-2] == "... and 10 more rows"


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "a,b\n")]
)
def test_an_empty_file_is_refused(tmp_path: Path, template: ChatTemplate, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: holds no rows"):
        load_rows(source(str(tmp_path / name)), template, 64)


def test_a_dataset_with_a_heldout_file_and_a_mix(tmp_path: Path, template: ChatTemplate) -> None:
    path, heldout = write(tmp_path / "rows.jsonl", pizzas(5)), write(tmp_path / "heldout.jsonl", pizzas(7)[5:])
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    general = write(tmp_path / "general.jsonl", [{"messages": turns}] * 3)
    section = DataSection(path=path, heldout=heldout, system="Sys", mix=(MixSource(path=general, weight=0.5),))
    dataset = load_dataset(section, template)
    assert (len(dataset.train), len(dataset.heldout), len(dataset.mix[0].rows)) == (5, 2, 3)
    assert dataset.mix[0].weight == 0.5
    assert all("Sys" in text for text in texts(dataset.train, template) + texts(dataset.heldout, template))
    assert not any("Sys" in text for text in texts(dataset.mix[0].rows, template))
    assert dataset.sha256 == {name: sha256_file(name) for name in (path, heldout, general)}


def test_an_empty_heldout_file_is_refused(tmp_path: Path, template: ChatTemplate) -> None:
    section = DataSection(path=write(tmp_path / "a.jsonl", pizzas(3)), heldout=write(tmp_path / "b.jsonl", []))
    with pytest.raises(DataError, match=r"b\.jsonl: holds no rows"):
        load_dataset(section, template)


def test_a_share_that_leaves_a_side_empty_is_refused(tmp_path: Path, template: ChatTemplate) -> None:
    path = write(tmp_path / "a.jsonl", pizzas(1))
    with pytest.raises(DataError, match=r"1 rows split by 0\.01 leave 1 to train on and 0 held out; add rows"):
        load_dataset(DataSection(path=path, heldout=0.01), template)


def test_a_share_splits_the_file_and_loses_nothing(tmp_path: Path, template: ChatTemplate) -> None:
    path = write(tmp_path / "a.jsonl", pizzas(2000))
    dataset = load_dataset(DataSection(path=path, heldout=0.2), template)
    assert len(dataset.train) + len(dataset.heldout) == 2000
    assert 330 <= len(dataset.heldout) <= 470  # 400 expected, four standard deviations of 18
    assert dataset.sha256 == {path: sha256_file(path)}
    lines = [int(row.where.rpartition(":")[2]) for row in dataset.train]
    assert lines == sorted(lines)
    assert not set(lines) & {int(row.where.rpartition(":")[2]) for row in dataset.heldout}


def test_a_shuffled_or_extended_file_is_split_the_same_way(tmp_path: Path, template: ChatTemplate) -> None:
    def heldout(rows: list[dict[str, str]]) -> set[str]:
        path = write(tmp_path / "a.jsonl", rows)
        return set(texts(load_dataset(DataSection(path=path, heldout=0.3), template).heldout, template))

    first = heldout(pizzas(60))
    assert heldout(pizzas(60)[::-1]) == first
    assert heldout([*pizzas(90)[60:], *pizzas(60)]) > first


EXAMPLES = st.lists(st.tuples(st.text(max_size=6), st.text(max_size=3)).map(lambda t: example(*t)), min_size=1)


@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES)
def test_a_row_s_side_depends_on_its_prompt_alone(examples: list[Example]) -> None:
    sides = {(e.prompt, fraction(e)) for e in examples}
    assert len(sides) == len({e.prompt for e in examples})
    assert all(0 <= side < 1 for _, side in sides)


def test_a_text_s_side_depends_on_the_text() -> None:
    sides = {fraction(Example((Message("text", f"Line {n}"),), "here:1")) for n in range(50)}
    assert len(sides) == 50


def test_what_a_custom_format_leaves_out_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_out.py").write_text(
        "def every_second(row):\n    return row['turns'] if row['n'] % 2 else None\n"
    )
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path / "rows.jsonl", [{"n": n, "turns": turns} for n in range(6)])
    made = list(read_examples(source(path, "leaving_out:every_second")))
    assert [isinstance(row, Example) for row in made] == [False, True] * 3
    assert {row.code for row in made if isinstance(row, Rejected)} == {"D009"}


def test_long_examples_are_an_error_or_counted(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [{"instruction": "How much? " * n, "output": "Five."} for n in (1, 40, 2, 80, 3)]
    path = write(tmp_path / "rows.jsonl", rows)
    lengths = [len(encode(e, template).ids) for e in examples_of(source(path))]
    with pytest.raises(DataError) as error:
        load_rows(source(path), template, lengths[4])
    assert f"2 of 5 examples exceed data.max_length {lengths[4]} tokens" in str(error.value)
    assert f"longest {lengths[3]}, {path}:4" in str(error.value)
    kept = load_rows(source(path), template, lengths[4], drop_long=True)
    assert ([row.where for row in kept], kept.dropped) == ([f"{path}:{n}" for n in (1, 3, 5)], 2)
    assert [row.where for row in kept[1:]] == [f"{path}:3", f"{path}:5"]
    assert load_rows(source(path), template, max(lengths)).dropped == 0
    with pytest.raises(DataError, match="all 5 examples exceed 3 tokens, so none is left"):
        load_rows(source(path), template, 3, drop_long=True)
