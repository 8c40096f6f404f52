"""The command line that serves a base and its adapters with vLLM, for those who outgrow one process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.recipe import BaseSection
from finetune.store.folders import CONFIG, StoredAdapter

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes
BUILT_IN = Path(__file__).parents[1] / "model" / "tiny"


def vllm_command(base: BaseSection, adapters: Sequence[StoredAdapter], *, host: str, port: int) -> list[str]:
    """Build the command; keys are no part of it, because everybody on a machine sees command lines.

    Raises FinetuneError for an adapter that vLLM cannot serve.
    """
    model = str(BUILT_IN) if base.model == "tiny" else base.model
    command = ["vllm", "serve", model, "--served-model-name", base.model, "--host", host, "--port", str(port)]
    if base.revision:
        command += ["--revision", base.revision]
    if base.quantization == "nf4":
        command += ["--quantization", "bitsandbytes"]
    if not adapters:
        return command
    modules = [
        json.dumps({"name": a.name, "path": str(a.folder.resolve()), "base_model_name": base.model}) for a in adapters
    ]
    rank = max(_rank(adapter) for adapter in adapters)
    fitting = next((size for size in RANKS if size >= rank), None)
    if fitting is None:
        raise FinetuneError(f"vLLM serves ranks up to {RANKS[-1]}, the largest here is {rank}")
    command += ["--enable-lora", "--max-loras", str(min(len(adapters), 8)), "--max-cpu-loras", str(len(adapters))]
    return [*command, "--max-lora-rank", str(fitting), "--lora-modules", *modules]


def run_vllm(command: Sequence[str], api_key: str | None) -> None:
    """Become vLLM. Raises FinetuneError if it is not installed."""
    program = shutil.which(command[0])
    if program is None:
        raise FinetuneError("vLLM is not installed", fix="pip install vllm, or run where it is: " + shlex.join(command))
    if api_key:
        os.environ["VLLM_API_KEY"] = api_key
    os.execv(program, list(command))


def _rank(adapter: StoredAdapter) -> int:
    """The largest rank that an adapter uses. Raises FinetuneError if vLLM cannot serve it."""
    place = adapter.folder / CONFIG
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
        ranks = [int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FinetuneError(f"cannot be read ({error!r})", where=str(place)) from None
    for option, name in (("use_dora", "DoRA"), ("modules_to_save", "modules_to_save"), ("lora_bias", "biases")):
        if config.get(option):
            fix = f"leave {adapter.name} out, or merge it into its base"
            raise FinetuneError(f"vLLM cannot serve an adapter with {name}", where=str(place), fix=fix)
    return max(ranks)
