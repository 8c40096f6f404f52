"""merge and export on the command line: what is printed, and exit codes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from finetune import cli
from finetune.store.folders import StoredAdapter


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_merge_prints_its_receipt(
    stored: StoredAdapter,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    options = ("--prompts", str(prompts), "--limit", "3", "--dtype", "float32", "--shard-size", "100KB")
    assert run(monkeypatch, "merge", str(stored.folder), str(out), *options) == 0
    printed = capsys.readouterr().out
    assert "merged plain into the dequantised base: 4 of 21 tensors changed" in printed
    assert "greedy agreement 100.00%" in printed
    assert "same answer to 3 of 3 prompts" in printed
    assert "'Be short.', which the model does not add by itself" in printed
    assert (out / "merge.json").is_file()


def test_a_forced_merge_into_4_bits_says_how_it_is_a_base(
    stored: StoredAdapter,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--into", "4bit", "--force", "--prompts", str(prompts), "--limit", "3")
    assert run(monkeypatch, "merge", str(stored.folder), str(tmp_path / "out"), *options) == 0
    assert "`quantization: none`" in capsys.readouterr().out


def test_export_prints_what_was_read_back(
    stored: StoredAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plain.gguf"
    assert run(monkeypatch, "export", str(stored.folder), str(out), "--outtype", "f32") == 0
    printed = capsys.readouterr().out
    assert "21 tensors" in printed
    assert "read back, the largest difference is 0\n" in printed
    assert f"ollama create plain -f {tmp_path / 'plain.Modelfile'}" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.Modelfile", "plain.gguf"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("merge", "{}", "out", "--into", "4bit"), "--force"),
        (("merge", "{}", "out", "--shard-size", "big"), "--shard-size 'big' is no size"),
        (("merge", "nobody", "out"), "no adapter 'nobody'"),
        (("export", "{}", "out.gguf", "--base", "--adapter"), "two files"),
        (("export", "{}", "out.bin"), "should end in .gguf"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    arguments: tuple[str, ...],
    reason: str,
    stored: StoredAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *(part.format(stored.folder) for part in arguments)) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []
