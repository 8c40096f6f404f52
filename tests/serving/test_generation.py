"""Generation: equal to transformers' own, independent of batches, exact about text, stops and limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from finetune.errors import ModelError
from finetune.serving.generation import generate, stream
from finetune.serving.settings import SamplingSettings

Script = Callable[[Sequence[int], int], PreTrainedModel]
Constant = Callable[[Tensor], PreTrainedModel]
VOCABULARY = 96
CONTEXT = 128
GREEDY = SamplingSettings(max_new_tokens=24)
SAMPLED = SamplingSettings(max_new_tokens=24, temperature=1.0, top_p=0.9)
PROMPTS = [[(7 * n + 5 * i) % (VOCABULARY - 3) + 3 for i in range(n)] for n in (3, 17, 9, 1, 12, 17, 30)]
STOPS = set(range(10, 18))
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_model(kind: str = "llama") -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8))
    else:
        model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # otherwise it repeats one token for ever
    return model.eval()


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return random_model()


@pytest.mark.parametrize("kind", ["llama", "mistral", "mamba"])
def test_greedy_is_what_transformers_generates(words: PreTrainedTokenizerFast, kind: str) -> None:
    model = random_model(kind)
    answers = generate(model, words, PROMPTS, stop_ids=STOPS, settings=GREEDY, seed=0)
    lengths = set()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
            eos_token_id=sorted(STOPS),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        stopped = expected[-1] in STOPS
        assert answer == (words.decode(expected[: len(expected) - stopped]), stopped, len(expected))
        lengths.add(len(expected))
    assert len(lengths) > 2  # rows left the batch at different times


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, SAMPLED.model_copy(update={"frequency_penalty": 1.5})])
@pytest.mark.parametrize("kind", ["llama", "mistral", "mamba"])
def test_batches_change_nothing(words: PreTrainedTokenizerFast, kind: str, settings: SamplingSettings) -> None:
    model = random_model(kind)
    alone = [generate(model, words, [p], stop_ids=STOPS, settings=settings, seed=5)[0] for p in PROMPTS]
    assert len({answer.tokens for answer in alone}) > 2
    for budget in (65536, 150, 1):
        together = generate(model, words, PROMPTS, stop_ids=STOPS, settings=settings, seed=5, max_batch_tokens=budget)
        assert together == alone
    backwards = generate(model, words, PROMPTS[::-1], stop_ids=STOPS, settings=settings, seed=5)
    assert backwards == alone[::-1]


def test_rows_that_leave_do_not_disturb_the_rest(llama: PreTrainedModel, words: PreTrainedTokenizerFast) -> None:
    full = generate(llama, words, PROMPTS, stop_ids=(), settings=GREEDY, seed=0)
    cut = generate(llama, words, PROMPTS, stop_ids=STOPS, settings=GREEDY, seed=0)
    assert {answer.tokens for answer in full} == {GREEDY.max_new_tokens}
    for long, short in zip(full, cut, strict=True):
        assert long.text.split()[: short.tokens - short.stopped] == short.text.split()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT on newer transformers
def test_generates_with_an_adapter(words: PreTrainedTokenizerFast) -> None:
    model = get_peft_model(random_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    before = generate(random_model(), words, PROMPTS, stop_ids=STOPS, settings=GREEDY, seed=0)
    assert generate(model, words, PROMPTS, stop_ids=STOPS, settings=GREEDY, seed=0) == before
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    after = generate(model, words, PROMPTS, stop_ids=STOPS, settings=GREEDY, seed=0)
    assert after != before
    assert after == [generate(model, words, [p], stop_ids=STOPS, settings=GREEDY, seed=0)[0] for p in PROMPTS]


def test_no_prompts_no_answers(llama: PreTrainedModel, words: PreTrainedTokenizerFast) -> None:
    assert generate(llama, words, [], stop_ids=(), settings=GREEDY, seed=0) == []


def test_the_seed_decides(llama: PreTrainedModel, words: PreTrainedTokenizerFast) -> None:
    first = generate(llama, words, PROMPTS, stop_ids=STOPS, settings=SAMPLED, seed=1)
    torch.manual_seed(99)
    assert generate(llama, words, PROMPTS, stop_ids=STOPS, settings=SAMPLED, seed=1) == first
    assert generate(llama, words, PROMPTS, stop_ids=STOPS, settings=SAMPLED, seed=2) != first
    longer = generate(
        llama, words, PROMPTS, stop_ids=STOPS, settings=SAMPLED.model_copy(update={"max_new_tokens": 40}), seed=1
    )
    assert all(long.text.startswith(short.text) for long, short in zip(longer, first, strict=True))


def test_penalties_by_hand(words: PreTrainedTokenizerFast, constant: Constant) -> None:
    model = constant(torch.tensor([2.0, 1.7, 1.0]))
    settings = SamplingSettings(frequency_penalty=0.4, presence_penalty=0.1, max_new_tokens=6)
    # 2.0 1.7 1.0 -> 0 | 1.5 1.7 1.0 -> 1 | 1.5 1.2 1.0 -> 0 | 1.1 1.2 1.0 -> 1 | 1.1 0.8 1.0 -> 0 | 0.7 0.8 1.0 -> 2
    prompts = [[0, 0], [1]]  # what the prompt holds does not count
    answers = generate(model, words, prompts, stop_ids=(), settings=settings, seed=0)
    assert [answer.text for answer in answers] == ["w0 w1 w0 w1 w0 w2"] * 2


def test_a_stop_id_ends_the_answer_and_is_not_in_it(words: PreTrainedTokenizerFast, script: Script) -> None:
    model = script([5, 6, 7, 8], VOCABULARY)
    settings = SamplingSettings(max_new_tokens=4)
    assert generate(model, words, [[1]], stop_ids={7}, settings=settings, seed=0) == [("w5 w6", True, 3)]
    assert generate(model, words, [[1]], stop_ids={5}, settings=settings, seed=0) == [("", True, 1)]
    assert generate(model, words, [[1]], stop_ids={8}, settings=settings, seed=0) == [("w5 w6 w7", True, 4)]
    assert generate(model, words, [[1]], stop_ids={9}, settings=settings, seed=0) == [("w5 w6 w7 w8", False, 4)]


def test_the_context_limits_the_answer(llama: PreTrainedModel, words: PreTrainedTokenizerFast) -> None:
    settings = SamplingSettings(max_new_tokens=10)
    prompts = [[3] * (CONTEXT - 4), [3] * 5]
    cut, whole = generate(llama, words, prompts, stop_ids=(), settings=settings, seed=0)
    assert (cut.tokens, cut.stopped, whole.tokens) == (4, False, 10)
    with pytest.raises(ModelError, match=rf"prompt 1 has {CONTEXT} tokens, the model's context has {CONTEXT}"):
        generate(llama, words, [[3], [3] * CONTEXT], stop_ids=(), settings=settings, seed=0)
    with pytest.raises(ModelError, match=f"prompt 0 has {CONTEXT + 2} tokens"):
        stream(llama, words, [3] * (CONTEXT + 2), stop_ids=(), settings=settings, seed=0)  # raised before iterating


def test_wrong_prompts_are_named(llama: PreTrainedModel, words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="prompt 1 is empty; prompt 2 has a token id outside the model's 96"):
        generate(llama, words, [[3], [], [VOCABULARY]], stop_ids=(), settings=GREEDY, seed=0)


def test_broken_logits_name_the_cause(words: PreTrainedTokenizerFast, constant: Constant) -> None:
    model = random_model()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = math.nan
    for settings in (GREEDY, SAMPLED):
        with pytest.raises(ModelError, match=r"token 1 of an answer; its weight model\.layers\.1\.mlp\.up_proj"):
            generate(model, words, PROMPTS, stop_ids=(), settings=settings, seed=0)
    overflow = constant(torch.tensor([1e39, 0.0], dtype=torch.float64))  # finite, but not in float32
    with pytest.raises(ModelError, match="too large for this dtype"):
        generate(overflow, words, [[1]], stop_ids=(), settings=GREEDY, seed=0)


def test_dropout_is_off_and_modes_are_restored(words: PreTrainedTokenizerFast) -> None:
    model = random_model()
    expected = generate(model, words, PROMPTS, stop_ids=(), settings=GREEDY, seed=0)
    model.config.attention_dropout = 0.5
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model.train()
    model.get_submodule("model.layers.0").eval()
    modes = [module.training for module in model.modules()]
    assert generate(model, words, PROMPTS, stop_ids=(), settings=GREEDY, seed=0) == expected
    assert [module.training for module in model.modules()] == modes

    pieces = stream(model, words, PROMPTS[0], stop_ids=(), settings=GREEDY, seed=0)
    assert [module.training for module in model.modules()] == modes  # nothing happens before the first piece
    assert expected[0].text.startswith(next(pieces))
    assert not model.training
    assert torch.is_grad_enabled()
    assert isinstance(pieces, Generator)
    pieces.close()
    assert [module.training for module in model.modules()] == modes


def test_training_goes_on_after_generation(words: PreTrainedTokenizerFast) -> None:
    model = random_model().train()
    seen = set()
    with model.register_forward_hook(lambda *call: seen.add((torch.is_grad_enabled(), call[-1].logits.shape[1]))):
        generate(model, words, PROMPTS[:2], stop_ids=(), settings=GREEDY, seed=0)
    assert seen == {(False, 1)}  # no graph, and only the last position goes through the head
    ids = torch.tensor([PROMPTS[1]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
