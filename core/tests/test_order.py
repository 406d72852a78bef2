"""What follows a position is what would have followed, for any number of ranks, rows of a step and workers."""

from __future__ import annotations

import json

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training.dataloader import DataLoader
from arctic_training.distributed import World
from arctic_training.encoding import EncodedRows
from arctic_training.errors import BadRow, DataError
from arctic_training.packing import plan_packs
from arctic_training.stream import LoadedStream
from arctic_training.stream_loader import BlockReader, StreamLoader
from arctic_training.token_rows import SOURCES, PlannedRows, TokenRows
from arctic_training.token_tables import joined_in_memory

PACK = 8
"""Tokens of a pack."""


@attrs.frozen
class Split:
    """How the rows of a step are shared."""

    ranks: int
    micro_batch_size: int
    accumulation: int

    @property
    def options(self):
        worlds = [World(rank, self.ranks, rank, self.ranks) for rank in range(self.ranks)]
        sizes = {"micro_batch_size": self.micro_batch_size, "accumulation": self.accumulation}
        return [sizes | {"world": world} for world in worlds]

    @property
    def rows(self):
        return self.ranks * self.micro_batch_size * self.accumulation


splits = st.builds(Split, st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))


def collate(rows):
    import torch

    ids = torch.nn.utils.rnn.pad_sequence([torch.as_tensor(np.asarray(row["input_ids"])) for row in rows], True)
    return {"input_ids": ids.long(), "labels": ids.long()}


def in_memory(num_rows, options):
    rows = [{"input_ids": np.array([number, number + 1])} for number in range(num_rows)]
    return DataLoader(rows, collate, seed=3, **options)


class Source:
    """Numbers of one source, some of which cannot be read."""

    def __init__(self, first, count, bad):
        self.first, self.count, self.bad = first, count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        if row in self.bad:
            raise BadRow("it is bad", category="bad", where=self.where(row))
        return self.first + row

    def where(self, row):
        return f"rows:{self.first + row}"


def encode(rows, places):
    """1 to 5 tokens of each number that is no multiple of 13."""
    kept = [row for row in rows if row % 13]
    refused = [
        BadRow("13", category="13", where=place) for row, place in zip(rows, places, strict=True) if not row % 13
    ]
    lengths = np.array([2 + row % 4 for row in kept], np.int64)
    ids = np.repeat(np.array(kept, np.int32), lengths)
    return EncodedRows({"input_ids": ids, "labels": ids.copy()}, lengths, refused)


@attrs.define
class Streamed:
    """A stream of sources of the given sizes; every loader that it makes counts the rows it refused."""

    sizes: list[int]
    weights: list[float | None]
    block_rows: int = 7
    workers: int = 0
    refused: list[str] = attrs.field(factory=list)

    def plan(self, parts, numbers):
        assert numbers == [len(part.lengths) + len(part.refused) for part in parts]
        self.refused += [row.where for part in parts for row in part.refused]
        rows = joined_in_memory([TokenRows(part.columns, part.lengths) for part in parts])
        return PlannedRows(rows, plan_packs(rows.lengths, PACK), packed=True)

    def reader(self, epoch):
        sources = [Source(1000 * number, size, {2, 3}) for number, size in enumerate(self.sizes)]
        streams = [LoadedStream(source) for source in sources]
        return BlockReader(streams, self.weights, seed=5, epoch=epoch, block_rows=self.block_rows)

    def loader(self, options):
        return StreamLoader(self.reader, encode, self.plan, collate, seed=5, num_workers=self.workers, **options)


def step_of(batches):
    """The rows of one step over all ranks, in their order: micro-batches of all ranks follow each other."""
    micro_batches = [micro_batch for slot in zip(*batches, strict=True) for micro_batch in slot]
    return [tuple(ids) for batch in micro_batches for ids in batch["input_ids"][: len(batch.rows)].numpy().tolist()]


def without_padding(step):
    return [tuple(token for token in ids if token) for ids in step]


def steps(make, split, epoch, position=None):
    """The steps of an epoch: rows, and the position that every rank tells behind them."""
    loaders = [make(options) for options in split.options]
    found = []
    for batches in zip(*(loader.epoch(epoch, position) for loader in loaders), strict=True):
        positions = [json.dumps(batch.position) for batch in batches]
        assert len(set(positions)) == 1
        assert len({batch.ends_epoch for batch in batches}) == 1
        found.append((without_padding(step_of(batches)), json.loads(positions[0]), batches[0].ends_epoch))
    assert [ends for _, _, ends in found] == [False] * (len(found) - 1) + [True] * bool(found)
    return found


def rows_of(found):
    return [row for rows, _, _ in found for row in rows]


def check_that_any_position_goes_on(make, one, other, epoch, number):
    """Stop ``one`` split after a step and go on with the ``other``: the rows of a whole epoch come in its order."""
    whole = steps(make, one, epoch)
    number %= len(whole)
    before, (_, position, ends) = whole[: number + 1], whole[number]
    if ends:
        return
    after = steps(make, other, epoch, position)
    assert rows_of(before) + rows_of(after) == rows_of(whole)
    assert all(len(rows) == other.rows for rows, _, _ in after[:-1])
    if one == other:
        assert after == whole[number + 1 :]


