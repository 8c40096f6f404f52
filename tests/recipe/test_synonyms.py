"""Other tools' keys: each is answered with our key, or with the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.recipe.keys import all_keys, walk
from finetune.recipe.synonyms import ABSENT, NOTES, SYNONYMS, TOOLS
from tests.recipe.helpers import REQUIRED, refusal

OURS = {key.name.rpartition(".")[2] for key in walk()}


def test_there_are_many_and_no_name_has_two_meanings() -> None:
    assert len(SYNONYMS) >= 101
    assert set(SYNONYMS) & set(ABSENT) == set()
    assert sum(map(len, TOOLS.values())) == len(SYNONYMS), "a name stands with one tool only"
    assert set(NOTES) <= set(SYNONYMS)


@pytest.mark.parametrize(("synonym", "key"), SYNONYMS.items())
def test_every_synonym_names_a_key_that_exists_and_is_none_itself(synonym: str, key: str) -> None:
    assert key in all_keys()
    assert synonym not in OURS


@pytest.mark.parametrize(("name", "reason"), ABSENT.items())
def test_every_absent_key_is_none_of_ours_and_has_a_reason_of_one_sentence(name: str, reason: str) -> None:
    assert name not in OURS
    assert not reason.endswith(".")
    assert ". " not in reason
    assert len(reason) < 110


@pytest.mark.parametrize("synonym", SYNONYMS)
def test_a_synonym_is_answered_with_our_key(tmp_path: Path, synonym: str) -> None:
    assert f"{synonym}: no such key; here it is called '{SYNONYMS[synonym]}'" in refusal(
        tmp_path, f"{REQUIRED}{synonym}: 1"
    )


def test_the_answer_says_where_the_value_changes_with_the_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"{REQUIRED}train:\n  gradient_accumulation_steps: 4")
    assert message == (
        "recipe.yaml:5:3: train.gradient_accumulation_steps: no such key; here it is called 'train.batch_size' "
        "(examples per optimizer step, over all processes; accumulation follows from it)"
    )


@pytest.mark.parametrize("name", ABSENT)
def test_an_absent_key_is_answered_with_the_reason(tmp_path: Path, name: str) -> None:
    assert f"{name}: no such key; there is none, because {ABSENT[name]}" in refusal(tmp_path, f"{REQUIRED}{name}: 1")


def test_a_misspelt_foreign_key_is_understood_too(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"{REQUIRED}sample_packin: true\ncutof_len: 8\n")
    assert "sample_packin: no such key; if it means 'sample_packing': there is none, because examples are" in message
    assert "cutof_len: no such key; did you mean 'data.max_length'?" in message
