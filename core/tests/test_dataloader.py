"""The order of rows and how ranks share them."""

import contextlib
import multiprocessing
import signal
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training.dataloader import DataLoader
from arctic_training.distributed import World
from arctic_training.errors import ArcticError


def collate(rows):
    import torch

    return {"input_ids": torch.tensor(rows)[:, None], "labels": torch.tensor(rows)[:, None]}


def loaders(num_rows, size, micro_batch_size=1, accumulation=1, **options):
    return [
        DataLoader(
            list(range(num_rows)),
            collate,
            micro_batch_size=micro_batch_size,
            accumulation=accumulation,
            world=World(rank, size, rank, size),
            **{"seed": 7} | options,
        )
        for rank in range(size)
    ]


splits = st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


@given(splits)
@settings(max_examples=60, deadline=None)
def test_every_row_is_handed_out_once_and_all_ranks_take_the_same_steps(split):
    num_rows, size, micro_batch_size, accumulation = split
    per_rank = [list(loader.epoch(3)) for loader in loaders(num_rows, size, micro_batch_size, accumulation)]
    assert len({len(steps) for steps in per_rank}) == 1
    assert all(len(step) == accumulation for steps in per_rank for step in steps)
    rows = sorted(row for steps in per_rank for step in steps for batch in step for row in batch.rows)
    assert rows == list(range(num_rows))


@given(splits)
@settings(max_examples=30, deadline=None)
def test_the_rows_of_a_step_do_not_depend_on_how_they_are_split(split):
    num_rows, size, micro_batch_size, accumulation = split
    whole = list(loaders(num_rows, 1, size * micro_batch_size * accumulation)[0].epoch(0))
    parts = [list(loader.epoch(0)) for loader in loaders(num_rows, size, micro_batch_size, accumulation)]
    for number, (step,) in enumerate(whole):
        assert set(step.rows) == {row for steps in parts for batch in steps[number] for row in batch.rows}


@pytest.mark.parametrize("start", [0, 1, 5])
def test_starting_in_the_middle_gives_what_would_have_followed(start):
    (loader,) = loaders(23, 1, 2, 2)
    steps = list(loader.epoch(1))
    whole = [[batch.rows for batch in step] for step in steps]
    position = steps[start - 1].position if start else {}
    assert [[batch.rows for batch in step] for step in loader.epoch(1, position)] == whole[start:]


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    (loader,), (other,) = loaders(50, 1), loaders(50, 1, seed=8)
    assert np.array_equal(loader.order(2), loader.order(2))
    assert not np.array_equal(loader.order(2), loader.order(3))
    assert not np.array_equal(loader.order(2), other.order(2))


def test_without_a_seed_rows_keep_their_order():
    (loader,) = loaders(5, 1, seed=None)
    assert [step[0].rows for step in loader] == [[0], [1], [2], [3], [4]]


def test_a_slot_without_rows_has_nothing_to_train():
    _, second = loaders(3, 2, 2)
    (batch,) = list(second.epoch(0))[-1]
    assert len(batch.rows) == 1 or (batch["labels"] == -100).all()
    _, empty = loaders(1, 2)
    ((batch,),) = empty.epoch(0)
    assert batch.rows == []
    assert (batch["labels"] == -100).all()


def test_an_unfinished_last_step_can_be_left_out():
    (loader,) = loaders(10, 1, 4, drop_last=True)
    assert len(loader) == 2 == len(list(loader.epoch(0)))


def test_worker_processes_hand_out_the_same(tmp_path):
    alone, helped = (loaders(9, 1, 2, num_workers=number)[0] for number in (0, 2))
    assert [[b.rows for b in step] for step in alone.epoch(0)] == [[b.rows for b in step] for step in helped.epoch(0)]


def test_handing_out_leaves_the_random_numbers_of_training_alone():
    import torch

    before = torch.get_rng_state()
    (loader,) = loaders(4, 1)
    list(loader.epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_need_nothing_that_can_be_sent():
    """From Python 3.14 on processes are not forked by default, and what they get is pickled."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        (loader,) = loaders(4, 1, num_workers=1)
        loader.collate = lambda rows: collate(rows)
        assert sorted(step[0].rows[0] for step in loader) == [0, 1, 2, 3]
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_a_collate_that_draws_gets_other_numbers_in_each_epoch_and_on_each_rank():
    import torch

    one, two = loaders(4, 2, num_workers=1)
    for loader in (one, two):
        loader.collate = lambda rows: {"drawn": torch.rand(1)}
    drawn = [float(step[0]["drawn"]) for loader in (one, two) for epoch in (0, 1) for step in loader.epoch(epoch)]
    assert len(set(drawn)) == len(drawn) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_a_worker_that_is_never_born_is_ended_and_started_again(monkeypatch, tmp_path):
    from arctic_training import births, dataloader

    quietly = dataloader._work_quietly

    def born_late(worker):
        quietly(worker)
        with contextlib.suppress(FileExistsError):
            (tmp_path / f"hung-{worker}").touch(exist_ok=False)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)

    monkeypatch.setattr(births, "SECONDS", 0.5)
    monkeypatch.setattr(dataloader, "_work_quietly", born_late)
    (loader,) = loaders(9, 1, num_workers=1)
    rows = [row for step in loader.epoch(0) for batch in step for row in batch.rows]
    assert rows == loader.order(0).tolist()
    assert len(list(tmp_path.iterdir())) == 1
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_that_are_never_born_end_the_run_with_what_to_do(monkeypatch):
    from arctic_training import births, dataloader

    monkeypatch.setattr(births, "SECONDS", 0.1)
    monkeypatch.setattr(births, "ATTEMPTS", 1)
    monkeypatch.setattr(dataloader, "_work_quietly", lambda worker: time.sleep(600))
    (loader,) = loaders(9, 1, num_workers=1)
    with pytest.raises(ArcticError, match="came up within 0 s in 1 try") as caught:
        next(loader.epoch(0))
    assert "data.dl_num_workers: 0" in caught.value.remedy
    assert not multiprocessing.active_children()
