"""Packing plans: every token once and in order, never over, as dense as best fit decreasing, the same every time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from bisect import bisect_left, insort
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.packing import Packs, Piece, fill_packs, plan_packs, repeat_to_fill, whole_rows


@st.composite
def rows(draw, max_rows=60):
    """Lengths and the length of a pack: small ones with many ties, and large ones with few."""
    max_length = draw(st.one_of(st.integers(1, 40), st.integers(1000, 5000)))
    longest = draw(st.integers(1, max_length))
    lengths = draw(st.lists(st.integers(1, longest), max_size=max_rows))
    return lengths * draw(st.integers(1, 4)), max_length


def packs_of(packs: Packs) -> list[list[Piece]]:
    return [packs.pieces(number) for number in range(len(packs))]


def rows_of(packs: Packs) -> list[list[int]]:
    return [[piece.row for piece in pack] for pack in packs_of(packs)]


def tokens_of(packs: Packs) -> list[tuple[int, int]]:
    pieces = chain.from_iterable(packs_of(packs))
    return [(piece.row, token) for piece in pieces for token in range(piece.start, piece.stop)]


def all_tokens(lengths: list[int]) -> list[tuple[int, int]]:
    return [(row, token) for row, length in enumerate(lengths) for token in range(length)]


@given(rows())
def test_each_token_stands_in_exactly_one_pack_and_its_row_is_whole(case):
    lengths, max_length = case
    pieces = list(chain.from_iterable(packs_of(plan_packs(lengths, max_length))))
    assert sorted(pieces) == [Piece(row, 0, length) for row, length in enumerate(lengths)]


@given(rows())
def test_no_pack_is_longer_than_max_length(case):
    lengths, max_length = case
    packs = plan_packs(lengths, max_length)
    assert packs.lengths().tolist() == [sum(lengths[row] for row in pack) for pack in rows_of(packs)]
    assert all(1 <= length <= max_length for length in packs.lengths())


@given(rows())
def test_whole_groups_are_placed_as_best_fit_decreasing_places_single_rows(case):
    lengths, max_length = case
    assert sorted(plan_packs(lengths, max_length).lengths().tolist()) == sums_by_single_rows(lengths, max_length)


@given(rows())
def test_no_two_packs_would_fit_into_one(case):
    lengths, max_length = case
    sums = sorted(plan_packs(lengths, max_length).lengths())
    assert len(sums) < 2 or sums[0] + sums[1] > max_length


@given(rows())
def test_the_same_lengths_give_the_same_plan_whatever_holds_them(case):
    lengths, max_length = case
    plan = packs_of(plan_packs(lengths, max_length))
    for same in (list(lengths), tuple(lengths), np.array(lengths, np.int64), np.array(lengths, np.uint16)):
        assert packs_of(plan_packs(same, max_length)) == plan


@given(rows())
def test_rows_ascend_within_packs_and_packs_by_their_first_row(case):
    plan = rows_of(plan_packs(*case))
    assert all(pack == sorted(pack) for pack in plan)
    assert plan == sorted(plan)


@given(st.integers(4, 20).flatmap(lambda most: st.tuples(st.lists(st.integers(1, most), max_size=8), st.just(most))))
def test_the_number_of_packs_keeps_the_bound_of_first_fit_decreasing(case):
    lengths, max_length = case
    assert len(plan_packs(lengths, max_length)) <= 11 / 9 * fewest_packs(lengths, max_length) + 6 / 9


def test_a_row_goes_where_it_leaves_the_least_space_not_where_it_first_fits():
    assert rows_of(plan_packs([8, 5, 5, 2], 12)) == [[0], [1, 2, 3]]


def test_planning_leaves_the_lengths_as_they_were():
    lengths = np.array([3, 1, 2])
    plan_packs(lengths, 3)
    assert whole_rows(lengths).stops is not lengths
    assert lengths.tolist() == [3, 1, 2]


@pytest.mark.parametrize("lengths", [[], (), np.array([], np.int32)])
def test_no_rows_make_no_packs(lengths):
    for packs in (whole_rows(lengths), plan_packs(lengths, 8), fill_packs(lengths, 8)):
        assert (len(packs), packs.lengths().tolist()) == (0, [])
    assert repeat_to_fill(lengths, 8).tolist() == []


@pytest.mark.parametrize(
    "make", [whole_rows, *(lambda lengths, of=of: of(lengths, 9) for of in (plan_packs, fill_packs))]
)
def test_what_is_planned_is_int64_whatever_the_lengths_are(make):
    packs = make(np.array([5, 3, 9], np.int16))
    assert {str(array.dtype) for array in (packs.rows, packs.starts, packs.stops, packs.offsets, packs.lengths())} == {
        "int64"
    }


@pytest.mark.parametrize("length", [0, -1, 9])
def test_a_row_that_is_empty_or_over_long_is_refused_by_its_index(length):
    with pytest.raises(ValueError, match=f"row 1 has {length} tokens"):
        plan_packs([3, length], 8)


@pytest.mark.parametrize("plan", [whole_rows, lambda lengths: fill_packs(lengths, 4), lambda x: repeat_to_fill(x, 4)])
def test_an_empty_row_is_refused_however_rows_are_laid_out(plan):
    with pytest.raises(ValueError, match="row 1 has 0 tokens"):
        plan([2, 0])


@pytest.mark.parametrize("plan", [plan_packs, fill_packs, repeat_to_fill])
def test_a_pack_that_can_hold_nothing_is_refused(plan):
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        plan([1], 0)


@pytest.mark.parametrize("lengths", [[1.5], ["1"], [[1, 2]]])
def test_lengths_that_are_no_whole_numbers_are_refused_and_not_rounded(lengths):
    with pytest.raises(ValueError, match="whole numbers"):
        plan_packs(lengths, 8)


@given(st.lists(st.integers(1, 50), max_size=40))
def test_whole_rows_are_packs_of_their_own(lengths):
    packs = whole_rows(lengths)
    assert packs_of(packs) == [[Piece(row, 0, length)] for row, length in enumerate(lengths)]
    assert packs.lengths().tolist() == lengths


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_filled_packs_hold_every_token_once_in_order_and_only_the_last_may_be_short(lengths, max_length):
    packs = fill_packs(lengths, max_length)
    sizes = packs.lengths().tolist()
    assert all(size == max_length for size in sizes[:-1])
    assert all(0 < size <= max_length for size in sizes)
    assert tokens_of(packs) == all_tokens(lengths)
    assert all(piece.start < piece.stop for pack in packs_of(packs) for piece in pack)


def test_a_cut_row_continues_in_the_next_pack():
    assert packs_of(fill_packs([3, 4], 5)) == [[Piece(0, 0, 3), Piece(1, 0, 2)], [Piece(1, 2, 4)]]


def test_a_pack_can_be_asked_for_from_the_end_and_no_other_is_made_up():
    packs = fill_packs([3, 4], 5)
    assert packs.pieces(-1) == [Piece(1, 2, 4)]
    with pytest.raises(IndexError, match="pack 2 of 2"):
        packs.pieces(2)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 100))
def test_repeating_fills_one_pack_as_far_as_whole_rows_go(lengths, max_length):
    indices = repeat_to_fill(lengths, max_length)
    total = sum(lengths[index] for index in indices)
    assert indices.dtype == np.int64
    assert indices.tolist() == [position % len(lengths) for position in range(len(indices))]
    if sum(lengths) >= max_length:
        assert len(indices) == len(lengths)
    else:
        assert total <= max_length < total + lengths[len(indices) % len(lengths)]


def test_a_million_log_normal_rows_fill_packs_of_8192_to_99_percent():
    lengths = log_normal(1_000_000, 8192)
    assert lengths.sum() / (len(plan_packs(lengths, 8192)) * 8192) > 0.99


def test_a_hundred_thousand_rows_take_less_than_half_a_second():
    lengths = log_normal(100_000, 131_072)
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        plan_packs(lengths, 131_072)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read where Linux tells it")
def test_ten_million_rows_are_planned_within_20_seconds_and_2_gib_on_one_core(tmp_path):
    measure = """
