"""When and with which versions something was made."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "finetune")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
