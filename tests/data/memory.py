"""How much memory a block takes at its peak, beyond what was held before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Growth:
    mib = 0.0


@contextmanager
def peak_growth() -> Iterator[Growth]:
    """Measure the growth of the process's largest resident set over the block."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before, growth = _peak(), Growth()
    yield growth
    growth.mib = _peak() - before


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split(maxsplit=1)[0]) / 1024
