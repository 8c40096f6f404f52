"""Tokenizers for llama.cpp: named where they are known, refused where a name would be a guess."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from finetune.data.probing import load_template
from finetune.data.template import ChatTemplate
from finetune.errors import ModelError
from finetune.export.vocabulary import _REGEXES, vocabulary_of

Change = Callable[[Tokenizer], object]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
LLAMA, QWEN = _REGEXES


def changed(tokenizer: PreTrainedTokenizerFast, change: Change) -> ChatTemplate:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    change(backend)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        chat_template=tokenizer.chat_template,
    )
    return load_template(made, "test")


def put(name: str, value: object) -> Change:
    return lambda backend: setattr(backend, name, value)


def split(regex: str, behaviour: str = "isolated") -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), behaviour), BYTES])


def ignoring_merges(backend: Tokenizer) -> None:
    backend.pre_tokenizer = split(LLAMA)
    backend.model.ignore_merges = True


@pytest.mark.parametrize(
    ("change", "pre"),
    [
        (put("pre_tokenizer", WORDS), "gpt-2"),
        (put("pre_tokenizer", pre_tokenizers.Sequence([WORDS])), "gpt-2"),
        (put("pre_tokenizer", pre_tokenizers.Sequence([DIGITS, WORDS])), "smollm"),
        (put("pre_tokenizer", split(QWEN)), "qwen2"),
        (ignoring_merges, "llama-bpe"),
    ],
    ids=["gpt-2", "gpt-2 in a list", "smollm", "qwen2", "llama-bpe"],
)
def test_known_ways_of_cutting_words_have_their_names(
    change: Change, pre: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert vocabulary_of(changed(tokenizer, change), 384, "test").pre == pre


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("pre_tokenizer", split(LLAMA)), "unlike this tokenizer"),
        (put("pre_tokenizer", split(QWEN.replace("N}", "N}{1,2}"))), "none that llama.cpp is known"),
        (put("pre_tokenizer", split(QWEN, "removed")), "none that llama.cpp is known"),
        (put("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Digits(), WORDS])), "Digits \\+ ByteLevel"),
        (put("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)), "none that llama.cpp is known"),
        (put("pre_tokenizer", pre_tokenizers.Whitespace()), "Whitespace"),
        (put("normalizer", normalizers.Lowercase()), "normalizer Lowercase"),
        (lambda backend: backend.add_tokens([AddedToken("<mask>", lstrip=True)]), "'<mask>' takes white space"),
        (lambda backend: setattr(backend.model, "byte_fallback", True), "falls back to bytes"),
        (
            put("post_processor", processors.TemplateProcessing("<|end|> $A", None, [("<|end|>", 2)])),
            "puts tokens around a text",
        ),
    ],
    ids=["merges", "regex", "removed", "digits", "prefix", "words", "normalizer", "lstrip", "fallback", "frame"],
)
def test_anything_else_is_refused(change: Change, reason: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match=reason):
        vocabulary_of(changed(tokenizer, change), 384, "test")


def test_start_tokens_types_and_padding_of_the_embedding(tokenizer: PreTrainedTokenizerFast) -> None:
    def change(backend: Tokenizer) -> None:
        backend.normalizer = normalizers.NFC()
        backend.post_processor = processors.TemplateProcessing("<|begin|> $A", None, [("<|begin|>", 1)])
        backend.add_tokens(["wholeword"])

    size = len(tokenizer)
    words = vocabulary_of(changed(tokenizer, change), size + 3, "test")
    assert (words.adds_bos, words.adds_eos) == (True, False)
    assert words.tokens[size:] == ("wholeword", f"[PAD{size + 1}]", f"[PAD{size + 2}]")
    unused = gguf.TokenType.UNUSED
    assert words.types[size:] == (gguf.TokenType.USER_DEFINED, unused, unused)
    assert "NFC" in words.note
    assert all(len(merge.split(" ")) == 2 for merge in words.merges)
    with pytest.raises(ModelError, match="its embedding 100 rows"):
        vocabulary_of(changed(tokenizer, change), 100, "test")
