"""One prompt, how it is to be answered, and its answer so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.serving.sampling import Draws
from finetune.serving.text import AnswerReader


@dataclass(eq=False)
class Row:
    """One prompt and its answer so far."""

    prompt: Sequence[int]
    limit: int  # tokens the answer may have
    draws: Draws
    stop_ids: frozenset[int]
    reader: AnswerReader
    slot: int = 0  # of the bank; 0: the base
    digest: str = ""  # of the adapter's content, for the prefix cache
    mixes: bool = True  # whether it may share a forward pass with rows of other slots
    ids: list[int] = field(default_factory=list)  # the answer, without a stop token
    tokens: int = 0  # generated, the stop token included
    stopped: bool = False
    done: int = 0  # tokens of prompt and answer whose keys and values are known
    cached: int = 0  # of the prompt from the prefix cache
    number: int = 0  # in the order in which rows began

    @property
    def finished(self) -> bool:
        return self.stopped or self.tokens >= self.limit

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt) + len(self.ids)

    @property
    def left(self) -> int:
        """Tokens that a forward pass has still to see."""
        return self.length - self.done

    @property
    def longest(self) -> int:
        """Tokens that prompt and answer may have together."""
        return len(self.prompt) + self.limit

    def known(self, start: int, stop: int) -> Sequence[int]:
        """Return these tokens of prompt and answer."""
        size = len(self.prompt)
        return (
            self.prompt[start:stop]
            if stop <= size
            else (*self.prompt[start:], *self.ids[max(0, start - size) : stop - size])
        )

    def append(self, token: int) -> None:
        self.tokens += 1
        if token in self.stop_ids:
            self.stopped = True
            return
        self.ids.append(token)
        over = self.draws.constraint is not None and self.draws.constraint.accept(token)
        self.stopped = over or self.reader.ends_in_stop(self.ids)

    def text(self) -> str:
        return self.reader.text(self.ids, self.stopped)
