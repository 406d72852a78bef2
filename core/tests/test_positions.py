"""Positions: wherever training stopped, what follows is what would have followed, for any number of ranks."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training.dataloader import DataLoader
from arctic_training.distributed import World
from arctic_training.encoding import EncodedRows
from arctic_training.errors import BadRow
from arctic_training.packing import plan_packs
from arctic_training.stream import LoadedStream
from arctic_training.stream_loader import BlockReader, StreamLoader
from arctic_training.token_rows import PlannedRows, TokenRows
from arctic_training.token_tables import joined_in_memory

SEED = 7
PACK = 12


def collate(rows):
    import torch

    length = max(len(row["input_ids"]) for row in rows)
    batch = torch.full((len(rows), length), -1)
    for number, row in enumerate(rows):
        batch[number, : len(row["input_ids"])] = torch.as_tensor(row["input_ids"])
    return {"input_ids": batch, "labels": batch.clone()}


def first_tokens(ranks):
    """The rows of a step over all ranks, each told by its first token, in the order (micro-batch, rank)."""
    return [
        int(ids[0])
        for micro_batches in zip(*ranks, strict=True)
        for batch in micro_batches
        for ids in batch["input_ids"][: len(batch.rows)]
    ]


def steps_of(make, size, epoch, position=None, limit=None):
    """The rows of each step over all ranks, and the position after it, which every rank tells alike."""
    iterators = [make(World(rank, size, rank, size)).epoch(epoch, position) for rank in range(size)]
    steps = []
    for ranks in zip(*iterators, strict=True):
        positions = {json.dumps(batch.position, sort_keys=True) for batch in ranks}
        assert len(positions) == 1
        assert len({batch.ends_epoch for batch in ranks}) == 1
        steps.append((first_tokens(ranks), json.loads(positions.pop())))
        if limit is not None and len(steps) == limit:
            break
    return steps


def sequence(steps):
    return [row for rows, _ in steps for row in rows]


# ---- prepared rows


def map_loader(num_rows, micro_batch_size, accumulation):
    rows = [{"input_ids": [number], "labels": [number]} for number in range(num_rows)]
    return lambda world: DataLoader(
        rows, collate, micro_batch_size=micro_batch_size, accumulation=accumulation, world=world, seed=SEED
    )


@given(
    st.integers(1, 60), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 20)
)
@settings(max_examples=60, deadline=None)
def test_another_number_of_ranks_goes_on_with_the_next_row(num_rows, size, other, micro, accumulation, stop):
    whole = steps_of(map_loader(num_rows, micro, accumulation), size, epoch=1)
    assert sorted(sequence(whole)) == list(range(num_rows))
    stop = min(stop, len(whole) - 1)
    position = whole[stop][1]
    rest = steps_of(map_loader(num_rows, micro, accumulation), other, 1, position)
    assert sequence(whole[: stop + 1]) + sequence(rest) == sequence(whole)


def test_row_ten_million_is_as_near_as_the_first():
    loader = DataLoader(range(20_000_000), collate, micro_batch_size=4, seed=SEED)
    assert loader.holds({"row": 10_000_000})
    order = loader.order(3)
    loader.rows = {int(row): {"input_ids": [int(row)], "labels": [0]} for row in order[10_000_000:10_000_004]}
    loader.rows = _Counted(20_000_000, loader.rows)
    batch = next(loader.epoch(3, {"row": 10_000_000}))
    assert batch[0].rows == order[10_000_000:10_000_004].tolist()
    assert batch.position == {"row": 10_000_004}


class _Counted:
    """Many rows of which a few are there: asking for another fails."""

    def __init__(self, size, rows):
        self.size, self.some = size, rows

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        return self.some[number]


# ---- streams


class Encoder:
    """Rows are lists of tokens; an empty one is bad."""

    def __call__(self, rows, places):
        import numpy as np

        good = [row for row in rows if row]
        refused = [
            BadRow("it is empty", category="empty", where=place)
            for row, place in zip(rows, places, strict=True)
            if not row
        ]
        flat = np.array([token for row in good for token in row], np.int32)
        lengths = np.array([len(row) for row in good], np.int64)
        return EncodedRows({"input_ids": flat, "labels": flat}, lengths, refused)


def plan(parts, numbers):
    rows = joined_in_memory([TokenRows(part.columns, part.lengths) for part in parts])
    return PlannedRows(rows, plan_packs(rows.lengths, PACK), packed=True)


class Watched(LoadedStream):
    """A stream that counts what is read of it."""

    most_read = 0

    def read(self, count):
        rows = super().read(count)
        Watched.most_read = max(Watched.most_read, self.row)
        return rows


def stream_loader(sources, weights=None, num_workers=0, micro_batch_size=2, accumulation=1, block_rows=10):
    def open_reader(epoch):
        return BlockReader(
            [Watched(rows) for rows in sources],
            weights or [None] * len(sources),
            seed=SEED,
            epoch=epoch,
            block_rows=block_rows,
        )

    return lambda world: StreamLoader(
        open_reader,
        Encoder(),
        plan,
        collate,
        seed=SEED,
        num_workers=num_workers,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation,
        world=world,
    )


def numbered(sizes):
    """Rows of these lengths for each source, whose tokens are all different; a length of 0 is a bad row."""
    token, sources = 0, []
    for lengths in sizes:
        rows = []
        for length in lengths:
            rows.append(list(range(token, token + length)))
            token += length
        sources.append(rows)
    return sources


lengths = st.lists(st.integers(0, PACK), min_size=1, max_size=50)


@given(st.lists(lengths, min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_a_stream_goes_on_anywhere_with_any_number_of_ranks(sizes, size, other, stop):
    sources = numbered(sizes)
    whole = steps_of(stream_loader(sources), size, epoch=1)
    firsts = {row[0] for rows in sources for row in rows if row}
    assert set(sequence(whole)) <= firsts
    assert len(set(sequence(whole))) == len(sequence(whole))
    if not whole:
        return
    stop = min(stop, len(whole) - 1)
    position = whole[stop][1]
    rest = steps_of(stream_loader(sources), other, 1, position) if position else []
    assert sequence(whole[: stop + 1]) + sequence(rest) == sequence(whole)


@given(st.lists(lengths, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_an_epoch_of_a_stream_holds_every_token_once(sizes):
    sources = numbered(sizes)
    seen = [
        int(token)
        for step in stream_loader(sources)(World()).epoch(0)
        for batch in step
        for ids in batch["input_ids"][: len(batch.rows)].tolist()
        for token in ids
        if token >= 0
    ]
    assert sorted(seen) == [token for rows in sources for row in rows for token in row]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_do_not_change_a_stream(num_workers):
    sources = numbered([[3, 5, 0, 7] * 20, [2, 9] * 15])
    alone, helped = (steps_of(stream_loader(sources, num_workers=number), 2, epoch=0) for number in (0, num_workers))
    assert alone == helped


def test_each_epoch_of_a_stream_has_an_order_of_its_own():
    sources = numbered([[4] * 60])
    one, again, other = (sequence(steps_of(stream_loader(sources), 1, epoch)) for epoch in (0, 0, 1))
    assert one == again != other


def test_a_stream_is_read_only_a_few_blocks_ahead():
    sources = numbered([[6] * 5000])
    Watched.most_read = 0
    steps = stream_loader(sources, num_workers=2)(World()).epoch(0)
    next(steps)
    steps.close()
    assert Watched.most_read <= 10 * (2 * 2 + 2)


def test_sources_with_weights_come_in_proportion_until_one_ends():
    sources = numbered([[1] * 4000, [1] * 4000, [1] * 4000])
    taken = BlockReader([LoadedStream(s) for s in sources], [4, 2, 1], seed=SEED, epoch=0, block_rows=100)
    drawn = [0, 0, 0]
    while (block := taken.read()) is not None:
        drawn = [total + len(rows) for total, (rows, _, _) in zip(drawn, block.parts, strict=True)]
    assert drawn[0] == 4000
    assert drawn[1] / drawn[0] == pytest.approx(1 / 2, rel=0.05)
    assert drawn[2] / drawn[0] == pytest.approx(1 / 4, rel=0.05)
