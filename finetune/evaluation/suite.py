"""The prompts file: held-out prompts with the checks their answers must pass."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from finetune.data.messages import ROLES, Message, RowError, check_roles
from finetune.errors import DataError, RecipeError
from finetune.evaluation.checks import (
    CHECKS,
    Answer,
    Check,
    Context,
    Outcome,
    option_names,
    read_check,
    run_check,
)
from finetune.journal import Journal
from finetune.recipe import read_yaml

PROMPT_KEYS = ("id", "prompt", "messages", "system", "tags", "samples", "checks")
MAX_SAMPLES = 1000  # answers to one prompt
MAX_CHECKS = 100_000  # after YAML aliases are expanded
Place = tuple[int, int]  # line, column, from 1


@dataclass(frozen=True)
class Prompt:
    id: str
    messages: tuple[Message, ...]
    tags: tuple[str, ...]
    checks: tuple[Check, ...]
    where: str  # file:line
    samples: int | None = None  # how often it is answered; None: as often as the evaluation says


class Attempt(NamedTuple):
    """One answer, judged by every check."""

    answer: Answer
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(outcome.passed for outcome in self.outcomes)


class Graded(NamedTuple):
    prompt: Prompt
    attempts: tuple[Attempt, ...]


def load_prompts(path: str | Path, system: str | None) -> tuple[Prompt, ...]:
    """Read held-out prompts; `system` is put before every prompt that has no system prompt of its own.

    Raises DataError naming every mistake, one a line, as file:line:column.
    """
    path = Path(path)
    try:
        tree = read_yaml(path)
    except RecipeError as error:
        raise DataError(error.what, where=error.where, fix=error.fix) from None
    reader = _Reader(str(path), system)
    prompts = reader.read(tree)
    if reader.mistakes:
        raise DataError(
            "\n".join(f"{path}:{line}:{column}: {text}" for (line, column), text in sorted(reader.mistakes))
        )
    return prompts


def grade(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]], verdicts: Journal | None = None
) -> tuple[Graded, ...]:
    """Run every prompt's checks on each of its answers; both in the same order.

    `verdicts` keeps what judges say, so that no answer is judged twice.
    Raises FinetuneError if a judge cannot be asked.
    """
    return tuple(
        Graded(prompt, tuple(Attempt(answer, _outcomes(prompt, answer, verdicts)) for answer in given))
        for prompt, given in zip(prompts, answers, strict=True)
    )


def refuse_equal_answers(prompts: Sequence[Prompt], repeat: int, temperature: float) -> None:
    """Raise RecipeError where a prompt is to be answered several times, but greedily: all answers would be one."""
    several = next((p for p in prompts if (p.samples or repeat) > 1), None)
    if several is None or temperature > 0:
        return
    what = f"is to be answered {several.samples or repeat} times at temperature 0, which gives one and the same answer"
    raise RecipeError(f"prompt {several.id!r} {what}", where=several.where, fix="set generation.temperature, say 0.7")


def _outcomes(prompt: Prompt, answer: Answer, verdicts: Journal | None) -> tuple[Outcome, ...]:
    context = Context(prompt.messages, verdicts)
    return tuple(run_check(check, answer, context) for check in prompt.checks)


class _Reader:
    """Walks ruamel's nodes, which know their lines, and collects mistakes instead of raising."""

    def __init__(self, file: str, system: str | None) -> None:
        self.file, self.system = file, system
        self.mistakes: list[tuple[Place, str]] = []
        self.seen: dict[str, int] = {}
        self.checks = 0

    def read(self, tree: object) -> tuple[Prompt, ...]:
        if not isinstance(tree, CommentedMap):
            self.wrong((1, 1), "expected `prompts:` and a list below it")
            return ()
        self.keys(tree, ("prompts",), "the file")
        items = tree.get("prompts")
        if not isinstance(items, CommentedSeq) or not items:
            self.wrong(_key(tree, "prompts"), "'prompts' should be a list with at least one prompt")
            return ()
        return tuple(p for i, item in enumerate(items) if (p := self.prompt(item, _item(items, i))) is not None)

    def prompt(self, node: object, place: Place) -> Prompt | None:
        before = len(self.mistakes)
        if not isinstance(node, CommentedMap):
            self.wrong(place, f"a prompt should have the keys {', '.join(PROMPT_KEYS)}, not be {_kind(node)}")
            return None
        self.keys(node, PROMPT_KEYS, "a prompt")
        name = self.name(node, place)
        messages = self.messages(node, place)
        tags, samples, checks = self.tags(node), self.samples(node), self.check_list(node, place)
        if len(self.mistakes) > before:
            return None
        return Prompt(name, messages, tags, checks, f"{self.file}:{place[0]}", samples)

    def name(self, node: CommentedMap, place: Place) -> str:
        name = self.text(node, "id") if "id" in node else ""
        if "id" not in node:
            self.wrong(place, "required key 'id' is missing")
        elif name in self.seen:
            self.wrong(_key(node, "id"), f"id {name!r} is already used in line {self.seen[name]}")
        self.seen.setdefault(name, place[0])
        return name

    def messages(self, node: CommentedMap, place: Place) -> tuple[Message, ...]:
        if ("prompt" in node) == ("messages" in node):
            self.wrong(place, "give either 'prompt' or 'messages'")
            return ()
        if "prompt" in node:
            turns: tuple[Message, ...] = (Message("user", self.text(node, "prompt")),)
        else:
            turns = self.turns(node["messages"], _key(node, "messages"))
        own = bool(turns) and turns[0].role == "system"
        if "system" not in node:
            return (Message("system", self.system), *turns) if self.system and not own else turns
        if own:
            self.wrong(_key(node, "system"), "the messages already begin with a system turn")
        system = self.text(node, "system", allow_empty=True)  # empty: no system prompt at all
        return (Message("system", system), *turns) if system else turns

    def turns(self, items: object, place: Place) -> tuple[Message, ...]:
        if not isinstance(items, CommentedSeq) or not items:
            self.wrong(place, "'messages' should be a list of {role, content}")
            return ()
        turns = [self.turn(item, _item(items, i)) for i, item in enumerate(items)]
        whole = tuple(turn for turn in turns if turn is not None)
        if len(whole) < len(turns):
            return ()
        try:
            check_roles(whole)
        except RowError as error:
            self.wrong(place, f"'messages': {error}")
            return whole
        if whole[-1].role != "user":
            self.wrong(_item(items, len(whole) - 1), "'messages' should end with a user turn, for the model to answer")
        return whole

    def turn(self, item: object, place: Place) -> Message | None:
        if not isinstance(item, CommentedMap):
            self.wrong(place, f"a turn should be {{role, content}}, not {_kind(item)}")
            return None
        self.keys(item, ("role", "content"), "a turn")
        if missing := [key for key in ("role", "content") if key not in item]:
            self.wrong(place, f"required key {missing[0]!r} is missing")
            return None
        role, content = self.text(item, "role"), self.text(item, "content")
        if role and role not in ROLES:
            self.wrong(_key(item, "role"), f"role {role!r} should be one of {', '.join(ROLES)}")
        return Message(role, content) if role in ROLES and content else None

    def tags(self, node: CommentedMap) -> tuple[str, ...]:
        items = node.get("tags", CommentedSeq())
        if not isinstance(items, CommentedSeq):
            self.wrong(_key(node, "tags"), f"'tags' should be a list such as [order, sloppy], not {_kind(items)}")
            return ()
        for i, tag in enumerate(items):
            if not isinstance(tag, str) or not tag.strip():
                self.wrong(_item(items, i), f"tag {tag!r} should be text; put it in quotes")
            elif tag in items[:i]:
                self.wrong(_item(items, i), f"tag {tag!r} is given twice")
        return tuple(str(tag) for tag in items)

    def samples(self, node: CommentedMap) -> int | None:
        count = node.get("samples")
        if "samples" in node and (type(count) is not int or not 1 <= count <= MAX_SAMPLES):
            self.wrong(_key(node, "samples"), f"'samples' should be a whole number from 1 to {MAX_SAMPLES}")
        return int(count) if type(count) is int else None

    def check_list(self, node: CommentedMap, place: Place) -> tuple[Check, ...]:
        if "checks" not in node:
            self.wrong(place, "required key 'checks' is missing")
            return ()
        items = node["checks"]
        if not isinstance(items, CommentedSeq) or not items:
            self.wrong(_key(node, "checks"), "'checks' should be a list with at least one check")
            return ()
        self.checks += len(items)
        if self.checks > MAX_CHECKS:
            raise DataError(f"more than {MAX_CHECKS} checks", where=self.file, fix="split the file")
        checks = [self.check(item, _item(items, i)) for i, item in enumerate(items)]
        return tuple(check for check in checks if check is not None)

    def check(self, item: object, place: Place) -> Check | None:
        if not isinstance(item, CommentedMap):
            self.wrong(place, f"a check should be written like {{contains: text}}, not {_kind(item)}")
            return None
        kinds = [str(key) for key in item if key in CHECKS]
        if len(kinds) != 1:
            options = option_names()
            self.keys(item, (*CHECKS, *options), "a check")
            if kinds or set(item) <= set(options):
                self.wrong(place, f"a check should have exactly one of {', '.join(CHECKS)}")
            return None
        made, wrong = read_check(kinds[0], item)
        for key, text in wrong:
            self.wrong(_key(item, key), text)
        return made

    def text(self, node: CommentedMap, key: str, allow_empty: bool = False) -> str:
        value = node[key]
        if not isinstance(value, str):
            self.wrong(_key(node, key), f"{key!r} is {_kind(value)}, should be text; put it in quotes")
            return ""
        if not value.strip() and not allow_empty:
            self.wrong(_key(node, key), f"{key!r} is empty")
        return str(value)

    def keys(self, node: CommentedMap, known: Iterable[str], owner: str) -> None:
        known = tuple(known)
        for key in node:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"{owner} has {', '.join(known)}"
                self.wrong(_key(node, key), f"no such key {key!r}; {hint}")

    def wrong(self, place: Place, text: str) -> None:
        self.mistakes.append((place, text))


def _key(node: CommentedMap, key: object) -> Place:
    """Find a key's place; one that came through a YAML merge has none, so its mapping's is taken."""
    positions: Mapping[object, Sequence[int]] = node.lc.data or {}
    line, column = positions[key][:2] if key in positions else (node.lc.line, node.lc.col)
    return line + 1, column + 1


def _item(node: CommentedSeq, index: int) -> Place:
    line, column = node.lc.item(index)
    return line + 1, column + 1


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "empty" if value is None else repr(value)
