"""One place through which everything is printed, so that no text can act on the terminal or on a CI run.

Models and data files write texts, and so do file names and adapter names. In a terminal they could
colour, overwrite or hide lines by control characters. On a CI run a line that begins with `::` (GitHub)
or holds `##[` or `##vso[` (GitHub, Azure, TeamCity) is a command. Both are broken here, after everything
has been laid out and wrapped, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from finetune.evaluation.escaping import visible

_COMMAND = re.compile(r"##(?=[\w\[])")  # what follows may come in a later piece


def guarded(console: Console) -> Console:
    """Return the console, all of whose output is harmless from now on."""
    console.push_render_hook(_Guard())
    return console


class _Guard(RenderHook):
    """Knows how the present line began, however many pieces it is printed in."""

    def __init__(self) -> None:
        self._start, self._tail = "", ""  # its first two characters that are no white space, and its last two

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Guarded(renderable, self) for renderable in renderables]

    def restart(self) -> None:
        """Begin a line: the cursor has been moved."""
        self._start, self._tail = "", ""

    def harmless(self, text: str) -> str:
        """Return a piece of a line, or several lines, in which nothing is a command."""
        first, *others = visible(text).split("\n")
        lines = [self._piece(first)]
        for line in others:
            self.restart()
            lines.append(self._piece(line))
        return "\n".join(lines)

    def _piece(self, text: str) -> str:
        text = _COMMAND.sub(r"##\\", self._tail + text)[len(self._tail) :]
        start = self._start + (text if self._start else text.lstrip())
        if len(self._start) < 2 and start.startswith("::"):
            place = text.index(":")
            text = f"{text[:place]}\\{text[place:]}"
            start = "\\"
        self._start, self._tail = start[:2], (self._tail + text)[-2:]
        return text


@dataclass
class _Guarded:
    """What a renderable shows, made harmless."""

    renderable: ConsoleRenderable
    guard: _Guard

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in Segment.simplify(console.render(self.renderable, options)):
            if segment.control:
                self.guard.restart()
                yield segment
            else:
                yield Segment(self.guard.harmless(segment.text), segment.style)
