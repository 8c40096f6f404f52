"""Evaluations that are killed: run as `python -m tests.killing FUNCTION FOLDER ...` in a process of its own.

One process imports everything once and forks for every trial. It must never have had a pool of
threads, which a forked process would wait for without end: so it is started with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from finetune import cli, comparison, pipeline
from finetune.files import sha256_file
from finetune.recipe import load_recipe
from finetune.serving import assistant


def in_a_fresh_process(function: str, folder: Path, *arguments: int) -> str:
    """Run a function of this module on a folder with recipe.yaml and a trained adapter; return what it prints."""
    command = [sys.executable, "-m", "tests.killing", function, str(folder), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "1767322800"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def evaluate_in_a_fork(folder: Path, cache: Path, kill_after: float | None = None) -> tuple[bool, float]:
    """Evaluate; say whether it came to its end, and how long it took."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            evaluate(folder, cache)
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status), time.perf_counter() - start


def evaluate(folder: Path, cache: Path) -> None:
    os.environ["FINETUNE_CACHE"] = str(cache)
    pipeline.evaluate(load_recipe(folder / "recipe.yaml"), repeat=2)


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def kill_at_random(folder: Path, trials: int) -> int:
    """Kill evaluations at random moments, let each end, compare with an uninterrupted one; count the kills."""
    several_batches()
    adapter, before, cache = folder / "adapters" / "shop", folder / "before", folder / "cache"
    shutil.copytree(adapter, before)
    evaluate(folder, folder / "first")  # here, so that forked processes have everything loaded
    whole = digests(adapter)
    ended, seconds = evaluate_in_a_fork(folder, folder / "second")
    assert ended
    assert digests(adapter) == whole
    assert "report/report.html" in whole
    rng, kills = random.Random(0), 0
    while trials:
        before_this = kills
        shutil.rmtree(adapter)
        shutil.copytree(before, adapter)
        while not evaluate_in_a_fork(folder, cache, rng.uniform(0, seconds))[0]:
            kills += 1
        found = digests(adapter)
        assert found == whole, sorted(set(found.items()) ^ set(whole.items()))
        assert [path.name for path in adapter.parent.iterdir()] == ["shop"], "nothing is left behind"
        shutil.rmtree(cache)
        if kills > before_this:
            trials -= 1
        else:  # it came to its end first: the one that was timed was slower
            seconds *= 0.8
    return kills


def evaluate_anew(folder: Path, times: int) -> int:
    """Evaluate with an empty cache each time; count how many different results there are."""
    found = set()
    for trial in range(times):
        assert evaluate_in_a_fork(folder, folder / f"cache {trial}")[0]
        found.add(json.dumps(digests(folder / "adapters" / "shop"), sort_keys=True))
    return len(found)


def signalled(folder: Path) -> list[int]:
    """Send signals to `finetune eval` while it scores; return the exit codes as a shell shows them."""
    plain, begun = comparison.score_model, folder / "begun"

    def slow(*args: object, **options: object) -> object:
        begun.touch()
        time.sleep(1)
        return plain(*args, **options)  # type: ignore[arg-type]

    evaluate(folder, folder / "cache")  # so that forked processes have everything loaded
    comparison.score_model = slow  # type: ignore[assignment]
    return [send(folder, begun, number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)]


def send(folder: Path, begun: Path, number: signal.Signals) -> int:
    child = os.fork()
    if child == 0:
        sys.argv = ["finetune", "eval", str(folder / "recipe.yaml"), "--fresh"]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            cli.main()
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        os._exit(99)
    while not begun.exists():
        time.sleep(0.01)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    begun.unlink()
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def several_batches() -> None:
    """Make the batches of answers small: there are few prompts."""
    plain = assistant.generate
    assistant.generate = lambda *args, **options: plain(*args, **options, max_batch_tokens=200)


if __name__ == "__main__":
    call, place, *numbers = sys.argv[1:]
    print(json.dumps(globals()[call](Path(place), *map(int, numbers))))