import json, os, sys, time
import numpy as np
from arctic_training.packing import plan_packs
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
lengths = np.load(sys.stdin.buffer)
begin = time.perf_counter()
packs = plan_packs(lengths, 8192)
seconds = time.perf_counter() - begin
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, peak / 2**20, lengths.sum() / (len(packs) * 8192)]))
"""
    path = tmp_path / "lengths.npy"
    np.save(path, log_normal(10_000_000, 8192))
    with path.open("rb") as file:
        output = subprocess.run(
            [sys.executable, "-c", measure], stdin=file, capture_output=True, text=True, check=True, timeout=100
        )
    seconds, gib, fill = json.loads(output.stdout)
    assert seconds < 20
    assert gib < 2
    assert fill > 0.99


def log_normal(size: int, max_length: int) -> np.ndarray:
    """Lengths as of documents: a median of 400 tokens, one in a thousand longer than 8,000."""
    return np.clip(np.random.default_rng(0).lognormal(6, 1, size), 1, max_length).astype(np.int64)


def sums_by_single_rows(lengths: list[int], max_length: int) -> list[int]:
    """Tokens of each pack, ascending, where best-fit decreasing is carried out one row after the other."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        tightest = bisect_left(spaces, length)
        space = spaces.pop(tightest) if tightest < len(spaces) else max_length
        insort(spaces, space - length)
    return sorted(max_length - space for space in spaces)


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


def test_selecting_packs_keeps_their_pieces_and_the_order_that_was_asked_for():
    plan = plan_packs([5, 3, 8, 2], 8)
    chosen = plan.select([1, 0])
    assert [chosen.pieces(0), chosen.pieces(1)] == [plan.pieces(1), plan.pieces(0)]
    assert len(plan.select([])) == 0
