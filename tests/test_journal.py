"""Journals: nothing is computed twice, and no damage to the file ever turns into a wrong result."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from finetune import journal as journals
from finetune.errors import FinetuneError
from finetune.journal import Journal, key_of, open_journal

VALUE = [[0.1, -2.5e-300, 3], ["ü\u2028", True, None]]


def test_what_was_computed_is_kept_and_comes_back_exactly(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    asked: list[int] = []

    def compute() -> object:
        asked.append(1)
        return VALUE

    for _ in range(2):
        kept = Journal(file)
        assert [kept.once(["x", 1], compute), kept.once(["x", 1], compute)] == [VALUE, VALUE]
    assert len(asked) == 1
    assert Journal(file).once(["x", 2], compute) == VALUE
    assert len(asked) == 2


def test_without_a_file_everything_is_computed(tmp_path: Path) -> None:
    asked: list[int] = []
    kept = Journal()
    for _ in range(2):
        kept.once("x", lambda: asked.append(1))
    assert len(asked) == 2


def test_what_comes_back_does_not_share_state_with_what_was_kept(tmp_path: Path) -> None:
    kept = Journal(tmp_path / "a.jsonl")
    kept.once("x", lambda: [1])[0] = 2
    assert kept.once("x", lambda: [3]) == [1]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """A line that is not as it was written is as if it were not there: the result is computed again."""
    file = tmp_path / "a.jsonl"
    kept = Journal(file)
    for number in range(3):
        kept.put(key_of(number), [number, "text"])
    whole = file.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 32):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            found = Journal(file)
            assert all(found.get(key_of(n)) in (None, [n, "text"]) for n in range(3))
            assert sum(found.get(key_of(n)) is None for n in range(3)) in (0, 1, 2)  # two, where a line's end went


def test_a_flip_in_a_line_is_never_taken_for_sound(tmp_path: Path) -> None:
    file, rng = tmp_path / "a.jsonl", random.Random(0)
    for trial in range(300):
        file.unlink(missing_ok=True)
        Journal(file).put(key_of(trial), [trial / 7])
        content = bytearray(file.read_bytes())
        start, end = content.index(b'"value"'), len(content) - 2
        place = rng.randrange(start + 9, end)
        content[place] = ord("7") if content[place] != ord("7") else ord("8")
        file.write_bytes(content)
        assert Journal(file).get(key_of(trial)) in (None, [trial / 7])  # the same number, written otherwise


def test_a_file_cut_anywhere_gives_the_results_before_the_cut_and_takes_new_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for number in range(3):
        Journal(file).put(key_of(number), number)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        before = [n for n in range(3) if Journal(file).get(key_of(n)) is not None]
        assert before == list(range(len(before)))
        assert len(before) >= whole[:size].count(b"\n")
        Journal(file).put("new", "kept")
        found = Journal(file)
        assert found.get("new") == "kept"
        assert [n for n in range(3) if found.get(key_of(n)) == n] == before


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"key": 5, "sum": "", "value": 1}', "[" * 100_000, '{"key": "a", "value": 1}', "\ufffd"]
)
def test_foreign_lines_are_passed_over(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f"{line}\n")
    kept = Journal(file)
    assert kept.get("a") is None
    kept.put("a", 2)
    assert Journal(file).get("a") == 2


def test_two_writers_keep_each_other_s_results(tmp_path: Path) -> None:
    one, two = Journal(tmp_path / "a"), Journal(tmp_path / "a")
    one.put("aa", [1])
    two.put("bb", [2])
    one.put("cc", [3])
    both = Journal(tmp_path / "a")
    assert [both.get(key) for key in ("aa", "bb", "cc", "dd")] == [[1], [2], [3], None]


def test_other_conditions_have_another_journal(tmp_path: Path) -> None:
    open_journal(tmp_path, {"a": 1, "b": [2]}).put("x", 1)
    assert open_journal(tmp_path, {"b": [2], "a": 1}).get("x") == 1
    assert open_journal(tmp_path, {"a": 1, "b": [3]}).get("x") is None


def test_the_least_recently_used_journals_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MAX_BYTES", 2500)
    for number in range(5):
        open_journal(tmp_path, number).put("x", "y" * 1000)
        for age, file in enumerate(sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(file, (age, age))
    kept = [open_journal(tmp_path, number).get("x") is not None for number in (4, 3, 0)]
    assert kept == [True, True, False]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FinetuneError, match="results cannot be kept") as error:
        open_journal(tmp_path / "file", 1)
    assert str(tmp_path / "file") in str(error.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FinetuneError, match="results cannot be kept"):
        Journal(tmp_path / "folder")
    kept = Journal(tmp_path / "gone" / "a")
    with pytest.raises(FinetuneError, match="set FINETUNE_CACHE"):
        kept.put("a", 1)


def test_lines_can_be_read_by_people(tmp_path: Path) -> None:
    Journal(tmp_path / "a").put("k", {"b": 1})
    assert json.loads((tmp_path / "a").read_text())["value"] == {"b": 1}
