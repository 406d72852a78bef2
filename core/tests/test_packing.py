"""Packing plans: every row once, never over, dense, the same every time."""

from __future__ import annotations

import time
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.packing import Piece, fill_packs, plan_packs, repeat_to_fill


@st.composite
def rows(draw, max_rows=60):
    max_length = draw(st.one_of(st.integers(1, 40), st.integers(1000, 5000)))
    lengths = draw(st.lists(st.integers(1, max_length), max_size=max_rows))
    return lengths, max_length


@given(rows())
def test_each_row_stands_in_exactly_one_pack(case):
    lengths, max_length = case
    assert sorted(chain.from_iterable(plan_packs(lengths, max_length))) == list(range(len(lengths)))


@given(rows())
def test_no_pack_is_longer_than_max_length(case):
    lengths, max_length = case
    assert all(sum(lengths[row] for row in pack) <= max_length for pack in plan_packs(lengths, max_length))


@given(rows())
def test_no_two_packs_would_fit_into_one(case):
    lengths, max_length = case
    sums = sorted(sum(lengths[row] for row in pack) for pack in plan_packs(lengths, max_length))
    assert len(sums) < 2 or sums[0] + sums[1] > max_length


@given(rows())
def test_the_same_lengths_give_the_same_plan(case):
    lengths, max_length = case
    assert plan_packs(lengths, max_length) == plan_packs(tuple(lengths), max_length)


@given(rows())
def test_rows_ascend_within_packs_and_packs_by_their_first_row(case):
    plan = plan_packs(*case)
    assert all(pack == sorted(pack) for pack in plan)
    assert plan == sorted(plan)


@given(st.integers(4, 20).flatmap(lambda most: st.tuples(st.lists(st.integers(1, most), max_size=8), st.just(most))))
def test_the_number_of_packs_keeps_the_bound_of_first_fit_decreasing(case):
    lengths, max_length = case
    assert len(plan_packs(lengths, max_length)) <= 11 / 9 * fewest_packs(lengths, max_length) + 6 / 9


def test_a_row_goes_where_it_leaves_the_least_space_not_where_it_first_fits():
    assert plan_packs([8, 5, 5, 2], 12) == [[0], [1, 2, 3]]


@pytest.mark.parametrize("length", [0, -1, 9])
def test_a_row_that_is_empty_or_over_long_is_refused_by_its_index(length):
    with pytest.raises(ValueError, match="row 1 has"):
        plan_packs([3, length], 8)


def test_a_hundred_thousand_rows_take_less_than_a_second_and_fill_the_packs():
    lengths = [1 + (index * 7919 + index * index * 31) % 613 for index in range(100_000)]
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        plan = plan_packs(lengths, 4096)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 1.0
    assert sum(lengths) / (len(plan) * 4096) > 0.999


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 30))
def test_filled_packs_hold_every_token_once_and_only_the_last_may_be_short(lengths, max_length):
    packs = fill_packs(lengths, max_length)
    sizes = [sum(piece.stop - piece.start for piece in pack) for pack in packs]
    assert all(size == max_length for size in sizes[:-1])
    assert all(0 < size <= max_length for size in sizes)
    tokens = [(piece.row, token) for pack in packs for piece in pack for token in range(piece.start, piece.stop)]
    assert tokens == [(row, token) for row, length in enumerate(lengths) for token in range(length)]


def test_a_cut_row_continues_in_the_next_pack():
    assert fill_packs([3, 4], 5) == [[Piece(0, 0, 3), Piece(1, 0, 2)], [Piece(1, 2, 4)]]


def test_filled_packs_refuse_an_empty_row():
    with pytest.raises(ValueError, match="row 0 has 0 tokens"):
        fill_packs([0], 4)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 100))
def test_repeating_fills_one_pack_as_far_as_whole_rows_go(lengths, max_length):
    indices = repeat_to_fill(lengths, max_length)
    total = sum(lengths[index] for index in indices)
    assert indices[: len(lengths)] == list(range(len(lengths)))
    if sum(lengths) >= max_length:
        assert len(indices) == len(lengths)
    else:
        assert total <= max_length < total + lengths[len(indices) % len(lengths)]


def fewest_packs(lengths: list[int], max_length: int) -> int:
    """The optimum, by trying every placement of each row into the packs opened so far or a new one."""
    best = len(lengths)

    def place(row: int, sums: tuple[int, ...]) -> None:
        nonlocal best
        if len(sums) >= best:
            return
        if row == len(lengths):
            best = len(sums)
            return
        for pack in range(len(sums)):
            if sums[pack] + lengths[row] <= max_length:
                place(row + 1, (*sums[:pack], sums[pack] + lengths[row], *sums[pack + 1 :]))
        place(row + 1, (*sums, lengths[row]))

    place(0, ())
    return best
