"""chat and generate."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.app import Force, Store, app, err, out, say
from finetune.errors import FinetuneError

Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", "-a", help="adapter name or folder; repeat to load several")
]
BaseModel = Annotated[str | None, typer.Option("--base", help="base model; default: the first adapter's, else tiny")]
Temperature = Annotated[float, typer.Option(help="0: greedy; else sampling temperature")]
TopP = Annotated[float, typer.Option(help="sample from the smallest set with this probability")]
TopK = Annotated[int, typer.Option(help="sample from this many most probable tokens; 0: from all")]
MinP = Annotated[float, typer.Option(help="leave out tokens below this share of the most probable one's")]
MaxNewTokens = Annotated[int, typer.Option(help="tokens per answer at most")]
Stop = Annotated[list[str] | None, typer.Option(help="string that ends an answer; repeatable")]
Repetition = Annotated[float, typer.Option(help="divides logits of tokens in the prompt or the answer; 1: none")]
Frequency = Annotated[float, typer.Option(help="penalty per earlier occurrence of a token")]
Presence = Annotated[float, typer.Option(help="penalty once a token has occurred")]
Seed = Annotated[int, typer.Option(help="seed of the sampling")]


@app.command()
def chat(
    adapter: Adapters = None,
    base: BaseModel = None,
    store: Store = Path("adapters"),
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    max_new_tokens: MaxNewTokens = 128,
    stop: Stop = None,
    repetition_penalty: Repetition = 1.0,
    frequency_penalty: Frequency = 0.0,
    presence_penalty: Presence = 0.0,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Talk to the base or to an adapter; /help inside lists the commands."""
    settings = _settings(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
    )
    bot = _assistant(adapter, base, store, force)
    from finetune.terminal.chat import Chat

    names = list(bot.loaded)
    Chat(bot, out, adapter=names[0] if names else None, settings=settings, seed=seed).run(_lines())


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="what to answer")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="a file with one prompt per line")] = None,
    adapter: Adapters = None,
    base: BaseModel = None,
    store: Store = Path("adapters"),
    compare_base: Annotated[bool, typer.Option("--compare-base", help="answer with the base alone, too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per prompt")] = False,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    max_new_tokens: MaxNewTokens = 128,
    stop: Stop = None,
    repetition_penalty: Repetition = 1.0,
    frequency_penalty: Frequency = 0.0,
    presence_penalty: Presence = 0.0,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Answer one prompt or a file of prompts; give --adapter several times to compare them."""
    settings = _settings(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
    )
    texts = [*(prompts or []), *(_read_prompts(file) if file else [])]
    if not texts:
        raise FinetuneError("nothing to answer", fix='give a prompt, as in finetune generate "two pizzas", or --file')
    bot = _assistant(adapter, base, store, force)
    from finetune.data.messages import Message

    voices: list[str | None] = list(bot.loaded)
    voices = [None, *voices] if compare_base or not voices else voices
    conversations = [[Message("user", text)] for text in texts]
    answers = {voice or "base": bot.answer(conversations, voice, settings, seed) for voice in voices}
    for index, text in enumerate(texts):
        row = {name: given[index].text for name, given in answers.items()}
        if as_json:
            print(json.dumps({"prompt": text, "answers": row}, ensure_ascii=False))
        else:
            _print_answers(text, row)


def _assistant(adapters: list[str] | None, base: str | None, store: Path, force: bool) -> Any:
    """Load base and adapters; the base comes from --base, else from the first adapter's card."""
    from finetune.store.cards import base_named, base_section
    from finetune.store.folders import check_base, find_adapter

    found = [find_adapter(name, store) for name in adapters or []]
    section = base_section(found[0]) if base is None and found else base_named(base or "tiny")
    from finetune.serving.assistant import Assistant

    bot = Assistant(section, adapters or [], store=store, force=force)
    for stored in bot.loaded.values():
        if lost := check_base(stored, bot.base.fingerprint, bot.base.name, bot.base.revision, force=force):
            err.print(f"--force: {lost}", markup=False, highlight=False, soft_wrap=True)
    return bot


def _settings(**given: Any) -> Any:
    from pydantic import ValidationError

    from finetune.serving.settings import SamplingSettings

    try:
        return SamplingSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise FinetuneError(f"--{option} {first['input']}: {first['msg']}") from None


def _read_prompts(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"cannot be read ({error})", where=str(file)) from None


def _print_answers(prompt: str, answers: dict[str, str]) -> None:
    width = max(map(len, answers))
    say(f"> {prompt}")
    for name, text in answers.items():
        say(f"{name:>{width}}: {text}")


def _lines() -> Iterator[str]:
    """Lines typed by a person, with a prompt, or piped in."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
