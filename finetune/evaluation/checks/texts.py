"""Checks of what stands in the answer. Text is compared exactly as the model wrote it, unless
`normalize` says otherwise."""

from __future__ import annotations

import regex as regex_library

from finetune.evaluation.checks.core import Answer, CheckError, check
from finetune.evaluation.checks.normalize import normalized
from finetune.evaluation.checks.values import Flag, MaybeEmpty, Normalize, Patterns, Texts, compile_pattern, quote

REGEX_TIMEOUT = 1.0  # seconds of CPU time; a pattern that backtracks without end must not stop an evaluation
REFUSALS = (
    "i can't help",
    "i can't assist",
    "i can't answer",
    "i can't provide",
    "i can't do that",
    "i can't comply",
    "i can't fulfill",
    "i can't discuss",
    "i can't talk about",
    "i cannot help",
    "i cannot assist",
    "i cannot answer",
    "i cannot provide",
    "i cannot do that",
    "i cannot comply",
    "i cannot fulfill",
    "i cannot discuss",
    "i cannot talk about",
    "i am unable to",
    "i'm unable to",
    "i am not able to",
    "i'm not able to",
    "i won't help",
    "i won't be able to",
    "i will not help",
    "i must decline",
    "i have to decline",
    "i refuse to",
    "i'm sorry, but i can't",
    "i'm sorry, but i cannot",
    "i don't feel comfortable",
    "against my guidelines",
    "as an ai",
)
_REFUSAL = regex_library.compile(rf"(?<!\w)(?:{'|'.join(map(regex_library.escape, REFUSALS))})(?!\w)")


@check
def contains(answer: Answer, values: Texts, *, normalize: Normalize = ()) -> str | None:
    """All of the values occur in the answer.

    Example: {contains: [margherita, two colas], ignore_case: true}
    """
    missing = _missing(answer, values, normalize)
    return f"missing: {quote(missing)}" if missing else None


@check
def any_of(answer: Answer, values: Texts, *, normalize: Normalize = ()) -> str | None:
    """At least one of the values occurs in the answer.

    Example: {any_of: [jalapeno, chilli], normalize: [case, accents]}
    """
    missing = _missing(answer, values, normalize)
    return f"none of {quote(values)}" if len(missing) == len(values) else None


@check
def not_contains(answer: Answer, values: Texts, *, normalize: Normalize = ()) -> str | None:
    """None of the values occurs in the answer.

    Example: {not_contains: [sorry, unable], ignore_case: true}
    """
    missing = _missing(answer, values, normalize)
    found = [value for value in values if value not in missing]
    return f"found: {quote(found)}" if found else None


@check
def equals(answer: Answer, values: MaybeEmpty, *, normalize: Normalize = ()) -> str | None:
    """The whole answer is one of the values; leading and trailing spaces count.

    Example: {equals: ["Yes", "Yes, it is"], normalize: [case, punctuation, space]}
    """
    text = normalized(answer.text, normalize)
    return None if any(normalized(v, normalize) == text for v in values) else f"got {quote([answer.text])}"


@check
def regex(answer: Answer, patterns: Patterns, *, ignore_case: Flag = False) -> str | None:
    """Every pattern is found somewhere in the answer; a search may take 1 s of CPU time.

    Patterns are those of the Python library `regex`.

    Example: {regex: '\\b(cancel+ed|removed)\\b', ignore_case: true}
    """
    missing = []
    for pattern in patterns:
        try:
            if compile_pattern(pattern, ignore_case).search(answer.text, timeout=REGEX_TIMEOUT) is None:
                missing.append(pattern)
        except TimeoutError:
            what = f"timed out after {REGEX_TIMEOUT:g} s: {quote([pattern])}; simplify the pattern"
            raise CheckError(what) from None
    return f"no match: {quote(missing)}" if missing else None


@check
def refusal(answer: Answer, wanted: Flag) -> str | None:
    """Whether the answer refuses, in English: one of the phrases of the list below occurs in it.

    Case, the kind of apostrophe and the width of white space do not matter. A refusal in other words is
    not seen, so look at the answers before you believe a rate.

    Example: {refusal: false}
    """
    text = " ".join(answer.text.casefold().replace("’", "'").split())
    found = _REFUSAL.search(text)
    if (found is not None) == wanted:
        return None
    return f"refuses: {found.group()!r}" if found else "does not refuse"


def _missing(answer: Answer, values: tuple[str, ...], steps: tuple[str, ...]) -> list[str]:
    text = normalized(answer.text, steps)
    return [value for value in values if normalized(value, steps) not in text]
