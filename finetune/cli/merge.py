"""merge and export: an adapter leaves for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.app import Store, app, out, say
from finetune.cli.sizes import parse_bytes
from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from finetune.export.gguf_model import Part


class IntoChoice(StrEnum):
    original = "original"
    dequantised = "dequantised"
    four_bits = "4bit"


class Precision(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class OutType(StrEnum):
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


Adapter = Annotated[str, typer.Argument(metavar="ADAPTER", help="name or folder")]
BaseModel = Annotated[str | None, typer.Option("--base-model", help="where the base lies now; default: as in the card")]
IntoOption = Annotated[
    IntoChoice | None,
    typer.Option(help="original: weights before quantisation; default: what the adapter was trained over"),
]


@app.command()
def merge(
    adapter: Adapter,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write")],
    into: IntoOption = None,
    dtype: Annotated[Precision, typer.Option(help="of the stored weights; auto: the base's")] = Precision.auto,
    base: BaseModel = None,
    prompts: Annotated[Path | None, typer.Option(help="held-out prompts to compare on; default: the recipe's")] = None,
    limit: Annotated[int, typer.Option(min=1, help="prompts to compare on at most")] = 100,
    measure: Annotated[bool, typer.Option(help="compare the result with the adapter on its base")] = True,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="of a weight file at most")] = "2GB",
    force: Annotated[bool, typer.Option("--force", help="merge into 4 bits, and print what it costs")] = False,
    store: Store = Path("adapters"),
) -> None:
    """Write a model with the adapter in its weights, and a receipt of how far it is from the adapter on its base."""
    size = parse_bytes(shard_size, "--shard-size")
    from finetune.store.folders import find_adapter

    found = find_adapter(adapter, store)
    from finetune.export.merge import MergeOptions
    from finetune.export.merge import merge as merge_adapter
    from finetune.terminal.progress import RunDisplay

    options = MergeOptions(
        into=into.value if into else None,
        dtype=dtype.value,
        base=base,
        prompts=prompts,
        limit=limit,
        measure=measure,
        force=force,
        shard=size,
    )
    with RunDisplay(out) as show:
        receipt = merge_adapter(found, target, options, emit=show)
    for line in receipt.lines():
        say(line)
    say(f"model: {target} · receipt: {target / 'merge.json'}")
    if receipt.into == "4bit":
        say("as a base it is written with `quantization: none`: its weights are in 4 bits already")
    if receipt.system:
        say(f"it was trained with the system prompt {receipt.system!r}, which the model does not add by itself")


@app.command()
def export(
    adapter: Adapter,
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="file to write")],
    base_alone: Annotated[bool, typer.Option("--base", help="the base alone, for an adapter's file")] = False,
    adapter_alone: Annotated[bool, typer.Option("--adapter", help="the adapter alone")] = False,
    outtype: Annotated[OutType, typer.Option(help="of the matrices; vectors are f32")] = OutType.f16,
    into: IntoOption = None,
    base: BaseModel = None,
    store: Store = Path("adapters"),
) -> None:
    """Write a GGUF file for llama.cpp and Ollama, with a Modelfile: the merged model, the base or the adapter alone."""
    if base_alone and adapter_alone:
        raise FinetuneError("--base and --adapter are two files", fix="run it twice, with another OUT.gguf")
    part: Part = "base" if base_alone else "adapter" if adapter_alone else "merged"
    from finetune.store.folders import find_adapter

    found = find_adapter(adapter, store)
    try:
        from finetune.export.gguf_model import ExportOptions, export_gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise FinetuneError("the package gguf is not installed", fix="pip install 'finetune[gguf]'") from None
    from finetune.terminal.progress import RunDisplay

    options = ExportOptions(part=part, outtype=outtype.value, into=into.value if into else None, base=base)
    with RunDisplay(out) as show:
        made = export_gguf(found, target, options, emit=show)
    say(
        f"{made.file}: {made.tensors} tensors, {made.size / 2**20:,.1f} MiB, context {made.context:,} tokens; "
        f"read back, the largest difference is {made.difference:.3g}"
    )
    for note in made.notes:
        say(f"note: {note}")
    say(f"next: ollama create {target.stem} -f {made.modelfile}")
