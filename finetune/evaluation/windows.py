"""Texts longer than the model: overlapping windows in which every trained token is predicted exactly once."""

from __future__ import annotations

from typing import NamedTuple

from finetune.data.encoding import Encoded


class Span(NamedTuple):
    """One window over the tokens start:end of a text."""

    start: int
    fresh: int  # tokens before it are context: an earlier window has scored them
    end: int


def spans(length: int, window: int, stride: int) -> list[Span]:
    """Cut `length` tokens into windows of at most `window` tokens, each with at most `stride` new ones.

    The first window scores all of its tokens, each later one only its last `stride` (the last window
    what is left of them) behind at least `window - stride` tokens of context. Every window but that of
    a short text is full, so a token never has less context than it could have. `stride` is less than
    `window`: without a token of context the first new token could not be predicted.
    """
    if not 1 <= stride < window:
        raise ValueError(f"windows of {window} tokens cannot move on by {stride}: 1 <= stride < window")
    found = [Span(0, 0, min(length, window))]
    while (fresh := found[-1].end) < length:
        end = min(fresh + stride, length)
        found.append(Span(end - window, fresh, end))
    return found


def windows(row: Encoded, window: int, stride: int) -> list[Encoded]:
    """Cut an example into windows in which every trained token is trained exactly once.

    An example that fits is returned as it is. No start token is put before a window: its ids are
    those that training sees, or a run of them. The very first token of an example has nothing to be
    predicted from and is never counted; windows in which nothing is predicted are left out.
    The bytes of the example are counted in its first window.
    """
    cut = spans(len(row.ids), window, stride)
    if len(cut) == 1:
        return [row]
    wanted = [span for span in cut if any(row.loss_mask[max(1, span.fresh) : span.end])]
    return [_piece(row, span, row.trained_bytes if span is wanted[0] else 0) for span in wanted]


def _piece(row: Encoded, span: Span, size: int) -> Encoded:
    start, fresh, end = span
    mask = [0] * (fresh - start) + list(row.loss_mask[fresh:end])
    return Encoded(list(row.ids[start:end]), mask, row.where, size)
