"""The Hugging Face Hub: whether it can be reached, and which of its errors stands behind an exception."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")


@lru_cache(maxsize=1)
def reachable() -> bool:
    """Whether the Hub's name resolves; without this, a machine without network retries for a minute."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy resolves names
    from huggingface_hub.constants import ENDPOINT  # here: slow to import

    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def find_cause(error: BaseException, causes: Mapping[str, T]) -> T | None:
    """Return the first of `causes` whose exception class stands anywhere in the error's chain."""
    link: BaseException | None = error
    chain: list[str] = []
    while link is not None and len(chain) < 10:
        chain.append(type(link).__name__)
        link = link.__cause__ or link.__context__
    return next((value for known, value in causes.items() if known in chain), None)


def is_hub_error(error: BaseException) -> bool:
    """Say whether an exception comes from the Hub's library, the network or the disk, not from a mistake of ours."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, ValueError)) or package in {"huggingface_hub", "httpx", "httpx2", "httpcore"}
