"""The command line's frame: consoles, options that several commands share, errors -> exit codes.

Heavy imports stand inside the commands, so that `finetune --help` and `finetune list` are instant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.terminal.safety import guarded

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
# Piped output is read by machines and in logs: wide enough that tables do not wrap.
out = guarded(Console(width=None if sys.stdout.isatty() else 140, emoji=False))
err = guarded(Console(stderr=True, emoji=False))

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe, such as recipes/pizza.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, such as train.epochs=1")
]
Store = Annotated[Path, typer.Option(help="folder that holds adapter folders")]
Force = Annotated[bool, typer.Option("--force", help="load adapters of another base, too, and say what that gives up")]


def main() -> None:
    """Run the command line; a user's mistake becomes a message and an exit code, never a traceback."""
    try:
        app()
    except FinetuneError as error:
        err.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception:
        err.print_exception()
        err.print("this is a bug in finetune; please report it with the lines above", style="red")
        sys.exit(70)


def say(text: str) -> None:
    """Print one line as it is: no markup, no wrapping."""
    out.print(text, highlight=False, markup=False, soft_wrap=True)
