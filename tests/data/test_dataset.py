"""Reading and splitting: every bad row named, and a split that depends on nothing but each row's prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.dataset import MAX_REPORTED, Example, load_dataset, read_examples, split
from finetune.data.formats import Message
from finetune.errors import DataError
from finetune.files import sha256_file
from finetune.recipe import DataSection, MixSource


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pizzas(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Give me {n} pizzas", "output": f"Here are {n}."} for n in range(count)]


def example(prompt: str, answer: str = "Yes.") -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)), "here:1")


def prompts_of(examples: Sequence[Example]) -> list[str]:
    return [e.prompt[-1].content for e in examples]


def test_examples_know_where_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pizzas(2))
    first, second = read_examples(path, "instruction")
    assert first.messages == (Message("user", "Give me 0 pizzas"), Message("assistant", "Here are 0."))
    assert (first.where, second.where) == (f"{path}:1", f"{path}:2")
    assert first.prompt == first.messages[:1]


def test_the_system_prompt_goes_where_none_is(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*pizzas(1), {**pizzas(1)[0], "system": "Own."}])
    first, second = read_examples(path, "instruction", "Be short.")
    assert [m.role for m in first.messages] == ["system", "user", "assistant"]
    assert (first.messages[0].content, second.messages[0].content) == ("Be short.", "Own.")
    assert len(second.messages) == 3


@pytest.mark.parametrize(
    ("row", "name", "fits"),
    [
        ({"prompt": "a", "completion": "b"}, "instruction", "the row fits format prompt_completion"),
        ({"instruction": "a", "output": "b"}, "messages", "the row fits format instruction or alpaca"),
        ({"messages": []}, "alpaca", "the row fits format messages"),
    ],
)
def test_missing_keys_name_the_format_that_would_fit(tmp_path: Path, row: dict[str, str], name: str, fits: str) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError) as error:
        read_examples(path, name)
    assert str(error.value).startswith(f"{path}:1: no key ")
    assert fits in str(error.value)
    assert f"format {name!r} needs" in str(error.value)
    assert all(repr(key) in str(error.value) for key in row)


def test_a_row_that_fits_nothing_gets_no_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_examples(write(tmp_path / "rows.jsonl", [{"question": "a"}]), "instruction")
    assert "no key 'instruction', 'output' (it has 'question')" in str(error.value)
    assert "the row fits" not in str(error.value)


def test_every_bad_row_is_named_up_to_a_number(tmp_path: Path) -> None:
    rows = [{**row, "output": ""} if n % 2 else row for n, row in enumerate(pizzas(60))]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as error:
        read_examples(path, "instruction")
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{path}:2: 'output' is empty")
    assert lines[1].startswith(f"{path}:4: ")
    assert len(lines) == MAX_REPORTED + 2
    assert lines[-2] == "... and 10 more rows"


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "a,b\n")]
)
def test_an_empty_file_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: holds no rows"):
        read_examples(str(tmp_path / name), "instruction")


def test_a_dataset_with_a_heldout_file_and_a_mix(tmp_path: Path) -> None:
    path, heldout = write(tmp_path / "rows.jsonl", pizzas(5)), write(tmp_path / "heldout.jsonl", pizzas(7)[5:])
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    general = write(tmp_path / "general.jsonl", [{"messages": turns}] * 3)
    section = DataSection(path=path, heldout=heldout, system="S", mix=(MixSource(path=general, weight=0.5),))
    dataset = load_dataset(section)
    assert (len(dataset.train), len(dataset.heldout), len(dataset.mix[0].examples)) == (5, 2, 3)
    assert dataset.mix[0].weight == 0.5
    assert {e.messages[0].content for e in (*dataset.train, *dataset.heldout)} == {"S"}
    assert dataset.sha256 == {name: sha256_file(name) for name in (path, heldout, general)}


def test_an_empty_heldout_file_is_refused(tmp_path: Path) -> None:
    section = DataSection(path=write(tmp_path / "a.jsonl", pizzas(3)), heldout=write(tmp_path / "b.jsonl", []))
    with pytest.raises(DataError, match=r"b\.jsonl: holds no rows"):
        load_dataset(section)


def test_a_share_that_leaves_a_side_empty_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pizzas(1))
    with pytest.raises(DataError, match=r"1 rows split by 0\.01 leave 1 to train on and 0 held out; add rows"):
        load_dataset(DataSection(path=path, heldout=0.01))


def test_a_share_splits_the_file_and_loses_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pizzas(2000))
    dataset = load_dataset(DataSection(path=path, heldout=0.2))
    assert len(dataset.train) + len(dataset.heldout) == 2000
    assert 330 <= len(dataset.heldout) <= 470  # 400 expected, four standard deviations of 18
    assert dataset.sha256 == {path: sha256_file(path)}
    assert prompts_of(dataset.train) == sorted(prompts_of(dataset.train), key=lambda p: int(p.split()[2]))


EXAMPLES = st.lists(st.tuples(st.text(max_size=6), st.text(max_size=3)).map(lambda t: example(*t)), min_size=1)


@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES, further=EXAMPLES, share=st.floats(0.01, 0.5), random=st.randoms())
def test_a_row_s_side_depends_on_its_prompt_alone(
    examples: list[Example], further: list[Example], share: float, random: object
) -> None:
    train, heldout = split(examples, share)
    assert len(train) + len(heldout) == len(examples)
    assert not set(prompts_of(train)) & set(prompts_of(heldout))  # equal prompts stand on one side
    longer = [*further, *examples]
    random.shuffle(longer)  # type: ignore[attr-defined]
    more_train, more_heldout = split(longer, share)
    assert set(train) <= set(more_train)
    assert set(heldout) <= set(more_heldout)


def test_a_larger_share_only_adds_to_the_heldout_rows() -> None:
    examples = [example(str(n)) for n in range(300)]
    sides = [set(split(examples, share)[1]) for share in (0.1, 0.2, 0.5)]
    assert sides[0] < sides[1] < sides[2]
