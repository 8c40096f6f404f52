"""The tokenizer of a base and its chat template, without the weights and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ModelError
from finetune.model.hub import explain, hub_options, local_path
from finetune.recipe import BaseSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune.data.template import ChatTemplate

# Classes that are nothing but tokenizer.json, so nobody has to ask (and load torch to ask) which one it is.
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(section: BaseSection) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone. Raises ModelError."""
    path = local_path(section)
    folder = Path(path)
    if folder.is_dir() and not any((folder / n).exists() for n in ("tokenizer.json", "tokenizer_config.json")):
        raise ModelError(
            "the folder has no tokenizer (tokenizer.json)", where=section.model, fix="save the tokenizer there too"
        )
    with explain(section.model):
        tokenizer: PreTrainedTokenizerBase = _loader(folder).from_pretrained(path, **hub_options(section))
    return tokenizer


def load_chat_template(section: BaseSection) -> ChatTemplate:
    """Load the tokenizer and probe its chat template. Raises ModelError."""
    from finetune.data.probing import load_template

    return load_template(load_tokenizer(section), section.model)


def read_config(section: BaseSection) -> dict[str, Any]:
    """Return config.json of a base as it lies there. Raises ModelError."""
    from transformers.utils.hub import cached_file

    options = {key: value for key, value in hub_options(section).items() if key != "trust_remote_code"}
    with explain(section.model):
        text = Path(str(cached_file(local_path(section), "config.json", **options))).read_text(encoding="utf-8")
        config: dict[str, Any] = json.loads(text)
    return config


def max_positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model was made for, from its config.json; None if it does not say."""
    value = config.get("max_position_embeddings") or (config.get("text_config") or {}).get("max_position_embeddings")
    return int(value) if value else None


def _loader(folder: Path) -> Any:
    if _is_plain(folder):
        from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _is_plain(folder: Path) -> bool:
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        return False
    return named in _PLAIN and (folder / "tokenizer.json").exists()
