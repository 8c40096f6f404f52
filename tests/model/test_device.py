"""What a process does to its own threads and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

# GNU's library starts a worker for the thread that computes first, and another for the next thread.
PROGRAM = """
import os, threading, torch
from finetune.model.device import releasing_workers

def compute():
    torch.randn(512, 512) @ torch.randn(512, 512)
    torch.rand(1 << 20).exp()

def threads():
    return len(os.listdir("/proc/self/task"))

def work():
    torch.set_num_threads(3)
    before = threads()
    with releasing_workers():
        compute()
        inside = threads()
    print(inside - before, threads() - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_workers_of_a_thread_that_is_done_computing_are_ended() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    inside, behind = map(int, run.stdout.split())
    assert inside >= 2
    assert behind == 0
