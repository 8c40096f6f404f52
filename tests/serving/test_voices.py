"""A voice is read as it was written, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import AdapterError
from finetune.serving.voices import LARGEST, MAX_PARTS, SMALLEST, Voice, parse_voice

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
SIZES = st.floats(SMALLEST, LARGEST)
WEIGHTS = st.one_of(st.just(1.0), SIZES, SIZES.map(lambda size: -size))
PARTS = st.lists(st.tuples(NAMES, WEIGHTS), min_size=1, max_size=MAX_PARTS, unique_by=lambda part: part[0])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pizza", (("pizza", 1.0),)),
        ("pizza+0.5*cheerful", (("pizza", 1.0), ("cheerful", 0.5))),
        (" 2.0*a + -0.25*b.c_d-e ", (("a", 2.0), ("b.c_d-e", -0.25))),
        ("v1.5+1*x", (("v1.5", 1.0), ("x", 1.0))),
    ],
)
def test_voices_are_read(text: str, parts: tuple[tuple[str, float], ...]) -> None:
    assert parse_voice(text) == Voice(parts)


@given(PARTS)
def test_the_text_of_a_voice_reads_as_the_same_voice(parts: list[tuple[str, float]]) -> None:
    voice = Voice(tuple(parts))
    assert parse_voice(str(voice)) == voice
    assert str(parse_voice(str(voice))) == str(voice)


def test_no_voice_is_the_base() -> None:
    assert parse_voice(None) == Voice(())
    assert str(Voice(())) == ""


@pytest.mark.parametrize(
    "text",
    ["", " ", "+", "a+", "+a", "a++b", "*a", "0.5*", "x*a", "1e3*a", "inf*a", "nan*a", "1**a", "a*b*c", "0*a", "0.0*a",
     "101*a", "0.00001*a", "a+a", "a+0.5*a", "+".join("abcdefghi"), "a" * 2000, "--1*a", "1.5.5*a"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(AdapterError):
        parse_voice(text)
