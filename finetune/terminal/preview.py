"""Examples token by token: trained ones coloured, control tokens and white space visible."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.text import Text

from finetune.inspection.preview import Preview, Token

TRAINED, CONTROL, TRAINED_CONTROL = "green", "bold magenta", "bold green reverse"
OPEN, CLOSE = "⟦", "⟧"
_VISIBLE = str.maketrans({"\n": "⏎\n", "\t": "→", "\r": "␍"})


def show_previews(console: Console, previews: Sequence[Preview]) -> None:
    """Print examples; every second token is underlined. Without colours, trained stretches stand in brackets."""
    for preview in previews:
        console.print(_headline(preview), style="bold", highlight=False, markup=False)
        console.print(_line(preview, brackets=console.color_system is None), soft_wrap=True)
        console.print()
    console.print(_legend(brackets=console.color_system is None))


def _line(preview: Preview, *, brackets: bool) -> Text:
    line, inside = Text(), False
    for number, token in enumerate(preview.tokens):
        if brackets and token.trained != inside:
            line.append(OPEN if token.trained else CLOSE)
            inside = token.trained
        line.append(visible(token.text), style=_style(token, odd=bool(number % 2)))
    return line.append(CLOSE) if inside else line


def _legend(*, brackets: bool) -> Text:
    if brackets:
        return Text(f"{OPEN}trained{CLOSE}, everything else is read and not trained; ⏎ is a line break")
    legend = Text("trained", style=TRAINED)
    legend.append(" ").append("trained control token", style=TRAINED_CONTROL)
    legend.append(" ").append("control token", style=CONTROL)
    return legend.append(" everything else is read and not trained; ⏎ is a line break", style="dim")


def previews_html(name: str, previews: Sequence[Preview]) -> str:
    """Render the same as one self-contained page."""
    source = files("finetune.terminal").joinpath("templates/preview.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = [(_headline(preview), [(token, visible(token.text)) for token in preview.tokens]) for preview in previews]
    return environment.from_string(source).render(name=name, examples=rows)


def visible(text: str) -> str:
    """Text with its white space and invisible characters to be seen."""
    text = text.translate(_VISIBLE)
    return "".join(c if c.isprintable() or c == "\n" else f"<U+{ord(c):04X}>" for c in text)


def _headline(preview: Preview) -> str:
    count = len(preview.tokens)
    return f"{preview.where} · {count} tokens, {preview.trained} trained ({preview.trained / count:.0%})"


def _style(token: Token, *, odd: bool) -> str:
    kinds = {(True, True): TRAINED_CONTROL, (True, False): TRAINED, (False, True): CONTROL, (False, False): "default"}
    return kinds[token.trained, token.control] + (" underline" if odd and not token.control else "")
