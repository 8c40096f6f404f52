"""What a check is, and the table of all checks.

A check is a function of an answer and a value. Its annotations say what may be written in a prompts
file: the second parameter is the value, keyword-only parameters are options, and those without a
default must be given. A third positional parameter gets the prompt's conversation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, get_type_hints

from finetune.data.messages import Message
from finetune.errors import DataError
from finetune.evaluation.checks.normalize import normalized
from finetune.evaluation.checks.values import Flag, Kind, quote
from finetune.journal import Journal

REQUIRED = inspect.Parameter.empty


class Answer(NamedTuple):
    text: str
    stopped: bool  # the model ended its turn by itself
    tokens: int  # generated


class Context(NamedTuple):
    """What a check may know beside the answer."""

    messages: tuple[Message, ...] = ()
    verdicts: Journal | None = None  # a judge's, so that nothing is asked twice


@dataclass(frozen=True)
class Check:
    kind: str
    value: Any  # hashable, as the kind's function takes it
    options: tuple[tuple[str, Any], ...] = ()  # those that differ from their default, by name


class Outcome(NamedTuple):
    check: str
    passed: bool
    detail: str  # what was wrong; empty if passed
    error: bool = False  # the check could not be carried out


class CheckError(Exception):
    """A check that cannot tell whether an answer is right: it counts as not passed, and is told apart."""


class Option(NamedTuple):
    kind: Kind
    default: object


class Spec(NamedTuple):
    call: Callable[..., str | None]
    value: Kind
    options: dict[str, Option]
    prepare: Callable[..., None] | None  # refuses at load what does not fit together; raises ValueError
    wants_context: bool


CHECKS: dict[str, Spec] = {}
_Function = TypeVar("_Function", bound=Callable[..., str | None])


def check(call: _Function) -> _Function:
    """Make a function a check: a prompts file can use its name."""
    return check_at_load(None)(call)


def check_at_load(prepare: Callable[..., None] | None) -> Callable[[_Function], _Function]:
    """Make a function a check whose value and options are also tried by `prepare` when a file is read."""

    def register(call: _Function) -> _Function:
        hints = get_type_hints(call, include_extras=True)
        kinds: dict[str, Kind] = {n: h.__metadata__[0] for n, h in hints.items() if hasattr(h, "__metadata__")}
        parameters = inspect.signature(call).parameters.values()
        positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        options = {p.name: Option(kinds[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
        if "normalize" in options:  # the short way to write the commonest step
            options["ignore_case"] = Option(_hint_of(Flag), False)
        CHECKS[call.__name__] = Spec(call, kinds[positional[1]], options, prepare, len(positional) > 2)
        return call

    return register


def _hint_of(annotation: Any) -> Kind:
    kind: Kind = annotation.__metadata__[0]
    return kind


def option_names() -> tuple[str, ...]:
    """Names of the options of all checks."""
    return tuple(dict.fromkeys(name for spec in CHECKS.values() for name in spec.options))


def run_check(check: Check, answer: Answer, context: Context | None = None) -> Outcome:
    """Judge one answer by one check; only a judge needs the context.

    Raises FinetuneError if a judge cannot be asked.
    """
    spec = CHECKS[check.kind]
    extra = (context or Context(),) if spec.wants_context else ()
    try:
        detail = spec.call(answer, check.value, *extra, **dict(check.options))
    except CheckError as error:
        return Outcome(describe(check), False, str(error), error=True)
    return Outcome(describe(check), detail is None, detail or "")


def describe(check: Check) -> str:
    """Say what a check asks for, in one short line."""
    given = dict(check.options)
    notes = ["ignoring case"] if given.get("ignore_case") or given.get("normalize") == ("case",) else []
    if not notes and "normalize" in given:
        notes = [f"normalized: {', '.join(given['normalize'])}"]
    notes += [f"{k} {_shown(v)}" for k, v in check.options if k not in ("normalize", "ignore_case")]
    suffix = f" ({'; '.join(notes)})" if notes else ""
    return f"{check.kind} {_shown(check.value)}{suffix}"


def make_check(kind: str, value: object, **options: object) -> Check:
    """Build a check from what a prompts file says.

    Raises DataError with the first mistake: a wrong type, an option of another check, a bad pattern.
    """
    made, wrong = read_check(kind, {kind: value, **options})
    if made is None:
        raise DataError(wrong[0][1])
    return made


def read_check(kind: str, written: Mapping[Any, object]) -> tuple[Check | None, list[tuple[object, str]]]:
    """Build a check from a mapping in a prompts file; beside it, every mistake with the key it stands at."""
    spec = CHECKS[kind]
    read: dict[str, Any] = {}
    wrong: list[tuple[object, str]] = []
    for key, raw in written.items():
        try:
            read[key] = _kind_of(spec, kind, key).read(raw)
        except _UnknownOption as error:
            wrong.append((key, str(error)))
        except ValueError as error:
            wrong.append((key, f"{key}: {error}"))
    wrong += [
        (kind, f"{kind}: required option {name!r} is missing")
        for name, option in spec.options.items()
        if option.default is REQUIRED and name not in written
    ]
    if "ignore_case" in written and "normalize" in written:
        wrong.append(("ignore_case", "ignore_case is the same as normalize: [case]; give one of them"))
    if wrong:
        return None, wrong
    made = _made(kind, spec, read)
    try:
        _refuse_pointless(made)
        if spec.prepare:
            spec.prepare(made.value, **dict(made.options))
    except ValueError as error:
        return None, [(kind, f"{kind}: {error}")]
    return made, []


class _UnknownOption(ValueError):
    pass


def _kind_of(spec: Spec, kind: str, key: object) -> Kind:
    if key == kind:
        return spec.value
    if key in spec.options:
        return spec.options[str(key)].kind
    close = difflib.get_close_matches(str(key), spec.options, n=1)
    has = f"it has {', '.join(spec.options)}" if spec.options else "it has none"
    raise _UnknownOption(f"{kind} has no option {key!r}; {f'did you mean {close[0]!r}?' if close else has}")


def _made(kind: str, spec: Spec, read: dict[str, Any]) -> Check:
    value: Hashable = read.pop(kind)
    if "normalize" in spec.options and read.pop("ignore_case", False):
        read["normalize"] = ("case",)
    return Check(kind, value, tuple(sorted((k, v) for k, v in read.items() if v != spec.options[k].default)))


def _refuse_pointless(check: Check) -> None:
    steps = dict(check.options).get("normalize", ())
    for text in check.value if steps else ():
        left = normalized(text, steps)
        if (text and not left) or (text.strip() and not left.strip()):
            raise ValueError(f"nothing is left of {quote([text])} when normalized, so it checks nothing")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return quote(value)
    return quote([value]) if isinstance(value, str) else str(value)
