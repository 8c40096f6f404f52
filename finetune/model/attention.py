"""Attention for packed rows: examples in one row never see each other.

No mask over the row is built. Segments of like length are stacked, or laid into blocks, and run through attention as
a batch, which is exact; transformers' own packing by position ids leaks between examples when a cache or a mask is
in play, so both are off (`use_cache=False`, no attention mask).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from finetune.model.blocks import LONGEST, Segments, attend_in_blocks, causal_window

NAME = "finetune_segments"
# How far the hidden states of an example may move with the one in front of it in its row, relative.
BLIND = {torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 5e-4}
ALIGN = 64  # on a CPU rows are padded to a multiple: oneDNN compiles a kernel for every new shape


def segment_attention(  # noqa: PLR0913 (the signature is transformers')
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment. query (1, heads, T, d), key and value (1, kv_heads, T, d).

    Returns (1, T, heads, d), as transformers' AttentionInterface asks.
    """
    lengths = [end - start for start, end in segments]
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    if softcap is not None or (_kernel_is_slow(query, max(lengths)) and not dropout):
        return attend_in_blocks(query, key, value, segments, scaling, softcap, sliding_window), None
    if query.device.type == "cpu" and not any(tensor.requires_grad for tensor in (query, key, value)):
        return _without_gradient(query, key, value, segments, scaling, dropout, sliding_window), None
    # split, not slices: its backward is one concatenation instead of a full-size sum per segment.
    pieces = [tensor[0].split(lengths, dim=1) for tensor in (query, key, value)]
    out: list[Tensor] = [query] * len(lengths)
    for members in _similar(lengths):
        q, k, v = (_stack([piece[i] for i in members]) for piece in pieces)
        result = _plain(q, k, v, scaling, dropout, sliding_window)
        for row, i in enumerate(members):
            out[i] = result[row, :, : lengths[i]]
    return torch.cat(out, dim=1).transpose(0, 1)[None], None


def _without_gradient(  # noqa: PLR0913
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float, dropout: float, window: int | None
) -> Tensor:
    """One call of the kernel per segment, or for all segments of like length: a call costs more than padding."""
    heads, length, width = q.shape[1], q.shape[2], v.shape[3]
    out = q.new_empty(1, length, heads, width)
    for group in _groups(segments):
        if group.source is None:
            (start, end), *_ = group.members
            piece = _plain(q[:, :, start:end], k[:, :, start:end], v[:, :, start:end], scaling, dropout, window)
            out[:, start:end] = piece.transpose(1, 2)
            continue
        size = (len(group.members), -1)
        sq, sk, sv = (t[0].index_select(1, group.source).unflatten(1, size).transpose(0, 1) for t in (q, k, v))
        done = _plain(sq, sk, sv, scaling, dropout, window).transpose(1, 2).reshape(-1, heads * width)
        out.view(length, -1).index_copy_(0, group.target, done.index_select(0, group.place))
    return out


@dataclass(frozen=True)
class _Group:
    """Segments that go through the kernel together; the tensors are None for one alone."""

    members: Segments
    source: Tensor | None  # (n * longest,) places in the row, a segment's last place again where nothing lies
    target: Tensor  # (tokens,) places in the row
    place: Tensor  # (tokens,) the same tokens in the stack


@lru_cache(maxsize=1)  # every layer of one row asks for the same
def _groups(segments: Segments) -> tuple[_Group, ...]:
    found = []
    for numbers in _similar([end - start for start, end in segments]):
        members = tuple(segments[i] for i in numbers)
        start, length = torch.tensor(members)[:, :1], torch.tensor([[end - start] for start, end in members])
        step = torch.arange(int(length.max()))
        filled = (step < length).flatten()
        source = (start + torch.minimum(step, length - 1)).flatten()
        found.append(_Group(members, source if len(members) > 1 else None, source[filled], filled.nonzero()[:, 0]))
    return tuple(found)


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Group segments of like length, so that one call serves a group with little padding."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[i] >= 0.6 * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _stack(pieces: Sequence[Tensor]) -> Tensor:
    """(heads, t, d) each -> (n, heads, T, d), padded at the end, where causal attention never looks."""
    longest = max(piece.shape[1] for piece in pieces)
    return torch.stack([F.pad(piece, (0, 0, 0, longest - piece.shape[1])) for piece in pieces])


def _kernel_is_slow(q: Tensor, longest: int) -> bool:
    """On a CPU PyTorch's kernel with its bf16 backward takes 2.4 to 4.2 times as long as blocks of plain matrix
    products up to 128 tokens, 1.2 times at 256, about as long at 512, and is faster beyond
    (benchmarks/attention.py)."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and longest <= LONGEST


def _plain(q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float, window: int | None) -> Tensor:
    narrow = window is not None and q.shape[2] > window
    mask = causal_window(q.shape[2], window, q.device) if narrow else None
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=not narrow, scale=scaling, enable_gqa=grouped
    )


def aligned(rows: int) -> int:
    """Return the next multiple of ALIGN."""
    return -(-rows // ALIGN) * ALIGN


@contextmanager
def packed_attention(model: PreTrainedModel, packs: bool = True) -> Iterator[None]:
    """Run the model on packed rows inside this block; a model that does not pack (`packs`) is left as it is."""
    if not packs:
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def keeps_segments_apart(model: PreTrainedModel, vocabulary: int) -> bool:
    """Probe whether the second example of a row is blind to the first, and is what it is alone.

    False for layers that carry state along the row (convolutions, recurrent, linear attention): those models
    get padded rows of one example each.
    """
    generator = torch.Generator().manual_seed(0)
    ids, others = (torch.randint(0, vocabulary, (1, 12), generator=generator).to(model.device) for _ in range(2))
    others[:, 5:] = ids[:, 5:]
    positions, segments = torch.tensor([[*range(5), *range(7)]], device=ids.device), [(0, 5), (5, 12)]
    with packed_attention(model):
        try:
            packed, changed = (hidden_states(model, row, positions, segments)[:, 5:].float() for row in (ids, others))
            alone = hidden_states(model, ids[:, 5:], positions[:, 5:], [(0, 7)]).float()
        except (TypeError, ValueError, RuntimeError):
            return False
    # Products of the same shape round the same way, so what is in front may not show at all, but for experts, whose
    # share of the tokens it changes. A short convolution may show as little as 0.003, in the next token.
    blind = _apart(changed, packed).max() < BLIND[model.dtype]
    return bool(blind and _apart(packed, alone).mean() < 0.05)  # bf16 rounding gives 0.01


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Relative distance of each token's hidden states."""
    distance: Tensor = (one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-6)
    return distance


def hidden_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    segments: Sequence[tuple[int, int]],
    *,
    packed: bool = True,
) -> Tensor:
    """Last hidden states (B, T, d) of a packed row, or of padded rows (`packed` False), before the output head.

    Padded rows need no mask: what stands behind an example is never looked at.
    """
    backbone = getattr(model, model.base_model_prefix)
    length = input_ids.shape[1]
    spare = aligned(length) - length if packed and input_ids.device.type == "cpu" else 0
    if spare:
        input_ids = F.pad(input_ids, (0, spare))
        position_ids = torch.cat([position_ids, torch.arange(spare)[None]], dim=1)
        segments = [*segments, (length, length + spare)]
    out: Tensor = backbone(
        input_ids=input_ids, position_ids=position_ids, segments=tuple(segments), use_cache=False
    ).last_hidden_state
    return out[:, :length]


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
