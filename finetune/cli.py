"""The command line: each command is one public function plus printing.

Heavy imports stand inside the commands, so that `finetune --help` and `finetune list` are instant.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from finetune.errors import AdapterError, FinetuneError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
# Piped output is read by machines and in logs: wide enough that tables do not wrap.
out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)
EXIT_CODES = {"none": 0, "pass": 0, "fail": 1, "inconclusive": 3}

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe, such as recipes/pizza.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, such as train.epochs=1")
]
Store = Annotated[Path, typer.Option(help="folder that holds adapter folders")]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", "-a", help="adapter name or folder; repeat to load several")
]
BaseModel = Annotated[str | None, typer.Option("--base", help="base model; default: the first adapter's, else tiny")]
Temperature = Annotated[float, typer.Option(help="0: greedy; else sampling temperature")]
TopP = Annotated[float, typer.Option(help="sample from the smallest set with this probability")]
MaxNewTokens = Annotated[int, typer.Option(help="tokens per answer at most")]
Stop = Annotated[list[str] | None, typer.Option(help="string that ends an answer; repeatable")]
Frequency = Annotated[float, typer.Option(help="penalty per earlier occurrence of a token")]
Presence = Annotated[float, typer.Option(help="penalty once a token has occurred")]
Seed = Annotated[int, typer.Option(help="seed of the sampling")]


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="discard what an interrupted run left")] = False,
) -> None:
    """Train the recipe's adapter; run it again after an interruption and it goes on."""
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from finetune import pipeline
    from finetune.terminal.progress import RunDisplay

    main_process = os.environ.get("RANK", "0") == "0"
    with RunDisplay(out if main_process else Console(quiet=True)) as show:
        adapter = pipeline.train(loaded, emit=show, fresh=fresh)
    if main_process:
        _print(f"adapter written to {adapter.folder}")
        _print(f"next: finetune eval {recipe} · finetune chat --adapter {adapter.folder}")


@app.command("eval")
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="name or folder; default: the recipe's")
    ] = None,
) -> None:
    """Compare an adapter with its base and write the report; the recipe's gates decide the exit code."""
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from finetune import pipeline
    from finetune.terminal.progress import RunDisplay
    from finetune.terminal.tables import gates_table, report_table

    with RunDisplay(out) as show:
        report, folder = pipeline.evaluate(loaded, adapter, emit=show)
    out.print(report_table(report))
    if gates := gates_table(report):
        out.print(gates)
    _print(f"verdict: {report.verdict}" if report.gates else "no gates in the recipe, so no verdict")
    _print(f"report: {folder / 'report.html'}")
    raise typer.Exit(EXIT_CODES[report.verdict])


@app.command()
def chat(
    adapter: Adapters = None,
    base: BaseModel = None,
    store: Store = Path("adapters"),
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 128,
    stop: Stop = None,
    frequency_penalty: Frequency = 0.0,
    presence_penalty: Presence = 0.0,
    seed: Seed = 0,
) -> None:
    """Talk to the base or to an adapter; /help inside lists the commands."""
    settings = _settings(temperature, top_p, max_new_tokens, stop, frequency_penalty, presence_penalty)
    bot = _assistant(adapter, base, store)
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
    max_new_tokens: MaxNewTokens = 128,
    stop: Stop = None,
    frequency_penalty: Frequency = 0.0,
    presence_penalty: Presence = 0.0,
    seed: Seed = 0,
) -> None:
    """Answer one prompt or a file of prompts; give --adapter several times to compare them."""
    settings = _settings(temperature, top_p, max_new_tokens, stop, frequency_penalty, presence_penalty)
    texts = [*(prompts or []), *(_read_prompts(file) if file else [])]
    if not texts:
        raise FinetuneError("nothing to answer", fix='give a prompt, as in finetune generate "two pizzas", or --file')
    bot = _assistant(adapter, base, store)
    from finetune.data.formats import Message

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


@app.command("list")
def list_command(store: Store = Path("adapters")) -> None:
    """List the adapters of a folder."""
    from finetune.model.store import list_adapters
    from finetune.terminal.tables import adapters_table

    adapters = list_adapters(store)
    if not adapters:
        _print(f"{store} holds no adapter; train one with finetune train recipes/pizza.yaml")
        return
    out.print(adapters_table(adapters))


@app.command()
def show(name: Annotated[str, typer.Argument(help="adapter name or folder")], store: Store = Path("adapters")) -> None:
    """Show everything known about one adapter."""
    from finetune.model.store import find_adapter
    from finetune.terminal.tables import show_adapter

    show_adapter(out, find_adapter(name, store))


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


def _assistant(adapters: list[str] | None, base: str | None, store: Path) -> Any:
    """Load base and adapters; the base comes from --base, else from the first adapter's card."""
    from pydantic import ValidationError

    from finetune.model.store import find_adapter
    from finetune.recipe import BaseSection

    found = [find_adapter(name, store) for name in adapters or []]
    section = BaseSection(model=base or "tiny")
    if base is None and found:
        try:
            section = BaseSection.model_validate(found[0].card.base.model_dump(exclude={"fingerprint"}))
        except ValidationError as error:
            raise AdapterError(
                f"its card names no base: {error.errors()[0]['msg']}", where=str(found[0].folder)
            ) from None
    from finetune.serving.assistant import Assistant

    return Assistant(section, adapters or [], store=store)


def _settings(
    temperature: float, top_p: float, max_new_tokens: int, stop: list[str] | None, frequency: float, presence: float
) -> Any:
    from pydantic import ValidationError

    from finetune.recipe import GenerationSection

    try:
        return GenerationSection(
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            stop=tuple(stop or ()),
            frequency_penalty=frequency,
            presence_penalty=presence,
        )
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
    _print(f"> {prompt}")
    for name, text in answers.items():
        _print(f"{name:>{width}}: {text}")


def _print(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def _lines() -> Iterator[str]:
    """Lines typed by a person, with a prompt, or piped in."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
