"""Checks of how near the answer is to a reference; of several references the nearest counts."""

from __future__ import annotations

from collections.abc import Callable

from finetune.evaluation.checks.core import Answer, check
from finetune.evaluation.checks.measures import chrf, token_f1
from finetune.evaluation.checks.measures import rouge_l as longest_common
from finetune.evaluation.checks.normalize import normalized
from finetune.evaluation.checks.values import Normalize, References, Share


@check
def rouge_l(answer: Answer, references: References, *, at_least: Share, normalize: Normalize = ()) -> str | None:
    """The longest common subsequence of words of the answer and the nearest reference has an F1 of `at_least`.

    That is ROUGE-L (Lin 2004). Words are what white space separates, so without `punctuation` in
    `normalize` a comma belongs to its word.

    Example: {rouge_l: "Two large pizzas are on their way.", at_least: 0.6, normalize: [case, punctuation]}
    """
    return _nearest(longest_common, answer, references, at_least, normalize)


@check
def f1(answer: Answer, references: References, *, at_least: Share, normalize: Normalize = ()) -> str | None:
    """The words that the answer and the nearest reference share, in any order, have an F1 of `at_least`.

    SQuAD's F1 is that with `normalize: [case, punctuation, articles, space]`.

    Example: {f1: [the Eiffel Tower, Eiffel Tower], at_least: 0.8, normalize: [case, punctuation, articles]}
    """
    return _nearest(token_f1, answer, references, at_least, normalize)


@check
def similarity(answer: Answer, references: References, *, at_least: Share) -> str | None:
    """The runs of 1 to 6 characters that the answer and the nearest reference share have an F-score of `at_least`.

    That is chrF (Popović 2015, https://aclanthology.org/W15-3049) with beta 2. It forgives endings and small
    misspellings, in any language; white space does not count, case does.

    Example: {similarity: "Das macht zwölf Euro.", at_least: 0.7}
    """
    return _nearest(chrf, answer, references, at_least, ())


def _nearest(
    measure: Callable[[str, str], float],
    answer: Answer,
    references: tuple[str, ...],
    at_least: float,
    steps: tuple[str, ...],
) -> str | None:
    text = normalized(answer.text, steps)
    score = max(measure(text, normalized(reference, steps)) for reference in references)
    # Rounded down: a score that fails must not be shown as the bound it fails.
    return None if score >= at_least else f"scored {int(score * 1000) / 1000:.3f}"
