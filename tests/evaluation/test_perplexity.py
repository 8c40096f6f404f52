"""Perplexity: equal to an oracle, indifferent to how it is computed, right where the answer is known beforehand."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.data.encoding import Encoded, encode
from finetune.data.examples import Example
from finetune.data.messages import TEXT as PLAIN
from finetune.data.messages import Message
from finetune.evaluation.perplexity import score_model, score_windowed
from finetune.evaluation.windows import windows
from finetune.model import attention
from finetune.model.base import Base
from finetune.model.lora import attach
from finetune.recipe import AdapterSection
from finetune.training.scoring import RowScore, score_rows
from tests.conftest import TEXT
from tests.evaluation.oracle import (
    CHECKS,
    Case,
    Measure,
    context_start,
    error,
    in_float64,
    llama,
    oracle,
    random_case,
    random_row,
    right,
    score_of,
    with_logits,
)
from tests.evaluation.wrong_perplexity import WRONG, padded
from tests.test_invariants import stir
from tests.training.helpers import encoded

LEGAL = [(window, stride) for window in range(8, 65) for stride in range(1, window)]
ROOT = Path(__file__).parents[2]


def worst_error(cases: list[Case]) -> float:
    """The largest relative error of a case's NLL; counts of tokens have to be equal."""
    model, worst = llama(), 0.0
    for case, wanted in zip(cases, oracle(model, cases), strict=True):
        got = score_windowed(model, case.rows, case.budget, case.window, case.stride, isolate=case.isolate)
        assert [s.tokens for s in got] == [s.tokens for s in wanted]
        worst = max(worst, error(math.fsum(s.nll for s in got), math.fsum(s.nll for s in wanted)))
    return worst


def test_a_thousand_random_cases_equal_one_forward_pass_per_token() -> None:
    pick = random.Random(0)
    worst = worst_error([random_case(pick, *pick.choice(LEGAL)) for _ in range(1000)])
    assert 0 < worst <= 1e-6  # of fp32; exactly zero would mean that nothing was compared


@pytest.mark.slow
def test_every_legal_window_and_stride_equals_one_forward_pass_per_token() -> None:
    pick = random.Random(1)
    for start in range(0, len(LEGAL), 200):
        cases = [random_case(pick, *pair) for pair in LEGAL[start : start + 200] for _ in range(3)]
        assert 0 < worst_error(cases) <= 1e-6


@pytest.mark.parametrize("window", range(2, 14))
def test_windows_predict_every_token_once_from_as_much_context_as_promised(window: int) -> None:
    for stride in range(1, window):
        for length in range(1, 45):
            row = Encoded(list(range(length)), [1] * length, "here", 3 * length)
            cut = windows(row, window, stride)
            predicted = []
            for piece in cut:
                assert len(piece.ids) <= window
                trained = [i for i, m in zip(piece.ids, piece.loss_mask, strict=True) if m and i > 0]
                predicted += trained
                for token in trained:
                    assert piece.ids.index(token) == token - context_start(token, length, window, stride)
                    assert piece.ids.index(token) >= min(token, window - stride)
            assert predicted == list(range(1, length))
            assert sum(piece.trained_bytes for piece in cut) == 3 * length


def test_windows_train_nothing_that_the_row_does_not() -> None:
    pick = random.Random(2)
    for _ in range(500):
        row = random_row(pick, 200)
        row = row._replace(ids=list(range(len(row.ids))))  # a token is now its place
        for piece in (cut := windows(row, 16, pick.randint(1, 15))):
            assert all(row.loss_mask[i] for i, m in zip(piece.ids, piece.loss_mask, strict=True) if m)
        assert len(cut) == 1 or all(any(piece.loss_mask[1:]) for piece in cut)


