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


class AnswerReader:
    """Token ids of an answer -> its text, up to the first stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        # A stop string of n bytes spans n tokens at most, not counting those that are not shown.
        self._window = TAIL_MARGIN + max((len(text.encode()) for text in stop), default=0)
        added = tokenizer.added_tokens_decoder.items()
        self._hidden = {token for token, content in added if content.special}.union(tokenizer.all_special_ids)

    def text(self, ids: Sequence[int], stopped: bool) -> str:
        """Return the text of a finished answer."""
        text = self._cut(ids)
        if text is None:
            # Without a stop, a broken last character is one that max_new_tokens cut in two.
            text = self._decode(ids) if stopped else self._decode(ids).rstrip(REPLACEMENT)
        return text

    def ends_in_stop(self, ids: Sequence[int]) -> bool:
        """Tell whether the newest token completed a stop string, decoding only as many tokens as it takes."""
        if not self._stop:
            return False
        shown = (token for token in reversed(ids) if token not in self._hidden)
        tail = self._decode(list(islice(shown, self._window))[::-1])
        return any(text in tail for text in self._stop) and self._cut(ids) is not None

    def settled(self, ids: Sequence[int]) -> str:
        """Return the start of the text that no further token can change or turn into a stop string."""
        name = self._tokenizer.convert_ids_to_tokens(ids[-1]) if ids else None
        if isinstance(name, str) and BYTE_TOKEN.fullmatch(name):
            return ""  # a run of byte tokens is decoded as one: the next byte can still undo the last character
        text = self._decode(ids).rstrip(REPLACEMENT)
        held = (size for stop in self._stop for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return text[: len(text) - max(held, default=0)]

    def _cut(self, ids: Sequence[int]) -> str | None:
        """Return the text before the first stop string, None if there is no stop string."""
        text = self._decode(ids)
        starts = [text.find(stop) for stop in self._stop if stop in text]
        return text[: min(starts)] if starts else None

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)
