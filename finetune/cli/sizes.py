"""Sizes as people write them: 24GB, 7.5GiB, 800MB."""

from __future__ import annotations

import re

from finetune.errors import FinetuneError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", re.IGNORECASE)


def parse_bytes(text: str, option: str) -> int:
    """Bytes of a size: GB is 10^9, GiB 2^30. Raises FinetuneError naming the option."""
    found = _SIZE.fullmatch(text)
    size = round(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    if size < 1:
        raise FinetuneError(f"{option} {text!r} is no size", fix="write for example 24GB (10^9 bytes) or 24GiB (2^30)")
    return size