def test_a_row_that_fits_is_left_alone() -> None:
    row = Encoded([5, 6, 7], [0, 0, 0], "here", 0)
    assert windows(row, 3, 1) == [row]
    assert windows(row, 100, 99) == [row]


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 0), (8, -1), (1, 1), (8, 9)])
def test_a_stride_that_leaves_a_token_without_context_is_refused(window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride < window"):
        windows(Encoded(list(range(20)), [1] * 20, "", 0), window, stride)


def test_budget_order_packing_and_padding_do_not_move_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    pick, model = random.Random(3), llama()
    rows = [row for _ in range(40) if sum((row := random_row(pick, 200)).loss_mask[1:])]
    first = right(model, rows, 1, 64, 16)
    worst = 0.0
    budgets = (1, 2, 3, 7, 16, 64, 200, 1000, 100_000)
    for budget, align, isolate in ((1, 64, False), *((b, a, True) for b in budgets for a in (64, 1))):
        monkeypatch.setattr(attention, "ALIGN", align)
        pick.shuffle(rows)
        again = score_of(score_windowed(model, rows, budget, 64, 16, isolate=isolate), rows)
        assert again.tokens == first.tokens
        worst = max(worst, error(again.value, first.value))
    assert worst <= 1e-5


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("measure", [right, padded])
def test_what_every_right_measure_satisfies(measure: Measure, check: Callable[[Measure], None]) -> None:
    """Padded batches through the whole model, done with care, are right, too: the checks are not made for ours."""
    check(measure)


def caught_by(measure: Measure) -> set[str]:
    found = set()
    for check in CHECKS:
        try:
            check(measure)
        except AssertionError:
            found.add(check.__name__)
    return found


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_every_known_mistake_is_caught(wrong: Measure) -> None:
    assert caught_by(wrong) >= WRONG[wrong] > set()


@pytest.mark.parametrize("size", [120, 200, 400, 1000])
def test_a_model_that_is_uniform_over_bytes_costs_eight_bits_per_byte_with_every_tokenizer(size: int) -> None:
    """P(token) = 256 ** -bytes; the alphabet is that of the text, so the rest of the mass is one special token's."""
    lines = (ROOT / "data" / "general" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    texts = [f"{line} Café, 漢字, 🍕" for line in lines]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=["<|rest|>"], show_progress=False)
    )
    tokens = [str(bpe.id_to_token(i)) for i in range(bpe.get_vocab_size())]
    assert len(tokens) == size
    logits = [-len(token) * math.log(256) for token in tokens]  # one character of a byte-level token is one byte
    logits[0] = math.log(1 - math.fsum(math.exp(x) for x in logits[1:]))
    rows = []
    for text in texts[:40]:
        ids = bpe.encode(text).ids
        rows.append(Encoded([0, *ids], [0] + [1] * len(ids), "", len(text.encode())))
    score = right(with_logits(logits), rows, 2000, 64, 32)
    assert score.bits_per_byte == pytest.approx(8, abs=1e-5)
    assert score.value != pytest.approx(256, rel=0.1)  # perplexity per token is not the same for all of them


def rolling(tokens: list[int], prefix: int, longest: int, context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Rolling log-likelihood as lm-eval defines it: what is predicted, and all that may be seen of it before.

    At most `longest` tokens go into the model; the first window starts with the prefix token alone,
    each later one keeps at least `context` tokens of what came before.
    """
    text, done = [prefix, *tokens], 0
    while done < len(tokens):
        new = min(len(tokens) - done, longest if done == 0 else longest - context + 1)
        done += new
        seen = text[max(0, done - longest) : done + 1 - new]
        yield seen, text[done + 1 - new : done + 1]


def documents(tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, list[int]]]:
    pick = random.Random(4)
    words = [*TEXT.split(), "Café", "漢字", "🍕\n", "\n\n", "  naïve\t"]
    texts = [" ".join(pick.choices(words, k=1 + (n * 17) % 120)) for n in range(50)]
    return [(text, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


@torch.no_grad()
def loglikelihood(model: PreTrainedModel, seen: list[int], predicted: list[int]) -> float:
    logits = model(torch.tensor([[*seen, *predicted][:-1]]), use_cache=False).logits[0].log_softmax(-1)
    places = range(len(seen) - 1, len(seen) + len(predicted) - 1)
    return math.fsum(logits[place, token].item() for place, token in zip(places, predicted, strict=True))


@pytest.mark.parametrize("context", [1, 8, 24])
def test_bits_per_byte_and_byte_and_word_perplexity_are_those_of_lm_eval(
    tokenizer: PreTrainedTokenizerFast, context: int
) -> None:
    """From its definitions: sums of log-likelihood over rolling windows / bytes or words of all documents."""
    longest, prefix = 32, tokenizer.bos_token_id
    model = llama(len(tokenizer))
    exact, pairs = in_float64(model), documents(tokenizer)
    total = math.fsum(loglikelihood(exact, *w) for _, ids in pairs for w in rolling(ids, prefix, longest, context))
    size = sum(len(text.encode("utf-8")) for text, _ in pairs)
    words = sum(len(re.split(r"\s+", text)) for text, _ in pairs)

    rows = [Encoded([prefix, *ids], [0] + [1] * len(ids), "", len(text.encode())) for text, ids in pairs]
    got = right(model, rows, 500, longest + 1, longest + 1 - context)  # the last token of a window is only predicted
    assert got.tokens == sum(len(ids) for _, ids in pairs)
    assert got.bits_per_byte == pytest.approx(-total / size / math.log(2), rel=1e-5)
    assert 2**got.bits_per_byte == pytest.approx(math.exp(-total / size), rel=1e-5)
    assert math.exp(got.nll / words) == pytest.approx(math.exp(-total / words), rel=1e-5)


@pytest.mark.parametrize("context", [1, 8, 24])
def test_windows_are_cut_where_lm_eval_itself_cuts_them(tokenizer: PreTrainedTokenizerFast, context: int) -> None:
    """With lm-eval's own windows, metrics and counts, and for its one token of context its own model class."""
    utils = pytest.importorskip("lm_eval.utils")
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.api.task import PerplexityTask
    from lm_eval.models.huggingface import HFLM

    model, pairs, rows, likelihoods = llama(len(tokenizer)), documents(tokenizer), [], []
    exact, prefix = in_float64(model), tokenizer.bos_token_id
    for text, ids in pairs:
        theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, prefix, 32, context))
        cut = [(list(seen), list(predicted)) for seen, predicted in theirs]
        assert cut == list(rolling(ids, prefix, 32, context))
        rows.append(Encoded([prefix, *ids], [0] + [1] * len(ids), "", len(text.encode())))
        ours = windows(rows[-1], 33, 33 - context)
        assert [(piece.ids, sum(piece.loss_mask[1:])) for piece in ours] == [([*s, *p], len(p)) for s, p in cut]
        likelihoods.append(math.fsum(loglikelihood(exact, *window) for window in cut))
    if context == 1:
        scorer = HFLM(model, tokenizer=copy.deepcopy(tokenizer), max_length=32, batch_size=8)
        requests = [Instance("loglikelihood_rolling", {}, (text,), n) for n, (text, _) in enumerate(pairs)]
        likelihoods = scorer.loglikelihood_rolling(requests, disable_tqdm=True)
    words = [PerplexityTask.count_words(text) for text, _ in pairs]
    sizes = [PerplexityTask.count_bytes(text) for text, _ in pairs]
    got = right(model, rows, 500, 33, 33 - context)
    assert got.bits_per_byte == pytest.approx(bits_per_byte([*zip(likelihoods, sizes, strict=True)]), rel=1e-5)
    per_byte = weighted_perplexity([*zip(likelihoods, sizes, strict=True)])
    assert 2**got.bits_per_byte == pytest.approx(per_byte, rel=1e-5)
    per_word = weighted_perplexity([*zip(likelihoods, words, strict=True)])
    assert math.exp(got.nll / sum(words)) == pytest.approx(per_word, rel=1e-5)


