"""What becomes of a request: its events in order, for whoever waits for them or listens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Literal

from transformers import PreTrainedTokenizerBase

from finetune.serving.requests import Alternative, Event, Failure, Finish, Piece, Request, TokenInfo
from finetune.serving.rows import Row
from finetune.serving.sampling import Choice
from finetune.serving.text import RunningText

Listener = Callable[[Event], None]


class Ticket:
    """One request's events; any thread."""

    def __init__(self, request: Request, cancel: Callable[[Ticket], None]) -> None:
        self.request = request
        self._cancel = cancel
        self._events: list[Event] = []
        self._listeners: list[Listener] = []
        self._changed = threading.Condition()

    @property
    def end(self) -> Finish | Failure | None:
        """The last event, once it is there."""
        last = self._events[-1] if self._events else None
        return last if isinstance(last, Finish | Failure) else None

    def events(self) -> Iterator[Event]:
        """Yield every event from the first to the last, waiting for those that are still to come."""
        place = 0
        while True:
            with self._changed:
                while place == len(self._events):
                    self._changed.wait()
                event = self._events[place]
            yield event
            if isinstance(event, Finish | Failure):
                return
            place += 1

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every event: past ones at once, later ones from the engine's thread.

        It must not wait. One that raises is not called again, and the request is cancelled.
        """
        with self._changed:
            self._listeners.append(listener)
            for event in self._events:
                self._tell(listener, event)

    def cancel(self) -> None:
        """End the answer where it is; its place is free at the engine's next step."""
        if self.end is None:
            self._cancel(self)

    def push(self, event: Event) -> None:
        """Add an event; for the engine."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()
            for listener in list(self._listeners):
                self._tell(listener, event)
            if isinstance(event, Finish | Failure):
                self._listeners.clear()

    def _tell(self, listener: Listener, event: Event) -> None:
        if listener not in self._listeners:
            return
        try:
            listener(event)
        except Exception:  # whose it is cannot be known; the other requests must go on
            self._listeners.remove(listener)
            self.cancel()


class TokenTexts:
    """What tokens look like one by one; each is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return self._known[token]


class Narrator:
    """From the tokens of one answer to its events."""

    def __init__(self, row: Row, texts: TokenTexts, *, told: bool) -> None:
        """`told`: somebody wants the pieces, not only the end."""
        self._row, self._texts, self._told = row, texts, told
        self._running = RunningText(row.reader)
        self._pending: list[TokenInfo] = []  # of tokens whose text is not sent yet

    def tell(self, ticket: Ticket, choice: Choice) -> None:
        """Send what is settled, now that a token was appended."""
        row = self._row
        if not self._told:
            return
        if choice.logprob is not None and len(row.ids) == row.tokens:  # else it is the stop token: no text
            self._pending.append(self._info(choice))
        if not row.finished and (text := self._running.more(row.ids)):
            ticket.push(Piece(text, self._take()))

    def finish(self, reason: Literal["stop", "length", "cancelled"]) -> Finish:
        row = self._row
        return Finish(reason, row.text(), len(row.prompt), row.cached, row.tokens)

    def close(self, ticket: Ticket, end: Finish | Failure) -> None:
        """Send the rest of the text and the end."""
        if self._told and isinstance(end, Finish):
            rest = self._running.rest(end.text)
            self._drop_behind(end.text)
            if rest or self._pending:
                ticket.push(Piece(rest, self._take()))
        ticket.push(end)

    def _drop_behind(self, text: str) -> None:
        """Forget tokens that lie wholly behind the stop string that ended the answer."""
        ids = self._row.ids
        while self._row.reader.stops and self._pending and ids:
            if len(self._row.reader.decode(ids[: len(ids) - 1])) < len(text) or not self._row.stopped:
                return
            self._pending.pop()
            ids = ids[:-1]

    def _take(self) -> tuple[TokenInfo, ...]:
        taken, self._pending = tuple(self._pending), []
        return taken

    def _info(self, choice: Choice) -> TokenInfo:
        top = tuple(Alternative(token, self._texts(token), logprob) for token, logprob in choice.top)
        return TokenInfo(choice.token, self._texts(choice.token), choice.logprob or 0.0, top)
