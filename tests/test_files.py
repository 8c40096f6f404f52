from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from finetune import files
from finetune.errors import FinetuneError
from finetune.files import atomic_write_text, recover_folder, replace_folder, sha256_file


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def fill(target: Path, text: str) -> None:
    with replace_folder(target) as new:
        (new / "sub").mkdir()
        (new / "a.txt").write_text(text)
        (new / "sub" / "b.txt").write_text(text)


def read(target: Path) -> tuple[str, str]:
    return (target / "a.txt").read_text(), (target / "sub" / "b.txt").read_text()


def test_creates_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "adapter"
    fill(target, "one")
    (target / "extra").write_text("of the old folder")
    fill(target, "two")
    assert read(target) == ("two", "two")
    assert names(target) == ["a.txt", "sub"]
    assert names(target.parent) == ["adapter"]


def test_who_may_list_the_folder_may_read_its_files(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "adapter") as new:
        new.chmod(0o750)
        (new / "weights").touch(mode=0o600)
    assert (tmp_path / "adapter" / "weights").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exception_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "adapter"
    fill(target, "one")
    with pytest.raises(error), replace_folder(target) as new:
        (new / "a.txt").write_text("half")
        raise error
    assert read(target) == ("one", "one")
    assert names(tmp_path) == ["adapter"]


@pytest.mark.parametrize("call", [1, 2])
def test_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    target = tmp_path / "adapter"
    fill(target, "one")
    rename, calls = Path.rename, []

    def failing(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == call:
            raise PermissionError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError), replace_folder(target) as new:
        (new / "a.txt").write_text("two")
    assert read(target) == ("one", "one")
    assert names(tmp_path) == ["adapter"]


def test_everything_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = files._sync, Path.rename

    def noted_sync(path: Path) -> None:
        events.append(path.name)
        sync(path)

    def noted_rename(self: Path, to: Path) -> Path:
        events.append("rename")
        return rename(self, to)

    monkeypatch.setattr(files, "_sync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    fill(tmp_path / "adapter", "one")
    first = events.index("rename")
    assert {"a.txt", "b.txt", "sub", f".adapter.{os.getpid()}.new"} <= set(events[:first])
    assert events[-1] == tmp_path.name


def test_recovers_from_a_kill_between_the_renames(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    fill(target, "one")
    target.rename(tmp_path / ".adapter.999999.old")
    assert recover_folder(target)
    assert read(target) == ("one", "one")
    assert not recover_folder(target)
    target.rename(tmp_path / ".adapter.999999.old")
    fill(target, "two")
    assert read(target) == ("two", "two")
    assert names(tmp_path) == ["adapter"]


def test_recovering_nothing_is_fine(tmp_path: Path) -> None:
    assert not recover_folder(tmp_path / "none")
    assert not recover_folder(tmp_path / "none" / "at" / "all")


def test_leftovers_of_killed_writers_are_removed_but_not_of_other_names(tmp_path: Path) -> None:
    for name in (".a.123.new", f".a.{os.getpid()}.new", ".a.5.old", ".a.b.5.new", ".aa.5.new", ".a.5.new.txt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    (tmp_path / "a").mkdir()
    fill(tmp_path / "a", "one")
    assert names(tmp_path) == [".a.5.new.txt", ".a.b.5.new", ".aa.5.new", "a"]


def test_two_writers_in_one_process_are_refused(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a") as new:
        (new / "x").write_text("first")
        with pytest.raises(FinetuneError, match="already being written"), replace_folder(tmp_path / "a"):
            pass
    assert names(tmp_path / "a") == ["x"]


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    with pytest.raises(FinetuneError, match="is a file"), replace_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "precious"


def test_linked_folder_is_replaced_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    fill(tmp_path / "disk" / "real", "one")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    fill(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "disk" / "real") == ("two", "two")


WRITER = """
    import sys
    from finetune.files import replace_folder
    number = 0
    while True:
        number += 1
        with replace_folder(sys.argv[1]) as new:
            (new / "sub").mkdir()
            (new / "a.txt").write_text(str(number))
            (new / "sub" / "b.txt").write_text(str(number))
        print(number, flush=True)
"""


def test_sigkill_at_any_moment_leaves_a_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for wait in range(12):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            threading.Event().wait(wait * 0.0007)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        recover_folder(target)
        first, second = read(target)
        assert first == second
    fill(target, "last")
    assert names(tmp_path) == ["adapter"]


def test_reader_that_recovers_while_a_writer_swaps(tmp_path: Path) -> None:
    target, done = tmp_path / "adapter", threading.Event()
    fill(target, "0")

    def keep_recovering() -> None:
        while not done.is_set():
            recover_folder(target)
            done.wait(1e-5)  # let the writer run

    reader = threading.Thread(target=keep_recovering)
    reader.start()
    try:
        for number in range(40):
            fill(target, str(number))
            assert read(target) == (str(number), str(number))
    finally:
        done.set()
        reader.join()
    assert names(tmp_path) == ["adapter"]


def test_folder_that_a_reader_restores_mid_swap_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "adapter"
    fill(target, "one")
    rename = Path.rename
    restored: list[bool] = []

    def interrupted(self: Path, to: Path) -> Path:
        if self.name.endswith(".new") and not restored:
            restored.append(True)
            assert recover_folder(target)
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    fill(target, "two")
    assert restored
    assert read(target) == ("two", "two")
    assert names(tmp_path) == ["adapter"]


def test_atomic_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "x.json"
    atomic_write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(path, "half \ud800")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert names(path.parent) == ["x.json"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_what_a_killed_writer_of_a_file_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    left, busy = tmp_path / ".card.json.1.new", tmp_path / ".card.json.2.new"
    for file in (left, busy, tmp_path / ".other.json.1.new"):
        file.write_text("half")
    with busy.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        atomic_write_text(tmp_path / "card.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [busy.name, ".other.json.1.new", "card.json"]
    assert (tmp_path / "card.json").read_text() == "whole"
