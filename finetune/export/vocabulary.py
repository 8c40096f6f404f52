"""A byte-level BPE tokenizer as llama.cpp reads it: tokens, types, merges, special ids, chat template.

llama.cpp knows ways of cutting a text into words by name alone (`tokenizer.ggml.pre`). The name is given only where
what stands in tokenizer.json is that very way; anything else is refused, because a near miss changes ids silently.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from finetune.data.template import ChatTemplate
from finetune.errors import ModelError

# Splitting regexes as they stand in tokenizer.json -> llama.cpp's name, and whether it ignores merges there.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEXES = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _SPACES: ("llama-bpe", True),
    _CONTRACTIONS + r"\p{N}" + _SPACES: ("qwen2", False),
}
_NFC = "llama.cpp does not compose characters (NFC) before it tokenises, this tokenizer does"


@dataclass(frozen=True)
class Vocabulary:
    pre: str
    tokens: tuple[str, ...]
    types: tuple[gguf.TokenType, ...]
    merges: tuple[str, ...]
    adds_bos: bool
    adds_eos: bool
    special: dict[str, int]  # "bos", "eos", "eot", "pad", "unk" -> id
    chat_template: str | None
    note: str  # what llama.cpp does differently in rare cases, or empty

    def write(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(template: ChatTemplate, size: int, where: str) -> Vocabulary:
    """Read a tokenizer; `size`: rows of the model's embedding. Raises ModelError for what llama.cpp cannot do."""
    tokenizer: Any = template.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("its tokenizer has no tokenizer.json, which GGUF is written from", where=where)
    spec = json.loads(backend.to_str())
    if reason := _foreign(spec):
        raise ModelError(f"its tokenizer cannot be exported as GGUF: {reason}", where=where)
    pre, ignores = _pre(spec["pre_tokenizer"], where)
    if bool(spec["model"].get("ignore_merges")) != ignores:
        what = "ignores merges of whole words" if ignores else "does not ignore merges of whole words"
        raise ModelError(f"llama.cpp's pre-tokenizer {pre!r} {what}, unlike this tokenizer", where=where)
    tokens, types = _tokens(spec, size, where)
    adds_bos, adds_eos = _adds(tokenizer, where)
    return Vocabulary(
        pre,
        tuple(tokens),
        tuple(types),
        tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]),
        adds_bos,
        adds_eos,
        _special(tokenizer, template),
        tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        _NFC if spec["normalizer"] else "",
    )


def _foreign(spec: dict[str, Any]) -> str:
    """What about tokenizer.json is not byte-level BPE as llama.cpp computes it."""
    model, normalizer = spec["model"], spec.get("normalizer")
    if model["type"] != "BPE":
        return f"it is {model['type']}, not BPE"
    if model.get("byte_fallback"):
        return "it falls back to bytes (SentencePiece), and its piece scores are not in tokenizer.json"
    if normalizer is not None and normalizer != {"type": "NFC"}:
        return f"its normalizer {normalizer['type']} is not llama.cpp's"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            return f"its BPE has {key} {model[key]!r}"
    for token in spec["added_tokens"]:
        if token["single_word"] or token["lstrip"] or token["rstrip"]:
            return f"its token {token['content']!r} takes white space around it, or only whole words"
    return ""


def _pre(spec: Any, where: str) -> tuple[str, bool]:
    """llama.cpp's name of a pre-tokenizer, and whether it ignores merges with it."""
    parts = spec["pretokenizers"] if spec and spec["type"] == "Sequence" else [spec] if spec else []
    last = parts[-1] if parts else {"type": "none"}
    plain = last["type"] == "ByteLevel" and not last["add_prefix_space"]
    if plain and last["use_regex"] and len(parts) == 1:
        return "gpt-2", False
    if plain and last["use_regex"] and parts[:-1] == [{"type": "Digits", "individual_digits": True}]:
        return "smollm", False
    if plain and not last["use_regex"] and len(parts) == 2 and parts[0]["type"] == "Split":
        split = parts[0]
        found = _REGEXES.get(split["pattern"].get("Regex", ""))
        if found and split["behavior"] == "Isolated" and not split["invert"]:
            return found
    kinds = " + ".join(part["type"] for part in parts) or "none"
    raise ModelError(
        f"its pre-tokenizer ({kinds}) is none that llama.cpp is known to compute alike",
        where=where,
        fix="merge it, and use llama.cpp's own convert_hf_to_gguf.py on the merged folder",
    )


def _tokens(spec: dict[str, Any], size: int, where: str) -> tuple[list[str], list[gguf.TokenType]]:
    texts = {number: text for text, number in spec["model"]["vocab"].items()}
    types = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for token in spec["added_tokens"]:
        texts[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    if max(texts) >= size:
        raise ModelError(f"its tokenizer has id {max(texts)}, its embedding {size} rows", where=where)
    return (
        [texts.get(number, f"[PAD{number}]") for number in range(size)],
        [types.get(number, gguf.TokenType.UNUSED) for number in range(size)],
    )


def _adds(tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[bool, bool]:
    """Whether a plain text gets a start and an end token."""
    bare, framed = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before in ([], bos):
        for after in ([], eos):
            if framed == [*before, *bare, *after]:
                return bool(before), bool(after)
    raise ModelError("its tokenizer puts tokens around a text that llama.cpp cannot", where=where)


def _special(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> dict[str, int]:
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    ids = {name: int(token) for name, token in found.items() if token is not None}
    if template.end_of_turn != ids.get("eos"):
        ids["eot"] = template.end_of_turn
    return ids
