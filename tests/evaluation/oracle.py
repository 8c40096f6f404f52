"""Perplexity by hand: one token at a time in float64, and what every measure of it has to satisfy."""

from __future__ import annotations

import copy
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune.data.encoding import Encoded
from finetune.evaluation.blocks import perplexity_block
from finetune.evaluation.perplexity import score_windowed
from finetune.evaluation.report import PerplexityScore
from finetune.evaluation.statistics import Scores, perplexity_interval
from finetune.training.scoring import RowScore

VOCABULARY, PAD, START, END = 60, 0, 1, 2
FIRST_WORD = 40  # ids from here on begin a word
Measure = Callable[[PreTrainedModel, Sequence[Encoded], int, int, int], PerplexityScore]
"""(model, rows, token budget, window, stride) -> perplexity of the trained tokens."""


class Case(NamedTuple):
    rows: list[Encoded]
    window: int
    stride: int
    budget: int
    isolate: bool


def llama(vocabulary: int = VOCABULARY, seed: int = 0) -> PreTrainedModel:
    """One layer, 16 wide, with weights so large that every token of the context matters."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(
        vocab_size=vocabulary, num_hidden_layers=1, max_position_embeddings=512, tie_word_embeddings=False, **shape
    )
    return _loud(LlamaForCausalLM(config))


def gpt2(seed: int = 0) -> PreTrainedModel:
    """A model that knows absolute positions: it notices where a text begins."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=512, tie_word_embeddings=False,
        bos_token_id=START, eos_token_id=END,
    )  # fmt: skip
    return _loud(GPT2LMHeadModel(config))


def _loud(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)  # 0.02 at initialisation
    model.requires_grad_(False)
    model.eval()
    return model


def with_logits(logits: Sequence[float]) -> PreTrainedModel:
    """A model that gives these logits at every position, whatever it reads."""
    model = llama(len(logits))
    head = nn.Linear(16, len(logits)).requires_grad_(False)
    head.weight.zero_()
    head.bias.copy_(torch.tensor(logits, dtype=torch.float64))
    model.lm_head = head
    return model


def random_row(pick: random.Random, longest: int) -> Encoded:
    """Any length up to `longest`, short ones often; trained is an answer at the end, or tokens at random."""
    length = max(1, round(math.exp(pick.uniform(0, math.log(longest)))))
    start = [START] if pick.random() < 0.5 else []
    ids = [*start, *pick.choices(range(3, VOCABULARY), k=length)][:length]
    if pick.random() < 0.5:
        prompt = pick.randrange(length)
        mask = [0] * prompt + [1] * (length - prompt)
    else:
        share = pick.uniform(0.05, 0.6)
        mask = [int(pick.random() < share) for _ in ids]
    return Encoded(ids, mask, "", 0)


def random_case(pick: random.Random, window: int, stride: int, longest: int = 300) -> Case:
    rows = [random_row(pick, longest) for _ in range(pick.randint(1, 3))]
    alone = pick.random() < 0.2  # slow: one forward pass per window
    budget = pick.choice([1, pick.randint(1, 64)]) if alone else pick.choice([64, 100, 317, 1000, 10_000])
    return Case(rows, window, stride, budget, isolate=pick.random() < 0.9)


def context_start(token: int, length: int, window: int, stride: int) -> int:
    """Where the context of a token begins, from the definition of the windows and not from their list."""
    if length <= window or token < window:
        return 0
    moves = math.ceil((token + 1 - window) / stride)
    return min(window + moves * stride, length) - window


