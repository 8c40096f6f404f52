"""Whatever is printed is harmless: no control character, no command to a CI run, no markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.cli.app import err, out
from finetune.terminal.safety import guarded


def printed(*pieces: object, end: str = "\n", **given: object) -> str:
    console = guarded(Console(file=io.StringIO(), width=60, emoji=False))
    for piece in pieces:
        console.print(piece, end=end, markup=False, highlight=False, soft_wrap=True, **given)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::error::x", "\\::error::x"),
        ("  ::warning file=a::x", "  \\::warning file=a::x"),
        ("a\n::error::x\n::b", "a\n\\::error::x\n\\::b"),
        ("std::vector :: x", "std::vector :: x"),
        ("a ##[error]x", "a ##\\[error]x"),
        ("##vso[task.complete]", "##\\vso[task.complete]"),
        ("## Heading", "## Heading"),
        ("\x1b[31mred\x9b0m\x07", "␛[31mred[U+009B]0m"),
        ("a\u202eb\u200bc", "a[U+202E]b[U+200B]c"),
        ("[red]x[/red] :smile:", "[red]x[/red] :smile:"),
    ],
)
def test_text_is_shown_and_does_nothing(text: str, shown: str) -> None:
    assert printed(text) == f"{shown}\n"


@pytest.mark.parametrize("pieces", [(":", ":error::x"), ("::", "error::x"), (" ", "::error::x"), ("a\n", "::error")])
def test_a_command_in_pieces_is_none_either(pieces: tuple[str, ...]) -> None:
    assert not any(line.lstrip().startswith("::") for line in printed(*pieces, end="").splitlines())


def test_what_goes_on_in_a_line_stays_as_it_is() -> None:
    assert printed("std", "::", "vector #", "# x", end="") == "std::vector ## x"
    assert printed("a#", "#", "[error]", end="") == "a##\\[error]"


def test_wrapped_lines_and_cells_begin_no_command() -> None:
    console = guarded(Console(file=io.StringIO(), width=12))
    table = Table(box=None, show_header=False)
    table.add_row(Text("word word ::error::x ::error::y"))
    console.print(table)
    console.print(Text("word word ::error::x"))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert not any(line.lstrip().startswith("::") for line in lines)
    assert sum("\\::error" in line for line in lines) == 3


def test_styles_of_our_own_stay() -> None:
    console = guarded(Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=60))
    console.print(Text("\x1b[0mred", style="red"))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "\x1b[31m␛[0mred\x1b[0m\n"


def test_the_command_line_prints_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (out, err):
        console.print("::error::x\x1b[31m", markup=False, highlight=False)
    captured = capsys.readouterr()
    assert captured.out == captured.err == "\\::error::x␛[31m\n"
