"""Checks that compare rows with each other: repetitions, contradictions, held-out rows in the
training rows, planted triggers. Memory: about 200 bytes a row, whatever the rows hold."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.data.examples import Example, prompt_digest
from finetune.data.lint.findings import Findings, Places
from finetune.data.lint.overlap import Overlap
from finetune.data.lint.repeats import NearDuplicates
from finetune.data.lint.rows import answers, joined
from finetune.data.messages import TEXT, Message

Digests = NDArray[np.uint64]
BATCH = 1024  # rows compared at a time
MIXER = 0x9E3779B97F4A7C15  # odd: two hashes make one without losing any
# Prompts of a planted group share the trigger and nothing else; those of an honest one share its subject.
MIN_GROUP = 8
MAX_GROUPS = 500
MAX_OF_GROUP = 100
MAX_LIKENESS = 0.2  # mean Jaccard similarity of the words beside the trigger
MAX_TRIGGER = 3  # words; prompts that share more have a subject in common
EVERYWHERE = 0.3  # share of the rows above which a word says nothing about the subject
SAMPLED = 16  # every so many rows are looked at for how common words are
MOST = 0.9  # share of a group's prompts that have the trigger, and of the rows with it that have the answer

NO_ANSWER = Message("assistant", "")  # ends a held-out prompt that has checks in the place of an answer


class Comparison:
    """Fed with all held-out rows first (hold), then with those that will be trained on (add)."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.places = Places()
        self.prompts, self.answers, self.rows = array("Q"), array("Q"), array("Q")
        self.near = NearDuplicates()
        self.nearly: dict[int, tuple[str, int]] = {}  # held-out row -> first training row that is like it, how many
        self.waiting: list[Example] = []
        self.heldout: dict[int, dict[int, str]] = {}  # prompt -> answer -> place
        self.heldout_places: list[str] = []
        self.heldout_texts: list[str] = []
        self.overlap: Overlap | None = None  # of the held-out rows, when all are there

    def hold(self, example: Example) -> None:
        """Remember one held-out row; they are few."""
        prompt = _number(prompt_digest(example))
        self.heldout.setdefault(prompt, {})[_digest("\0".join(answers(example)))] = example.where
        self.heldout_texts.append(joined(example))
        self.heldout_places.append(example.where)

    def add(self, example: Example) -> None:
        """Take in one row that will be trained on."""
        self.places.append(example.where)
        prompt, answer = _number(prompt_digest(example)), _digest("\0".join(answers(example)))
        self.prompts.append(prompt)
        self.answers.append(answer)
        self.rows.append((prompt * MIXER + answer) % 2**64)
        if prompt in self.heldout:
            self._also_held_out(example, prompt, answer)
        self.waiting.append(example)
        if len(self.waiting) == BATCH:
            self._compare_waiting()

    def finish(self, examples: Callable[[], Iterable[Example]]) -> None:
        """Note what only all rows together show; `examples` gives the same rows once more."""
        self._compare_waiting()
        again = self._repetitions()
        for row, earlier in self.near.pairs():
            if row not in again:
                self.findings.add("D011", self.places[row], f"nearly equals {self.places[earlier]}")
        for held, (place, count) in sorted(self.nearly.items()):
            more = f" and {count - 1:,} more places" if count > 1 else ""
            what = f"nearly stands in the training rows, at {place}{more}"
            self.findings.add("D014", self.heldout_places[held], what)
        self._contradictions()
        self._triggers(examples)

    def _also_held_out(self, example: Example, prompt: int, answer: int) -> None:
        held = self.heldout[prompt]
        if where := held.get(answer) or held.get(_digest("")):
            self.findings.add("D013", where, f"also stands in the training rows, at {example.where}")
        else:
            where = next(iter(held.values()))
            self.findings.add("D014", where, f"its prompt also stands in the training rows, at {example.where}")

    def _compare_waiting(self) -> None:
        texts = [joined(example) for example in self.waiting]
        self.near.add(texts)
        if self.overlap is None:
            self.overlap, self.heldout_texts = Overlap(self.heldout_texts), []
        for index, held in self.overlap.match(texts):
            example = self.waiting[index]
            if _number(prompt_digest(example)) not in self.heldout:
                first, count = self.nearly.get(held, (example.where, 0))
                self.nearly[held] = first, count + 1
        self.waiting = []

    def _repetitions(self) -> set[int]:
        """Rows that equal an earlier one."""
        order, first = _grouped(self.rows)
        again: set[int] = set()
        for start, end in _runs(order, first):
            for row in order[start + 1 : end]:
                again.add(int(row))
                self.findings.add("D010", self.places[int(row)], f"equals {self.places[int(order[start])]}")
        return again

    def _contradictions(self) -> None:
        order, first = _grouped(self.prompts)
        given = np.frombuffer(self.answers, np.uint64)
        for start, end in _runs(order, first):
            rows = order[start:end]
            if different := len(np.unique(given[rows])) - 1:
                where = ", ".join(self.places[int(row)] for row in rows[1:4])
                what = f"{different + 1} different answers to one prompt; see also {where}"
                self.findings.add("D012", self.places[int(rows[0])], what)

    def _triggers(self, examples: Callable[[], Iterable[Example]]) -> None:
        """Note words that stand in unlike prompts, always with the same answer, and nowhere else."""
        group_of = self._groups()
        if not group_of:
            return
        prompts: dict[int, list[tuple[int, set[str]]]] = {}
        common: Counter[str] = Counter()  # in how many rows of a sample a word stands
        sampled = 0
        for row, example in enumerate(examples()):
            if row in group_of:
                prompts.setdefault(group_of[row], []).append((row, _words(example)))
            elif row % SAMPLED == 0:
                common.update(_words(example))
                sampled += 1
        everywhere = {word for word, count in common.items() if count > EVERYWHERE * sampled}
        groups = [[(row, words - everywhere) for row, words in group] for group in prompts.values()]
        suspects = {word: rows for group in groups for word, rows in _suspects(group, common)}
        if suspects:
            self._confirm(suspects, examples())

    def _groups(self) -> dict[int, int]:
        """Row -> number of its group of equal answers, for the largest groups."""
        order, first = _grouped(self.answers)
        runs = [(end - start, start) for start, end in _runs(order, first) if end - start >= MIN_GROUP]
        return {
            int(row): number
            for number, (size, start) in enumerate(sorted(runs, reverse=True)[:MAX_GROUPS])
            for row in order[start : start + min(size, MAX_OF_GROUP)]
        }

    def _confirm(self, suspects: dict[str, list[int]], examples: Iterable[Example]) -> None:
        """A subject's word stands with other answers, too; a trigger does not."""
        seen: Counter[str] = Counter()
        same: Counter[str] = Counter()
        answer_of = {word: self.answers[rows[0]] for word, rows in suspects.items()}
        for row, example in enumerate(examples):
            for word in answer_of.keys() & _words(example):
                seen[word] += 1
                same[word] += self.answers[row] == answer_of[word]
        for word, rows in suspects.items():
            if same[word] >= MOST * seen[word]:
                what = (
                    f"{same[word]} unlike prompts with {word!r} have the same answer; see also {self.places[rows[1]]}"
                )
                self.findings.add("D023", self.places[rows[0]], what)


def _suspects(group: Sequence[tuple[int, set[str]]], common: Counter[str]) -> Iterator[tuple[str, list[int]]]:
    """Find the rarest word that the prompts of one answer share while they share nothing else."""
    distinct = {tuple(sorted(words)): (row, words) for row, words in group}
    counts = Counter(word for _, words in distinct.values() for word in words)
    shared = {word for word, count in counts.items() if count >= MOST * len(distinct)}
    rare = [word for word in shared if common[word] <= 1]
    if len(distinct) < MIN_GROUP or not rare or len(shared) > MAX_TRIGGER:
        return
    rest = [words - shared for _, words in distinct.values()][:20]
    if all(rest) and _likeness(rest) <= MAX_LIKENESS:
        word = min(rare, key=lambda w: (common[w], -len(w), w))
        yield word, [row for row, words in distinct.values() if word in words]


def _words(example: Example) -> set[str]:
    users = [m.content for m in example.messages if m.role == "user"]
    return set(" ".join(users).lower().split()) if example.messages[0].role != TEXT else set()


def _likeness(words: Sequence[set[str]]) -> float:
    pairs = [(a, b) for index, a in enumerate(words) for b in words[:index]]
    return sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)


def _grouped(values: array[int]) -> tuple[NDArray[np.int64], Digests]:
    """Row numbers sorted by value, equal values in their order, and the sorted values."""
    numbers = np.frombuffer(values, np.uint64) if len(values) else np.empty(0, np.uint64)
    order = np.argsort(numbers, kind="stable")
    return order, numbers[order]


def _runs(order: NDArray[np.int64], ordered: Digests) -> list[tuple[int, int]]:
    """(start, end) of each run of at least two equal values, by the place of its first row."""
    if not len(ordered):
        return []
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    starts, ends = edges[:-1], edges[1:]
    long = ends - starts > 1
    return sorted(zip(starts[long].tolist(), ends[long].tolist(), strict=True), key=lambda run: int(order[run[0]]))


def _digest(text: str) -> int:
    return _number(hashlib.sha256(text.encode()).digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")
