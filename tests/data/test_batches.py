"""Packing, padding and order: every example once, nothing across borders, and an order that seed and epoch decide."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.batches import (
    IGNORED,
    PASS_COST,
    TrainingRows,
    like_lengths,
    pack,
    share_out,
    trained_tokens,
)
from finetune.data.encoding import Encoded


def rows(*sizes: int, seed: int = 0) -> list[Encoded]:
    """Rows of these sizes whose ids are all different, so that a token says where it came from."""
    pick, made, next_id = random.Random(seed), [], 0
    for number, size in enumerate(sizes):
        mask = [pick.randint(0, 1) for _ in range(size)]
        made.append(Encoded(list(range(next_id, next_id + size)), mask, f"rows:{number}", size))
        next_id += size
    return made


ENCODED = st.lists(st.integers(1, 40), max_size=30).map(lambda sizes: rows(*sizes))


@settings(max_examples=100, deadline=None)
@given(encoded=ENCODED, budget=st.integers(1, 64))
def test_every_example_stands_in_one_place_unchanged(encoded: list[Encoded], budget: int) -> None:
    batches = pack(encoded, budget)
    assert sorted(index for batch in batches for index in batch.rows) == list(range(len(encoded)))
    for batch in batches:
        tokens = batch.input_ids.shape[1]
        assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (1, tokens)
        assert tokens <= budget or len(batch.rows) == 1
        assert [a for a, _ in batch.segments] == [0, *(b for _, b in batch.segments)][: len(batch.segments)]
        assert batch.segments[-1][1] == tokens
        for index, (start, end) in zip(batch.rows, batch.segments, strict=True):
            assert batch.input_ids[0, start:end].tolist() == encoded[index].ids
            assert batch.position_ids[0, start:end].tolist() == list(range(end - start))


@settings(max_examples=100, deadline=None)
@given(encoded=ENCODED, budget=st.integers(1, 64))
def test_labels_are_the_next_trained_tokens_of_the_same_example(encoded: list[Encoded], budget: int) -> None:
    batches = pack(encoded, budget)
    for batch in batches:
        for index, (start, end) in zip(batch.rows, batch.segments, strict=True):
            row = encoded[index]
            following = [t if m else IGNORED for t, m in zip(row.ids[1:], row.loss_mask[1:], strict=True)]
            assert batch.labels[0, start:end].tolist() == [*following, IGNORED]
    assert [b.trained for b in batches] == [int((b.labels != IGNORED).sum()) for b in batches]
    assert sum(b.trained for b in batches) == trained_tokens(encoded)


@settings(max_examples=100, deadline=None)
@given(encoded=ENCODED, budget=st.integers(1, 400))
def test_padded_every_example_begins_one_row_and_the_padding_trains_nothing(
    encoded: list[Encoded], budget: int
) -> None:
    batches = pack(encoded, budget, isolate=False)
    assert sorted(index for batch in batches for index in batch.rows) == list(range(len(encoded)))
    alone = {batch.rows[0]: batch for batch in pack(encoded, 1)}
    for batch in batches:
        height, width = batch.input_ids.shape
        assert not batch.packed
        assert batch.tokens == height * width
        assert batch.tokens <= budget or height == 1
        assert batch.position_ids.tolist() == [list(range(width))] * height
        assert width == max(end - start for start, end in batch.segments)
        for number, (index, (start, end)) in enumerate(zip(batch.rows, batch.segments, strict=True)):
            assert start == number * width
            assert batch.input_ids.flatten()[start:end].tolist() == encoded[index].ids
            assert torch.equal(batch.labels.flatten()[start:end], alone[index].labels[0])
            assert set(batch.labels[number, end - start :].tolist()) <= {IGNORED}
    assert sum(batch.trained for batch in batches) == trained_tokens(encoded)


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 3000), max_size=60), budget=st.integers(1, 60_000))
def test_padding_is_bounded_whatever_the_lengths(sizes: list[int], budget: int) -> None:
    groups = like_lengths(sizes, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    for group in groups:
        lacking = [sizes[group[0]] - sizes[index] for index in group]
        assert len(group) == 1 or len(group) * sizes[group[0]] <= budget
        assert sum(lacking) <= PASS_COST * (1 + math.log(len(group)))


def test_like_lengths_go_together_and_outliers_alone() -> None:
    assert like_lengths([50, 2000, 51, 49, 1990], 100_000) == [[1, 4], [2, 0, 3]]
    assert like_lengths([50, 52, 51, 49], 110) == [[1, 2], [0, 3]]  # the budget: two rows at a time
    sizes = [random.Random(seed).randint(20, 400) for seed in range(64)]
    padded = sum(len(group) * sizes[group[0]] for group in like_lengths(sizes, 4096))
    assert padded < 1.1 * sum(sizes)


@given(sizes=st.lists(st.integers(1, 500), min_size=1, max_size=7), budget=st.integers(1, 2000))
def test_no_other_cut_of_the_sorted_lengths_costs_less(sizes: list[int], budget: int) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(len(group) * max(group) + PASS_COST for group in groups)

    found = cost([[sizes[index] for index in group] for group in like_lengths(sizes, budget)])
    ordered, cheapest = sorted(sizes, reverse=True), []
    for cuts in itertools.product([False, True], repeat=len(sizes) - 1):
        groups = [[ordered[0]]]
        for size, cut in zip(ordered[1:], cuts, strict=True):
            groups.append([size]) if cut else groups[-1].append(size)
        if all(len(group) == 1 or len(group) * group[0] <= budget for group in groups):
            cheapest.append(cost(groups))
    assert found == min(cheapest)


def test_a_trained_first_token_has_no_label_and_does_not_count() -> None:
    row = Encoded([5, 6, 7], [1, 1, 1], "here", 3)
    (batch,) = pack([row], 8)
    assert batch.labels.tolist() == [[6, 7, IGNORED]]
    assert batch.trained == trained_tokens([row]) == 2
    assert trained_tokens([Encoded([5], [1], "here", 1)]) == 0


def test_packing_is_dense() -> None:
    batches = pack(rows(6, 5, 4, 3, 2), 10)
    assert [batch.input_ids.shape[1] for batch in batches] == [10, 10]


def test_a_longer_example_than_the_budget_goes_alone() -> None:
    batches = pack(rows(3, 50, 3), 10)
    assert sorted(batch.input_ids.shape[1] for batch in batches) == [6, 50]


def test_nothing_gives_no_batch() -> None:
    assert pack([], 8) == []


def test_a_batch_moves_whole() -> None:
    (batch,) = pack(rows(3, 4), 10)
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (moved.input_ids, moved.labels, moved.position_ids)} == {"meta"}
    assert (moved.segments, moved.rows, moved.trained) == (batch.segments, batch.rows, batch.trained)


@settings(max_examples=100, deadline=None)
@given(encoded=ENCODED, processes=st.integers(1, 8))
def test_shares_cover_a_step_and_are_balanced(encoded: list[Encoded], processes: int) -> None:
    shares = share_out(encoded, processes)
    assert len(shares) == processes
    assert sorted(row.where for share in shares for row in share) == sorted(row.where for row in encoded)
    loads = [sum(len(row.ids) for row in share) for share in shares]
    assert max(loads) - min(loads) <= max((len(row.ids) for row in encoded), default=0)
    assert share_out(encoded, processes) == shares


def test_long_examples_are_dealt_first() -> None:
    shares = share_out(rows(1, 1, 1, 1, 4), 2)
    assert [sum(len(row.ids) for row in share) for share in shares] == [4, 4]


MAIN, FIRST, SECOND = rows(*[2] * 20), rows(*[3] * 7, seed=1), rows(*[4] * 50, seed=2)


def drawn_rows(rows: TrainingRows, number: int = 0, seed: int = 0) -> list[Encoded]:
    """The rows of one epoch, in its order."""
    return rows.take(rows.epoch(number, seed))


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    mixed = TrainingRows(MAIN, ((FIRST, 0.5), (SECOND, 1.5)))
    assert mixed.epoch(3, seed=1) == mixed.epoch(3, seed=1)
    orders = [drawn_rows(mixed, n, seed) for n, seed in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert len({tuple(len(row.ids) for row in order) for order in orders}) == 4
    assert mixed.epoch(0, 11) != mixed.epoch(1, 1)


def test_asking_for_one_epoch_does_not_change_another() -> None:
    trained = TrainingRows(MAIN, ((SECOND, 0.3),))
    before = trained.epoch(1, 0)
    trained.epoch(0, 0)
    random.seed(5)
    assert trained.epoch(1, 0) == before


@pytest.mark.parametrize(("weight", "count"), [(0.5, 10), (0.2, 4), (0.01, 0), (1.0, 20), (2.5, 50)])
def test_a_mix_adds_its_weight_of_rows(weight: float, count: int) -> None:
    mixed = TrainingRows(MAIN, ((FIRST, weight),))
    epoch = drawn_rows(mixed)
    sizes = Counter(len(row.ids) for row in epoch)
    assert (sizes[2], sizes[3]) == (20, count)
    assert len(mixed) == len(epoch) == 20 + count


def test_no_row_comes_again_before_all_have_come() -> None:
    drawn = Counter(row.where for row in drawn_rows(TrainingRows(MAIN, ((FIRST, 0.95),))) if len(row.ids) == 3)
    assert len(drawn) == len(FIRST)
    assert set(drawn.values()) == {2, 3}  # 19 draws from 7 rows
    once = Counter(row.where for row in drawn_rows(TrainingRows(MAIN, ((SECOND, 2.0),))) if len(row.ids) == 4)
    assert set(once.values()) == {1}


def test_epochs_draw_other_rows_from_a_large_mix() -> None:
    mixed = TrainingRows(MAIN, ((SECOND, 0.5),))
    drawn = [{row.where for row in drawn_rows(mixed, n) if len(row.ids) == 4} for n in range(2)]
    assert drawn[0] != drawn[1]


def test_rows_are_read_by_their_place_in_all_sources() -> None:
    mixed = TrainingRows(MAIN, ((FIRST, 1.0), (SECOND, 1.0)))
    assert mixed.take([0, 19, 20, 26, 27, 76]) == [MAIN[0], MAIN[19], FIRST[0], FIRST[6], SECOND[0], SECOND[49]]
    with pytest.raises(IndexError):
        mixed.take([77])