@given(st.integers(1, 40), splits, splits, st.integers(0, 3), st.integers(0, 100))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_rows_go_on_at_any_position_with_other_ranks_and_other_steps(num_rows, one, other, epoch, number):
    check_that_any_position_goes_on(lambda options: in_memory(num_rows, options), one, other, epoch, number)
    check_that_any_position_goes_on(lambda options: in_memory(num_rows, options), one, one, epoch, number)


streams = st.integers(1, 3).flatmap(
    lambda sources: st.builds(
        Streamed,
        st.lists(st.integers(0, 40), min_size=sources, max_size=sources).filter(lambda sizes: max(sizes) > 6),
        st.one_of(
            st.just([None] * sources),
            st.lists(st.sampled_from([1.0, 2.0, 0.5]), min_size=sources, max_size=sources),
        ),
        st.integers(1, 15),
    )
)


@given(streams, splits, splits, st.integers(0, 3), st.integers(0, 100))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_stream_goes_on_at_any_position_with_other_ranks_and_other_steps(stream, one, other, epoch, number):
    if not steps(stream.loader, one, epoch):  # a source with a weight may end before there is a row
        return
    check_that_any_position_goes_on(stream.loader, one, other, epoch, number)
    check_that_any_position_goes_on(stream.loader, one, one, epoch, number)


@given(streams, splits, st.integers(0, 2))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_stream_without_weights_gives_every_row_once_and_refuses_each_bad_one_once(stream, split, epoch):
    stream.weights = [None] * len(stream.sizes)
    packs = rows_of(steps(stream.loader, split, epoch))
    expected = [(1000 * source + row, row in (2, 3)) for source, size in enumerate(stream.sizes) for row in range(size)]
    good = sorted(row for row, is_bad in expected if not is_bad and row % 13)
    # `rows_of` leaves padding out by its id, 0; row 0 is a multiple of 13.
    assert sorted({token for pack in packs for token in pack}) == good
    assert sum(len(pack) for pack in packs) == sum(2 + row % 4 for row in good)
    refused = sorted(f"rows:{row}" for row, is_bad in expected if is_bad or not row % 13)
    assert sorted(stream.refused) == sorted(refused * split.ranks)


@pytest.mark.parametrize("weights", [[None, None, None], [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_in_a_stream(weights, workers):
    split = Split(2, 2, 1)
    alone = steps(Streamed([50, 80, 120], weights).loader, split, 1)
    stream = Streamed([50, 80, 120], weights, workers=workers)
    assert steps(stream.loader, split, 1) == alone
    middle = alone[len(alone) // 2]
    assert steps(stream.loader, split, 1, middle[1]) == alone[len(alone) // 2 + 1 :]


def test_the_order_of_a_stream_is_another_in_each_epoch():
    stream = Streamed([60, 60], [None, None])
    first, again, second = (rows_of(steps(stream.loader, Split(1, 1, 1), epoch)) for epoch in (0, 0, 1))
    assert first == again
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_than_a_few_blocks_are_read_ahead(workers):
    """However long a stream is, memory holds the blocks that wait for workers and the one that is handed out."""
    stream = Streamed([100_000], [None], block_rows=10, workers=workers)
    readers = []

    def open_reader(epoch):
        readers.append(stream.reader(epoch))
        return readers[-1]

    (options,) = Split(1, 1, 1).options
    loader = StreamLoader(open_reader, encode, stream.plan, collate, seed=5, num_workers=workers, **options)
    steps_taken = loader.epoch(0)
    for _ in range(30):
        block = next(steps_taken).position["reader"]["block"]
        assert readers[0].number - block <= 2 + 2 * workers
    steps_taken.close()


@pytest.mark.parametrize("size", [2, 3])
def test_weights_of_a_stream_are_proportions_of_rows(size):
    weights = [1.0, 2.0, 5.0][:size]
    stream = Streamed([4000, 8000, 20_000][:size], weights, block_rows=500)
    reader = stream.reader(0)
    counts = np.zeros(size)
    while (block := reader.read()) is not None:
        counts += [len(rows) + len(bad) for rows, _, bad in block.parts]
    shares = np.array(weights) / sum(weights)
    assert counts / counts.sum() == pytest.approx(shares, rel=0.01)
    assert max(counts / np.array(stream.sizes)) > 0.95, "an epoch lasts until a source ends"


def test_packs_of_a_stream_tell_the_source_of_each_token():
    stream = Streamed([30, 30], [None, None])
    planned = stream.plan([encode([1, 2, 3], "abc"), encode([1001, 1002], "de")], [3, 2])
    for row in planned:
        assert (row["input_ids"] // 1000).tolist() == row[SOURCES].tolist()


def test_a_position_of_another_kind_of_loader_is_refused():
    stream = Streamed([30], [None])
    (options,) = Split(1, 1, 1).options
    streamed, prepared = stream.loader(options), in_memory(30, options)
    for loader, other in ((streamed, prepared), (prepared, streamed)):
        position = next(other.epoch(0)).position
        with pytest.raises(DataError, match=r"data\.streaming"):
            next(loader.epoch(0, position))


@pytest.mark.parametrize(
    "other", [Streamed([30, 30], [None, None], block_rows=8), Streamed([30], [None], block_rows=7)]
)
def test_a_position_of_a_stream_with_other_blocks_or_sources_is_refused(other):
    (options,) = Split(1, 1, 1).options
    position = next(Streamed([30, 30], [None, None]).loader(options).epoch(0)).position
    with pytest.raises(DataError, match="one of 2 sources in blocks of 7 rows"):
        next(other.loader(options).epoch(0, position))
