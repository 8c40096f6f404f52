"""serve."""

from __future__ import annotations

import enum
import json
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.app import Force, Store, app, say
from finetune.cli.sizes import parse_bytes
from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from finetune.serving.server.app import App

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
LIMITS = "Limits"


class Backend(enum.StrEnum):
    finetune = "finetune"
    vllm = "vllm"


ApiKey = Annotated[str | None, typer.Option(envvar="FINETUNE_API_KEY", help="what clients must send as bearer token")]
AdminKey = Annotated[
    str | None, typer.Option(envvar="FINETUNE_ADMIN_KEY", help="for loading and unloading; without one, nobody may")
]
MaxRows = Annotated[int, typer.Option(min=1, max=1024, help="answers written at the same time", rich_help_panel=LIMITS)]
MaxWaiting = Annotated[
    int, typer.Option(min=1, max=65536, help="requests that wait; more get 429", rich_help_panel=LIMITS)
]
MaxBody = Annotated[str, typer.Option(metavar="SIZE", help="of a request", rich_help_panel=LIMITS)]
Timeout = Annotated[
    float, typer.Option(min=1, metavar="SECONDS", help="for one answer, waiting included", rich_help_panel=LIMITS)
]
Grace = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="for running answers when stopped", rich_help_panel=LIMITS)
]


@app.command()
def serve(
    adapters: Annotated[
        list[str] | None, typer.Argument(metavar="[ADAPTER]...", help="names or folders; none: all of the store")
    ] = None,
    base: Annotated[str | None, typer.Option(help="base model; default: the first adapter's, else tiny")] = None,
    store: Store = Path("adapters"),
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine's own need a key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8000,
    api_key: ApiKey = None,
    admin_key: AdminKey = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="listen on other addresses without a key all the same")
    ] = False,
    force: Force = False,
    max_rows: MaxRows = 32,
    max_waiting: MaxWaiting = 256,
    max_body: MaxBody = "1MiB",
    timeout: Timeout = 600.0,
    grace: Grace = 30.0,
    engine: Annotated[
        Backend, typer.Option(help="vllm: run vLLM with the same base and adapters, or print how to")
    ] = Backend.finetune,
) -> None:
    """Answer OpenAI's API over HTTP with a base and any number of adapters; docs/serving.md.

    A request's model is the base's id, an adapter's name or a blend such as pizza+0.5*cheerful.
    """
    if engine is Backend.vllm:
        _vllm(adapters or [], base, store, host, port, api_key, insecure)
        return
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise FinetuneError(f"the server needs {' and '.join(missing)}", fix='pip install "finetune[serve]"')
    from finetune.serving.server.options import Options, check_exposure, host_names

    check_exposure(host, api_key, insecure=insecure)
    options = Options(
        api_key=api_key or None,
        admin_key=admin_key or None,
        hosts=host_names(host),
        grace=grace,
        max_body=parse_bytes(max_body, "--max-body"),
        answer_timeout=timeout,
    )
    from finetune.serving.choice import choose
    from finetune.serving.limits import EngineLimits
    from finetune.serving.server.run import Server, address, bind
    from finetune.serving.server.start import load

    with bind(host, port) as bound:
        limits = EngineLimits(max_rows=max_rows, max_waiting=max_waiting)
        choice = choose(adapters or [], base, store, force=force)
        loaded = load(choice, store=store, limits=limits, options=options, warn=say)
        Server(loaded, on_ready=lambda: _welcome(loaded, address(bound))).run([bound])
    say("stopped")


def _welcome(app: App, url: str) -> None:
    catalogue = app.catalogue
    names = catalogue.bank.names
    key = ' -H "Authorization: Bearer $FINETUNE_API_KEY"' if app.limits.api_key else ""
    example = {"model": (names or [catalogue.base_id])[0], "messages": [{"role": "user", "content": "Hello!"}]}
    body = shlex.quote(json.dumps(example))
    say(f"base: {catalogue.base_id}")
    say(f"adapters: {', '.join(names) or 'none'}")
    say(f"loading at run time: {'with the admin key' if app.limits.admin_key else 'off (--admin-key)'}")
    say(f"try: curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {body}")
    say(f"ready: {url}/v1 (Ctrl+C stops)")


def _vllm(
    adapters: list[str], base: str | None, store: Path, host: str, port: int, api_key: str | None, insecure: bool
) -> None:
    from finetune.serving.choice import choose
    from finetune.serving.server.options import check_exposure
    from finetune.serving.vllm import run_vllm, vllm_command

    check_exposure(host, api_key, insecure=insecure)
    choice = choose(adapters, base, store)
    command = vllm_command(choice.base, choice.adapters, host=host, port=port)
    if shutil.which(command[0]) is None:
        say("vLLM is not installed here; where it is, this serves the same:")
        say(shlex.join(command))
        return
    run_vllm(command, api_key)
