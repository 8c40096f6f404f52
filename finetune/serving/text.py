"""From the token ids of an answer, finished or running, to its text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import cast

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # how tokenizers show bytes that are no whole character (yet)
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # SentencePiece's fallback for characters outside the vocabulary
TAIL_MARGIN = 8  # tokens; a window's first tokens may decode differently without what stands before them
WINDOW = 32  # tokens of a running answer that are decoded again with each new one, at most


class AnswerReader:
    """Token ids of an answer -> its text, up to the first stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer, self.stops = tokenizer, tuple(stop)
        # A stop string of n bytes spans n tokens at most, not counting those that are not shown.
        self._window = TAIL_MARGIN + max((len(text.encode()) for text in stop), default=0)
        added = tokenizer.added_tokens_decoder.items()
        self._bytes: dict[int, bool] = {}
        self._hidden = {token for token, content in added if content.special}.union(tokenizer.all_special_ids)

    def text(self, ids: Sequence[int], stopped: bool) -> str:
        """Return the text of a finished answer."""
        text = self._cut(ids)
        if text is None:
            # Without a stop, a broken last character is one that max_new_tokens cut in two.
            text = self.decode(ids) if stopped else self.decode(ids).rstrip(REPLACEMENT)
        return text

    def ends_in_stop(self, ids: Sequence[int]) -> bool:
        """Tell whether the newest token completed a stop string, decoding only as many tokens as it takes."""
        if not self.stops:
            return False
        shown = (token for token in reversed(ids) if token not in self._hidden)
        tail = self.decode(list(islice(shown, self._window))[::-1])
        return any(text in tail for text in self.stops) and self._cut(ids) is not None

    def settled(self, ids: Sequence[int]) -> str:
        """Return the start of the text that no further token can change or turn into a stop string."""
        if not ids or self.is_byte(ids[-1]):
            return ""  # a run of byte tokens is decoded as one: the next byte can still undo the last character
        return self.hold(self.decode(ids).rstrip(REPLACEMENT))

    def hold(self, text: str) -> str:
        """Leave out the end of a text that may become a stop string."""
        held = (size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return text[: len(text) - max(held, default=0)]

    def is_byte(self, token: int) -> bool:
        """Tell whether a token is a single byte by its name."""
        if token not in self._bytes:
            name = self._tokenizer.convert_ids_to_tokens(token)
            self._bytes[token] = isinstance(name, str) and BYTE_TOKEN.fullmatch(name) is not None
        return self._bytes[token]

    def _cut(self, ids: Sequence[int]) -> str | None:
        """Return the text before the first stop string, None if there is no stop string."""
        text = self.decode(ids)
        starts = [text.find(stop) for stop in self.stops if stop in text]
        return text[: min(starts)] if starts else None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these tokens, without control tokens."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)


class RunningText:
    """The settled text of an answer that grows, in pieces, at the same cost for every token.

    Only the last tokens are decoded again, from a place where the text so far was whole; where that does not
    continue what they gave before, all of them.
    """

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self.sent = ""
        self._start = 0  # tokens from here to where the text is clean are decoded again, for context
        self._clean = self._context = ""  # text up to a clean place, and that of the context alone

    def more(self, ids: Sequence[int]) -> str:
        """Return what is new and settled, given all tokens so far; whole characters, never part of a stop string."""
        if not ids or self._reader.is_byte(ids[-1]):
            return ""
        whole = self._whole(ids)
        if not whole.endswith(REPLACEMENT) and len(ids) - self._start >= WINDOW:
            self._move(ids, whole)
        return self._new(self._reader.hold(whole.rstrip(REPLACEMENT)))

    def rest(self, text: str) -> str:
        """Return what is missing to the text of the finished answer."""
        return text[len(self.sent) :]

    def _new(self, text: str) -> str:
        if len(text) <= len(self.sent) or not text.startswith(self.sent):
            return ""
        new, self.sent = text[len(self.sent) :], text
        return new

    def _whole(self, ids: Sequence[int]) -> str:
        window = self._reader.decode(ids[self._start :])
        if window.startswith(self._context):
            return self._clean + window[len(self._context) :]
        return self._reader.decode(ids)

    def _move(self, ids: Sequence[int], whole: str) -> None:
        """Let the window begin later, but never within a run of byte tokens."""
        start = len(ids) - TAIL_MARGIN
        while start > self._start and (self._reader.is_byte(ids[start]) or self._reader.is_byte(ids[start - 1])):
            start -= 1
        if start > self._start:
            self._start, self._clean = start, whole
            self._context = self._reader.decode(ids[start:])
