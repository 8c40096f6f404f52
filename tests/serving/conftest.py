"""Tokenizers trained in-process, one for each way that ids become text, and models that say what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

VOCABULARY = 96


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """One word per id, so that two texts are equal exactly if their ids are."""
    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def bytelevel() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the cat said hello 😀 naïve 你好"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture(scope="session")
def fallback() -> PreTrainedTokenizerFast:
    """Byte fallback as SentencePiece models have it: a run of byte tokens is decoded as one."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁cat"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Scripted(PreTrainedModel):
    """Logits that depend on nothing but the position: row i of a table after i tokens."""

    config_class = LlamaConfig

    def __init__(self, table: Tensor) -> None:
        super().__init__(LlamaConfig(vocab_size=table.shape[1], max_position_embeddings=table.shape[0]))
        self.table = nn.Parameter(table)
        self.embedding = nn.Embedding(table.shape[1], 1)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, position_ids: Tensor, past_key_values: DynamicCache) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.table[position_ids])


@pytest.fixture(scope="session")
def script() -> Callable[[Sequence[int], int], Scripted]:
    """A model that answers any prompt of one token with these ids, from a vocabulary of that size."""

    def build(ids: Sequence[int], vocabulary: int) -> Scripted:
        table = torch.zeros(len(ids) + 64, vocabulary)
        table[range(len(ids)), list(ids)] = 9.0
        return Scripted(table)

    return build


@pytest.fixture(scope="session")
def constant() -> Callable[[Tensor], Scripted]:
    """A model whose logits are always the same."""
    return lambda logits: Scripted(logits.repeat(256, 1))