def long_rows(base: Base, examples: tuple[Example, ...]) -> list[Encoded]:
    """Short conversations around a plain text that is twice as long as the model."""
    text = encode(Example((Message(PLAIN, TEXT * 7),), "long"), base.template)
    assert base.max_positions is not None
    assert 2 * base.max_positions < len(text.ids)
    short = encoded(base, examples)
    return [*short[:9], text, *short[9:]]


def test_a_model_scores_long_rows_in_windows_of_the_models_length_and_keeps_them_as_one_example(
    base: Base, examples: tuple[Example, ...]
) -> None:
    rows = long_rows(base, examples)
    adapted = attach(base, AdapterSection(r=4, alpha=8.0), seed=0)
    stir(adapted)
    after = score_model(base, rows, 512)
    with adapted.disable_adapter():
        before = score_model(base, rows, 512)
    assert before.tokens == after.tokens == tuple(sum(row.loss_mask[1:]) for row in rows)
    assert before.bytes == tuple(row.trained_bytes for row in rows)
    assert before.nll != after.nll
    for scores, disabled in ((before, True), (after, False)):
        with adapted.disable_adapter() if disabled else nullcontext():
            wanted = by_windows(base.model.eval(), rows[9], 256, 128)
        assert scores.nll[9] == pytest.approx(wanted, rel=1e-5)


@torch.no_grad()
def by_windows(model: PreTrainedModel, row: Encoded, window: int, stride: int) -> float:
    """Plain forward passes, each token from the context that its definition gives it."""
    outputs: dict[int, torch.Tensor] = {}
    total = 0.0
    for token in range(1, len(row.ids)):
        if row.loss_mask[token]:
            start = context_start(token, len(row.ids), window, stride)
            if start not in outputs:
                ids = torch.tensor([row.ids[start : start + window]])
                outputs[start] = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
            total -= outputs[start][token - 1 - start, row.ids[token]].item()
    return total


def test_rows_that_fit_score_bit_for_bit_as_without_windows(base: Base, examples: tuple[Example, ...]) -> None:
    rows = encoded(base, examples)
    plain = score_rows(base.model, rows, 200, isolate=True)
    assert score_windowed(base.model, rows, 200, 256, None, isolate=True) == plain
    assert score_windowed(base.model, rows, 200, None, None, isolate=True) == plain


def test_more_context_never_comes_from_a_longer_window_than_the_model_has(
    base: Base, examples: tuple[Example, ...]
) -> None:
    with pytest.raises(ValueError, match="257 tokens is more than the 256 positions"):
        score_model(base, encoded(base, examples), 512, window=257)


def test_a_row_in_which_nothing_is_predicted_counts_nothing() -> None:
    rows = [Encoded([5] * 30, [1] + [0] * 29, "", 0), Encoded([5], [1], "", 0)]
    assert score_windowed(llama(), rows, 100, 8, 4, isolate=True) == [RowScore(0.0, 0)] * 2
