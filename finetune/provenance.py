"""When, with which versions and with which code something was made."""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from finetune.files import sha256_file

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "finetune")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def now() -> str:
    """UTC, ISO 8601, to the second; SOURCE_DATE_EPOCH (seconds) stands in for the clock, for equal bytes."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(fixed), UTC) if fixed.isdigit() else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def code_sha256(folder: Path) -> str:
    """Hash the Python files below a folder: what another release computed is not taken for this one's."""
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256("".join(f"{file.name} {sha256_file(file)}" for file in files).encode()).hexdigest()
