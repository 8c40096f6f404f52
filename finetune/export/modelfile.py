"""The Modelfile that Ollama makes a model from: FROM, ADAPTER, TEMPLATE, SYSTEM, PARAMETER stop.

Ollama writes prompts with a template of its own language (Go's). What stands around each turn is read off the
chat template's outline; a template that does more than putting something before and behind each turn gets none, and
Ollama then looks at the chat template in the GGUF file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import TemplateError

from finetune.data.messages import Message
from finetune.data.template import ChatTemplate, outline
from finetune.errors import ModelError

# Conversations that show whether a turn is always framed alike.
_TALKS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


class Frames(NamedTuple):
    """What a chat template puts around turns, where it does so alike in every conversation."""

    start: str  # before the first turn
    turns: dict[str, tuple[str, str]]  # role -> before and behind its text
    prompt: str  # behind the last turn, for the assistant to go on


def render_modelfile(
    weights: str, adapter: str | None, template: ChatTemplate, system: str | None, *, adds_bos: bool, note: str = ""
) -> str:
    """Write a Modelfile; `weights` and `adapter` are the GGUF files' names beside it."""
    lines = [f"# {line}" for line in note.splitlines()]
    lines.append(f"FROM ./{weights}")
    if adapter is not None:
        lines.append(f"ADAPTER ./{adapter}")
    frames = frames_of(template)
    if frames is not None and '"""' not in "".join([frames.start, frames.prompt, *map("".join, frames.turns.values())]):
        lines.append(f'TEMPLATE """{_go_template(frames, _bos(template) if adds_bos else "")}"""')
    else:
        lines.append("# no TEMPLATE: this chat template does more than framing turns; Ollama reads the one in the GGUF")
    if system is not None:
        lines.append(f'SYSTEM """{_quoted(system)}"""')
    stops = template.tokenizer.convert_ids_to_tokens(sorted(template.stop_ids))
    lines += [f'PARAMETER stop "{_escaped(stop)}"' for stop in stops]
    return "\n".join(lines) + "\n"


def frames_of(template: ChatTemplate) -> Frames | None:
    """Read what stands around turns off the chat template; None if that depends on the conversation."""
    try:
        pieces = {roles: _pieces(roles, template) for roles in _TALKS}
    except (ModelError, TemplateError):
        return None
    for start in (_bos(template), ""):
        # Where what is cut off here does not stand, the frames do not add up to what was found.
        frames = _cut(pieces, start, template.generation_prompt)
        if all(_written(frames, roles) == found for roles, found in pieces.items()):
            return frames
    return None


def _cut(pieces: dict[tuple[str, ...], list[str]], start: str, prompt: str) -> Frames:
    first, with_system, whole = pieces["user",], pieces["system", "user"], pieces[_TALKS[-1]]
    user, behind_user = first[0].removeprefix(start), first[-1].removesuffix(prompt)
    turns = {
        "system": (with_system[0].removeprefix(start), whole[1].removesuffix(user)),
        "user": (user, behind_user),
        "assistant": (whole[2].removeprefix(behind_user), whole[3].removesuffix(user)),
    }
    return Frames(start, turns, prompt)


def _pieces(roles: Sequence[str], template: ChatTemplate) -> list[str]:
    """What the template writes before the first text, between the texts and behind the last."""
    talk = [Message(role, "x") for role in roles]
    found, _ = outline(talk, "", template, generation_prompt=True)
    gaps = [""]
    for piece in found:
        if piece.leaf >= 0:
            gaps.append("")
        else:
            gaps[-1] += piece.text
    return gaps


def _written(frames: Frames, roles: Sequence[str]) -> list[str]:
    gaps = [frames.start]
    for role in roles:
        before, behind = frames.turns[role]
        gaps[-1] += before
        gaps.append(behind)
    gaps[-1] += frames.prompt
    return gaps


def _go_template(frames: Frames, bos: str) -> str:
    """Go's text/template over Ollama's .Messages; `bos`: what llama.cpp puts before the text by itself."""
    turns = [
        f'{{{{ if eq .Role "{role}" }}}}{_go(b)}{{{{ .Content }}}}{_go(e)}{{{{ end }}}}'
        for role, (b, e) in frames.turns.items()
    ]
    start = frames.start.removeprefix(bos) if bos else frames.start
    return f"{_go(start)}{{{{ range .Messages }}}}{''.join(turns)}{{{{ end }}}}{_go(frames.prompt)}"


def _go(text: str) -> str:
    """Text of the template that Go must not read as an action."""
    return text.replace("{{", '{{ "{{" }}')


def _bos(template: ChatTemplate) -> str:
    return str(template.tokenizer.bos_token or "")


def _quoted(text: str) -> str:
    if '"""' in text:
        raise ModelError('the system prompt has """, which a Modelfile cannot express')
    return text


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
