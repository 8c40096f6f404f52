"""What `normalize` does to a text before it is compared: only what the prompts file declares.

The steps, applied in this order whatever the order of the list. They are those of SQuAD's evaluation,
and `accents`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import regex

_PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]+")  # Unicode's, and what ASCII has beyond it
_ARTICLES = regex.compile(r"(?<!\S)(?:a|an|the)(?!\S)\s*", regex.IGNORECASE)
_MARKS = regex.compile(r"\p{Mn}+")


def _without_accents(text: str) -> str:
    return unicodedata.normalize("NFC", _MARKS.sub("", unicodedata.normalize("NFD", text)))


STEPS: dict[str, Callable[[str], str]] = {
    "case": str.casefold,
    "accents": _without_accents,
    "punctuation": lambda text: _PUNCTUATION.sub("", text),
    "articles": lambda text: _ARTICLES.sub("", text),
    "space": lambda text: " ".join(text.split()),
}
STEPS_SAY = {
    "case": "Unicode case folding: `STRASSE` is `straße`",
    "accents": "marks on letters are taken off: `jalapeño` is `jalapeno`",
    "punctuation": "punctuation (Unicode category P, and `` $+<=>^`|~ ``) is removed: `o'clock` is `oclock`",
    "articles": "the words a, an and the, in any case, are removed where white space or nothing is around them",
    "space": "white space at both ends is removed, and any other run of it is one space",
}


def normalized(text: str, steps: tuple[str, ...]) -> str:
    """Apply the named steps, in the order of `STEPS`."""
    for name, step in STEPS.items():
        if name in steps:
            text = step(text)
    return text
