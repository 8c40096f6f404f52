"""What was found, with the places; and a compact memory of places."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

from finetune.data.lint.rules import RULES, SEVERITIES, Rule, Severity

MAX_PLACES = 20  # of one rule that are remembered with their place


class Place(NamedTuple):
    where: str  # file:line, or empty
    message: str


@dataclass
class Finding:
    """All that was found by one rule, with the first places."""

    code: str
    severity: Severity
    count: int = 0
    places: list[Place] = field(default_factory=list)

    @property
    def rule(self) -> Rule:
        return RULES[self.code]


class Findings:
    """Collects findings by rule."""

    def __init__(self) -> None:
        self._by_code: dict[str, Finding] = {}

    def add(self, code: str, where: str, message: str, *, severity: Severity | None = None) -> None:
        """Note one place; `severity` where it depends on the recipe."""
        finding = self._by_code.setdefault(code, Finding(code, severity or RULES[code].severity))
        finding.count += 1
        if len(finding.places) < MAX_PLACES:
            finding.places.append(Place(where, message))

    def all(self) -> list[Finding]:
        """Errors first, then by code."""
        return sorted(self._by_code.values(), key=lambda f: (SEVERITIES.index(f.severity), f.code))

    def counts(self) -> dict[Severity, int]:
        return {name: sum(f.count for f in self._by_code.values() if f.severity == name) for name in SEVERITIES}


class Places:
    """Remembers where rows stand ("path:12", "path:row 12") in a few bytes each."""

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}
        self._names: list[str] = []
        self._start_of, self._number = array("i"), array("q")

    def __len__(self) -> int:
        return len(self._number)

    def append(self, where: str) -> None:
        digits = len(where) - len(where.rstrip("0123456789"))
        start = where[: len(where) - digits]
        if start not in self._starts:
            self._starts[start] = len(self._names)
            self._names.append(start)
        self._start_of.append(self._starts[start])
        self._number.append(int(where[len(start) :]) if digits else -1)

    def __getitem__(self, index: int) -> str:
        number = self._number[index]
        return self._names[self._start_of[index]] + (str(number) if number >= 0 else "")