@torch.no_grad()
def oracle(model: PreTrainedModel, cases: Sequence[Case], most: int = 4096) -> list[list[RowScore]]:
    """One forward pass per token, in float64: the context and nothing else goes in, its last logits come out.

    Contexts of equal length are stacked, so there is no padding, no mask, no packing and no position but 0, 1, ...
    """
    exact = in_float64(model)
    jobs: dict[int, list[tuple[int, int, list[int], int]]] = defaultdict(list)
    for c, case in enumerate(cases):
        for r, row in enumerate(case.rows):
            for token in range(1, len(row.ids)):
                if row.loss_mask[token]:
                    start = context_start(token, len(row.ids), case.window, case.stride)
                    jobs[token - start].append((c, r, row.ids[start:token], row.ids[token]))
    nll: dict[tuple[int, int], list[float]] = defaultdict(list)
    for length, tokens in jobs.items():
        share = max(1, most // length)
        for i in range(0, len(tokens), share):
            part = tokens[i : i + share]
            logits = exact(torch.tensor([context for *_, context, _ in part]), use_cache=False, logits_to_keep=1).logits
            costs = -logits[:, -1].log_softmax(-1)
            for (c, r, _, target), cost in zip(part, costs, strict=True):
                nll[c, r].append(cost[target].item())
    return [
        [RowScore(math.fsum(nll[c, r]), len(nll[c, r])) for r in range(len(case.rows))] for c, case in enumerate(cases)
    ]


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float64; transformers' Llama would go back to float32 in its norms."""
    exact: PreTrainedModel = copy.deepcopy(model).double()
    for name, module in list(exact.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(module.weight.shape, module.variance_epsilon, dtype=torch.float64)
            norm.weight.data = module.weight.data
            exact.set_submodule(name, norm)
    exact.eval()
    return exact


def error(got: float, wanted: float) -> float:
    return abs(got - wanted) / abs(wanted) if wanted else abs(got)


# What a right measure does. Each raises AssertionError for a wrong one.


def right(model: PreTrainedModel, rows: Sequence[Encoded], budget: int, window: int, stride: int) -> PerplexityScore:
    """The package's own."""
    return score_of(score_windowed(model, rows, budget, window, stride, isolate=True), rows)


def score_of(scores: Sequence[RowScore], rows: Sequence[Encoded]) -> PerplexityScore:
    sizes = tuple(row.trained_bytes for row in rows)
    each = Scores(tuple(s.nll for s in scores), tuple(s.tokens for s in scores), sizes)
    return perplexity_block(each, each).base


WINDOW, STRIDE = 32, 10


def probe(longest: int = 100) -> list[Encoded]:
    """Rows as training sees them: a start token, a prompt, an answer of any length and an end token."""
    pick = random.Random(7)
    rows = []
    for number in range(16):
        answer = pick.choices(range(3, VOCABULARY), k=1 + (number * 37) % (longest // 2))
        prompt = pick.choices(range(3, VOCABULARY), k=1 + (number * 23) % (longest // 3))
        mask = [0] * (1 + len(prompt)) + [1] * (len(answer) + 1)
        rows.append(Encoded([START, *prompt, *answer, END], mask, f"probe:{number + 1}", 2 * len(answer)))
    return rows


def equals_the_oracle(measure: Measure) -> None:
    """Sum of NLL to 1e-6, the count of tokens exactly, and perplexity is what follows from them; in windows."""
    _equals_the_oracle(measure, llama(), WINDOW, STRIDE)


def restarts_positions(measure: Measure) -> None:
    """The same for a model with absolute positions, on rows that fit."""
    _equals_the_oracle(measure, gpt2(), 128, 64)


def _equals_the_oracle(measure: Measure, model: PreTrainedModel, window: int, stride: int) -> None:
    rows = probe()
    wanted = oracle(model, [Case(rows, window, stride, 1, True)])[0]
    nll, tokens = math.fsum(s.nll for s in wanted), sum(s.tokens for s in wanted)
    got = measure(model, rows, 300, window, stride)
    assert got.tokens == tokens
    assert error(got.nll, nll) <= 1e-6
    assert error(got.value, math.exp(nll / tokens)) <= 5e-6


def is_invariant(measure: Measure) -> None:
    """Neither the budget of a forward pass nor the order of the rows moves perplexity by 1e-5."""
    model, rows, pick = llama(), probe(), random.Random(1)
    first = measure(model, rows, 1, WINDOW, STRIDE)
    for budget in (40, 150, 1000, 100_000):
        pick.shuffle(rows)
        again = measure(model, rows, budget, WINDOW, STRIDE)
        assert error(again.value, first.value) <= 1e-5
        assert again.tokens == first.tokens


def is_v_for_uniform_logits(measure: Measure) -> None:
    """A model that knows nothing has the size of its vocabulary as perplexity."""
    for vocabulary in (VOCABULARY, 997):
        assert abs(measure(with_logits([0.0] * vocabulary), probe(), 300, WINDOW, STRIDE).value - vocabulary) <= 1e-4


def counts_bits_per_byte(measure: Measure) -> None:
    """log2(V) bits for every trained token, shared out over the bytes of the answers."""
    rows = probe()
    tokens, size = sum(map(sum, (row.loss_mask for row in rows))), sum(row.trained_bytes for row in rows)
    got = measure(with_logits([0.0] * VOCABULARY), rows, 300, WINDOW, STRIDE)
    assert error(got.bits_per_byte, tokens * math.log2(VOCABULARY) / size) <= 1e-6


def clusters_by_example(measure: Measure) -> None:
    """The interval is that of a ratio of sums over examples; tests/evaluation/test_statistics.py proves its formula."""
    rows = probe()
    wanted = oracle(llama(), [Case(rows, WINDOW, STRIDE, 1, True)])[0]
    _, low, high = perplexity_interval([s.nll for s in wanted], [s.tokens for s in wanted])
    got = measure(llama(), rows, 300, WINDOW, STRIDE)
    assert error(got.low, low) <= 1e-5
    assert error(got.high, high) <= 1e-5


CHECKS = (
    equals_the_oracle, restarts_positions, is_invariant, is_v_for_uniform_logits, counts_bits_per_byte,
    clusters_by_example,
)  # fmt: skip
