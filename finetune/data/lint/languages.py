"""Which languages the rows are written in, from an even sample of them."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

from finetune.data.examples import Example
from finetune.data.lint.findings import Findings
from finetune.data.lint.rows import joined

SAMPLE = 400  # rows at least, twice as many at most
MIN_LETTERS = 30  # shorter texts are guesses
SURE = 0.9  # probability below which a row counts for no language
SHARE = 0.03  # of the sample from which on a second language is worth a word
MAX_CHARACTERS = 2000  # of a row that are looked at


class Languages:
    """Keeps an even sample of the rows: every n-th, n doubling as they grow more."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.sample: list[str] = []
        self.seen, self.stride = 0, 1

    def add(self, example: Example) -> None:
        if self.seen % self.stride == 0:
            self.sample.append(joined(example)[:MAX_CHARACTERS])
            if len(self.sample) == 2 * SAMPLE:
                self.sample, self.stride = self.sample[::2], self.stride * 2
        self.seen += 1

    def finish(self, where: str) -> None:
        """Note a mixture of languages."""
        identifier = _identifier()
        counts: Counter[str] = Counter()
        for text in self.sample:
            if sum(map(str.isalpha, text)) >= MIN_LETTERS:
                language, probability = identifier.classify(text)
                counts[language] += probability >= SURE
        sure = sum(counts.values())
        shares = {language: count / sure for language, count in counts.most_common() if count >= max(2, SHARE * sure)}
        if len(shares) > 1:
            listed = ", ".join(f"{language} {share:.0%}" for language, share in shares.items())
            self.findings.add("D025", where, f"{listed} of {sure} sampled rows (ISO 639 codes)")


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # here: reading its model takes half a second

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
