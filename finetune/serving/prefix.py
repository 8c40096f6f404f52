"""Keys and values of prompts that begin alike are computed once: kept in blocks, by adapter content and tokens."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

BLOCK = 16  # tokens

States = tuple[Tensor, Tensor]  # keys and values, (layers, heads, tokens, d) each


@dataclass(frozen=True)
class Known:
    """The start of a prompt whose keys and values are there."""

    tokens: int
    blocks: tuple[States, ...]

    def states(self) -> States:
        keys, values = zip(*self.blocks, strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)


class PrefixCache:
    """Blocks of keys and values, each named by everything that it depends on; the least recently used go first.

    The name of a block is a hash of the adapter's content digest and of all tokens up to the block's end. So an
    adapter that comes back with other weights under the same name has other blocks.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[bytes, States] = OrderedDict()
        self.bytes = 0
        self.asked = self.found = 0  # tokens of prompts, and how many of them were there

    @property
    def tokens(self) -> int:
        return len(self._blocks) * BLOCK

    def find(self, digest: str, prompt: Sequence[int]) -> Known | None:
        """Return what is known of a prompt's start; its last token is always left to compute."""
        names = []
        for name in _names(digest, prompt[: len(prompt) - 1]):
            if name not in self._blocks:
                break
            names.append(name)
        self._touch(names)
        self.asked += len(prompt)
        self.found += len(names) * BLOCK
        return Known(len(names) * BLOCK, tuple(self._blocks[name] for name in names)) if names else None

    def put(self, digest: str, tokens: Sequence[int], read: Callable[[int, int], States]) -> None:
        """Keep the whole blocks of these tokens; `read` gives the states of a range of them."""
        names = list(_names(digest, tokens))
        new = next((place for place, name in enumerate(names) if name not in self._blocks), len(names))
        if new < len(names):
            keys, values = read(new * BLOCK, len(names) * BLOCK)
            for name, key, value in zip(names[new:], keys.split(BLOCK, 2), values.split(BLOCK, 2), strict=True):
                if name not in self._blocks:
                    self._blocks[name] = key.clone(), value.clone()  # apart, so that each can go alone
                    self.bytes += key.nbytes + value.nbytes
        self._touch(names)
        while self.bytes > self._max_bytes:
            _, (key, value) = self._blocks.popitem(last=False)
            self.bytes -= key.nbytes + value.nbytes

    def clear(self) -> None:
        self._blocks.clear()
        self.bytes = 0

    def _touch(self, names: Sequence[bytes]) -> None:
        """Used now; of a chain the end goes first, because without its start it cannot be found."""
        for name in reversed(names):
            self._blocks.move_to_end(name)


def _names(digest: str, tokens: Sequence[int]) -> Iterator[bytes]:
    """The names of the whole blocks of tokens, first to last."""
    name = sha256(digest.encode()).digest()
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        name = sha256(name + array("q", tokens[start : start + BLOCK]).tobytes()).digest()
        yield name
