"""Small real things to test with, made on the spot: a tokenizer, a random Llama, a folder of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.data.examples import Example
from finetune.data.messages import Message
from finetune.model.base import Base, load_base
from finetune.recipe import BaseSection

MakeBase = Callable[[], Base]

TEXT = (
    "Two large pepperoni pizzas, please. One small veggie pizza and three colas for pickup at noon. "
    "What does a medium margherita cost? Your order is one large pizza with extra cheese and no onions. "
    "How much is it? It is 5 dollars. Hello there! I can help with that. Anything else?"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Also where there is a GPU: equalities are bit for bit, and processes that tests start inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A token cache of the tests' own; processes that tests start inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        additional_special_tokens=special[3:],
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A saved random Llama of 90 k parameters with its tokenizer: what `base.model: FOLDER` names."""
    folder = tmp_path_factory.mktemp("models") / "random-llama"
    save_model(folder, tokenizer, seed=0)
    return folder


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int, **shape: int) -> None:
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **shape,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        **sizes,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # larger than at initialisation, so that attention is not uniform
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
        model.lm_head.weight.mul_(6)  # final norms are 1: a smaller head could not tell tokens apart
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def base(model_folder: Path) -> Base:
    """The random Llama in NF4, computing in float32 so that equalities can be tight."""
    section = BaseSection(model=str(model_folder), dtype="float32")
    return load_base(section, torch.device("cpu"))


@pytest.fixture
def plain_base(model_folder: Path) -> Base:
    """The same without quantisation."""
    section = BaseSection(model=str(model_folder), quantization="none", dtype="float32")
    return load_base(section, torch.device("cpu"))


@pytest.fixture(scope="session")
def examples() -> tuple[Example, ...]:
    """Ragged on purpose: prompts of 3 to 30 words, completions of 1 to 12, one with two answers."""
    words = TEXT.replace(".", "").split()
    rows = []
    for n in range(24):
        prompt = " ".join(words[n : n + 3 + (n * 7) % 28])
        answer = " ".join(words[n + 1 : n + 2 + (n * 5) % 12])
        rows.append(Example((Message("user", prompt), Message("assistant", answer)), f"examples:{n + 1}"))
    two = (*rows[0].messages, Message("user", "Anything else?"), Message("assistant", "No, one cola."))
    return (*rows, Example((Message("system", "Be short."), *two), "examples:25"))


@pytest.fixture
def jsonl(tmp_path: Path) -> Iterator[Path]:
    """A small instruction file that a run can use."""
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Give me {n} pizzas", "output": f"You get {n} pizzas."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture
def make_base(model_folder: Path) -> MakeBase:
    """The random Llama in NF4, loaded anew at each call: an adapter changes the model it is put on."""
    section = BaseSection(model=str(model_folder), dtype="float32")
    return lambda: load_base(section, torch.device("cpu"))
