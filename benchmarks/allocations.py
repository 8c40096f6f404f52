"""Memory that is allocated while something runs, byte by byte."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that are allocated above what was there before, when the most is; PyTorch's allocator counts."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
