"""The store: list, show, verify, rename, remove, diff, import, push, pull."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.app import Overrides, Store, app, err, out, say
from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from finetune.recipe import BaseSection

AdapterName = Annotated[str, typer.Argument(metavar="ADAPTER", help="adapter name or folder")]
StoredName = Annotated[str, typer.Argument(metavar="NAME", help="an adapter's name in the store")]


@app.command("list")
def list_command(store: Store = Path("adapters")) -> None:
    """List the adapters of a folder."""
    from finetune.store.folders import read_store
    from finetune.terminal.adapters import adapters_table

    adapters, unreadable = read_store(store)
    for error in unreadable:
        err.print(f"warning: {error}", markup=False, highlight=False, soft_wrap=True)
    if not adapters:
        say(f"{store} holds no adapter; train one with finetune train recipes/pizza.yaml")
        return
    out.print(adapters_table(adapters))


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="ADAPTER|RECIPE", help="adapter name or folder, or a recipe's .yaml")],
    overrides: Overrides = None,
    store: Store = Path("adapters"),
    count: Annotated[int, typer.Option("--number", "-n", min=1, help="examples of a recipe to show")] = 3,
    html: Annotated[Path | None, typer.Option(help="write the examples of a recipe as a page, too")] = None,
) -> None:
    """Show everything known about an adapter, or a recipe's examples token by token as the model sees them."""
    if what.endswith((".yaml", ".yml")):
        _show_examples(Path(what), overrides or [], count, html)
        return
    from finetune.store.folders import find_adapter
    from finetune.terminal.adapters import show_adapter

    show_adapter(out, find_adapter(what, store))


@app.command()
def verify(
    name: AdapterName,
    store: Store = Path("adapters"),
    base: Annotated[str | None, typer.Option(help="the base to run it on; default: the card's")] = None,
    full: Annotated[bool, typer.Option("--full", help="hash every byte of the base's weights, not slices")] = False,
) -> None:
    """Hold an adapter against its card: files, data, base, weights, effect; exit code 1 if one is wrong."""
    from finetune.store.verify import verify_adapter
    from finetune.terminal.adapters import checks_table

    checks = verify_adapter(name, store, base=_section(base, None), full=full)
    out.print(checks_table(checks))
    raise typer.Exit(1 if any(check.state == "wrong" for check in checks) else 0)


@app.command()
def rename(name: StoredName, new: Annotated[str, typer.Argument()], store: Store = Path("adapters")) -> None:
    """Give an adapter another name."""
    from finetune.store.changes import rename_adapter

    say(f"{name} is {rename_adapter(name, new, store).folder} now")


@app.command()
def remove(
    name: StoredName,
    store: Store = Path("adapters"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Remove an adapter and its report; asks first."""
    from finetune.store.changes import remove_adapter
    from finetune.store.places import place_in_store

    if not yes:
        if not sys.stdin.isatty():
            raise FinetuneError(f"nobody can be asked whether to remove {name}", fix="say so with --yes")
        answer = input(f"remove {place_in_store(name, store)} for good? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            say("nothing was removed")
            return
    say(f"removed {remove_adapter(name, store)}")


@app.command()
def diff(first: AdapterName, second: AdapterName, store: Store = Path("adapters")) -> None:
    """Compare two adapters: base, recipe, data, metrics, and the distance of their weights."""
    from finetune.store.difference import diff_adapters
    from finetune.terminal.adapters import show_difference

    show_difference(out, diff_adapters(first, second, store))


@app.command("import")
def import_command(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="an adapter as PEFT writes it")],
    base: Annotated[str | None, typer.Option(help="its base: tiny, a Hub id or a folder; default: as it says")] = None,
    revision: Annotated[str | None, typer.Option(help="of a base on the Hub: branch, tag or commit")] = None,
    quantization: Annotated[str, typer.Option(help="of the base when it is used: none or nf4")] = "none",
    name: Annotated[str | None, typer.Option(help="in the store; default: the folder's")] = None,
    store: Store = Path("adapters"),
    full: Annotated[bool, typer.Option("--full", help="hash every byte of the base's weights, too")] = False,
) -> None:
    """Copy a PEFT adapter made elsewhere into the store, checked against its base, with a card of what is known."""
    section = _section(base, revision, quantization)
    from finetune.store.imports import import_adapter

    adapter = import_adapter(path, name=name, base=section, store=store, full=full)
    say(f"imported as {adapter.folder}, for base {adapter.card.base.model}; that it is its base is not verified")
    say(f"next: finetune verify {adapter.name} · finetune chat --adapter {adapter.name}")


@app.command()
def push(
    name: StoredName,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="a repository of the Hub; made if need be")],
    store: Store = Path("adapters"),
    private: Annotated[bool, typer.Option("--private", help="if it is made: for you alone")] = False,
) -> None:
    """Upload an adapter and its model card to the Hugging Face Hub."""
    from finetune.store.hub import push_adapter

    done = push_adapter(name, repo, store, private=private)
    say(f"{done.url} at {done.commit}")
    if done.left_out:
        say(f"left out, for it names folders of this machine: {', '.join(done.left_out)}")


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="a repository of the Hub that holds an adapter")],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit; default: the newest")] = None,
    name: Annotated[str | None, typer.Option(help="in the store; default: the repository's")] = None,
    base: Annotated[str | None, typer.Option(help="of an adapter without a card: its base")] = None,
    store: Store = Path("adapters"),
) -> None:
    """Copy an adapter from the Hugging Face Hub into the store and note its commit."""
    section = _section(base, None)
    from finetune.store.hub import pull_adapter

    adapter = pull_adapter(repo, revision, name=name, base=section, store=store)
    assert adapter.card.source is not None
    say(f"{adapter.folder}: {repo} at {adapter.card.source.revision}")
    say(f"next: finetune verify {adapter.name} · finetune chat --adapter {adapter.name}")


def _show_examples(recipe: Path, overrides: list[str], count: int, html: Path | None) -> None:
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from finetune.files import atomic_write_text
    from finetune.inspection.preview import preview
    from finetune.terminal.preview import previews_html, show_previews

    previews = preview(loaded, count)
    show_previews(out, previews)
    if html is not None:
        atomic_write_text(html, previews_html(loaded.name, previews))
        say(f"page: {html}")


def _section(base: str | None, revision: str | None, quantization: str = "none") -> BaseSection | None:
    """The base that options name. Raises FinetuneError naming the option."""
    from pydantic import ValidationError

    from finetune.recipe import BaseSection

    if base is None:
        return None
    try:
        return BaseSection.model_validate({"model": base, "revision": revision, "quantization": quantization})
    except ValidationError as error:
        first = error.errors()[0]
        raise FinetuneError(f"--{first['loc'][0]} {first['input']!r}: {first['msg']}") from None
