"""Training on data that is larger than the disk: rows are read, encoded and packed on the way, in blocks.

A block is a bounded number of rows of all sources, which is encoded and packed by itself and whose packs are shuffled.
What an epoch holds and in what order is a function of the seed, the epoch and the sources alone, so that every rank
works out the same blocks, takes its own packs of them, and a run goes on anywhere with any number of ranks. The price
is that each rank encodes every block; its workers do so while it trains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from arctic_training.dataloader import Batch, Collate, Loader, micro_batch, other_position
from arctic_training.encoding import EncodedRows, Encoder, WorkerPool
from arctic_training.errors import BadRow, DataError

if TYPE_CHECKING:
    import numpy as np

    from arctic_training.stream import RowStream
    from arctic_training.token_rows import PlannedRows

BLOCKS_AHEAD = 2
"""Blocks that each worker may be ahead of training."""
Part = tuple[list[Any], list[str], list[BadRow]]
"""Rows of one source in a block, their places, and the rows that could not be read."""


@attrs.frozen(eq=False)
class RawBlock:
    """Rows as they were read: where the reader stood before, the block's number, and the rows of each source."""

    position: dict[str, Any]
    number: int
    parts: list[Part]


@attrs.frozen(eq=False)
class Block:
    """Packs of a block in the order in which they are trained on."""

    position: dict[str, Any]
    rows: PlannedRows
    order: np.ndarray


class BlockReader:
    """Reads the rows of several streams in one order, block by block.

    A block holds rows of each source in proportion to the weights, rounded by a draw of (seed, epoch, block). With
    weights an epoch ends when a source does, or the proportions would be lost; without them the others go on.

    Args:
        streams: one for each source, at their beginnings.
        weights: of the sources; all None for none.
        seed: of the draws.
        epoch: from 0.
        block_rows: rows of a block.
    """

    def __init__(
        self,
        streams: Sequence[RowStream],
        weights: Sequence[float | None],
        *,
        seed: int,
        epoch: int,
        block_rows: int,
    ) -> None:
        self.streams = list(streams)
        self.weighted = any(weight is not None for weight in weights)
        self.weights = [weight or 1.0 for weight in weights]
        self.seed, self.epoch, self.block_rows = seed, epoch, block_rows
        self.number = 0
        self.ended = [False] * len(self.streams)

    def position(self) -> dict[str, Any]:
        """Where the next block begins, JSON-able."""
        return {
            "block": self.number,
            "block_rows": self.block_rows,
            "streams": [stream.position() for stream in self.streams],
            "ended": list(self.ended),
        }

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to where a block begins.

        Raises:
            DataError: it is a position among other blocks, or of other sources.
        """
        if position["block_rows"] != self.block_rows or len(position["streams"]) != len(self.streams):
            raise DataError(
                f"the position to go on from is one of {len(position['streams'])} sources in blocks of "
                f"{position['block_rows']} rows, and here are {len(self.streams)} in blocks of {self.block_rows}",
                remedy="go on with the data.sources and the data.stream_buffer that the run began with, or start a "
                "new run",
            )
        self.number, self.ended = position["block"], list(position["ended"])
        for stream, place in zip(self.streams, position["streams"], strict=True):
            stream.seek(place)

    def read(self) -> RawBlock | None:
        """The next block; None at the end."""
        if all(self.ended) or (self.weighted and any(self.ended)):
            return None
        position, number = self.position(), self.number
        counts = self._counts()
        pairs = [stream.read(count) if count else [] for stream, count in zip(self.streams, counts, strict=True)]
        whole = [len(rows) / count if count else 1.0 for rows, count in zip(pairs, counts, strict=True)]
        self.ended = [ended or share < 1 for ended, share in zip(self.ended, whole, strict=True)]
        if self.weighted:  # the others give no more than goes with what the source that ends had left
            pairs = [rows[: round(count * min(whole))] for rows, count in zip(pairs, counts, strict=True)]
        parts = [_part(rows) for rows in pairs]
        self.number += 1
        return RawBlock(position, number, parts)

    def _counts(self) -> list[int]:
        """How many rows of the next block come from each source: its share, rounded up or down by one draw for all, so
        that an epoch keeps the proportions better than rows drawn one by one would."""
        import numpy as np

        weights = np.array([0.0 if ended else weight for weight, ended in zip(self.weights, self.ended, strict=True)])
        generator = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch], counter=[0, 0, 1, self.number]))
        ends = np.cumsum(weights) * (self.block_rows / weights.sum())
        ends[-1] = self.block_rows
        bounds = np.floor(np.concatenate([[0.0], ends]) + generator.random())
        return np.diff(bounds).astype(int).tolist()


def _part(pairs: list[tuple[Any, str]]) -> Part:
    kept = [(row, place) for row, place in pairs if not isinstance(row, BadRow)]
    unreadable = [row for row, _ in pairs if isinstance(row, BadRow)]
    return [row for row, _ in kept], [place for _, place in kept], unreadable


class StreamLoader(Loader):
    """Hands out, for one rank, the micro-batches of each optimizer step of a stream.

    Args:
        open_reader: from an epoch to the reader of its blocks.
        encoder: makes tokens of rows.
        plan: from the encoded parts of a block, one of each source, and the number of rows that were read for each to
            its packs.
        collate: from a list of rows to the tensors of a micro-batch.
        seed: of the order of packs within a block.
        num_workers: processes that encode ahead; 0 encodes in this one.
        options: of ``Loader``.
    """

    def __init__(
        self,
        open_reader: Callable[[int], BlockReader],
        encoder: Encoder,
        plan: Callable[[list[EncodedRows], list[int]], PlannedRows],
        collate: Collate,
        *,
        seed: int,
        num_workers: int,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.open_reader = open_reader
        self.encoder = encoder
        self.plan = plan
        self.collate = collate
        self.seed = seed
        self.num_workers = num_workers

    @property
    def steps_per_epoch(self) -> None:
        return None

    def epoch(self, epoch: int, position: Mapping[str, Any] | None = None) -> Iterator[Batch]:
        packs = self._packs(epoch, position or {})
        following = next(packs, None)
        while following is not None:
            step = [following]
            while len(step) < self.global_batch_size and (pack := next(packs, None)) is not None:
                step.append(pack)
            following = next(packs, None) if len(step) == self.global_batch_size else None
            after = following.position if following is not None else {}
            yield Batch(self._micro_batches(step), after, 0.0, following is None)

    def _micro_batches(self, step: list[_Pack]) -> list[Any]:
        slots = [self.slot(number) for number in range(self.accumulation)]
        chosen = [step[slot.start : slot.stop] for slot in slots]
        return [
            micro_batch(
                self.collate,
                [pack.load() for pack in packs],
                [pack.count for pack in packs],
                spare=step[0].load,
            )
            for packs in chosen
        ]

    def _packs(self, epoch: int, position: Mapping[str, Any]) -> Iterator[_Pack]:
        reader = self.open_reader(epoch)
        if position:
            if "reader" not in position:
                raise other_position("a stream")
            reader.seek(position["reader"])
        first, count = int(position.get("pack", 0)), int(position.get("packs", 0))
        for block in self._blocks(reader, epoch):
            for number in range(first, len(block.order)):
                yield _Pack(block, number, count)
                count += 1
            first = 0

    def _blocks(self, reader: BlockReader, epoch: int) -> Iterator[Block]:
        with WorkerPool(self.num_workers, encode_block, self.encoder) as pool:
            running: deque[tuple[RawBlock, Any]] = deque()
            while True:
                while len(running) < max(1, self.num_workers * BLOCKS_AHEAD) and (raw := reader.read()) is not None:
                    running.append((raw, pool.submit([(rows, places) for rows, places, _ in raw.parts])))
                if not running:
                    return
                raw, encoded = running.popleft()
                parts = [
                    attrs.evolve(part, refused=[*unreadable, *part.refused])
                    for part, (_, _, unreadable) in zip(encoded.result(), raw.parts, strict=True)
                ]
                yield self._block(raw, parts, epoch)

    def _block(self, raw: RawBlock, parts: list[EncodedRows], epoch: int) -> Block:
        import numpy as np

        rows = self.plan(parts, [len(rows) + len(unreadable) for rows, _, unreadable in raw.parts])
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 2, raw.number]))
        return Block(raw.position, rows, generator.permutation(len(rows)))


class _Pack:
    """One pack of a block, put together when a rank needs it."""

    def __init__(self, block: Block, number: int, count: int) -> None:
        self.block = block
        self.number = number
        self.count = count
        self.position = {"reader": block.position, "pack": number, "packs": count}

    def load(self) -> dict[str, Any]:
        return self.block.rows[int(self.block.order[self.number])]


def encode_block(encoder: Encoder, parts: list[tuple[list[Any], list[str]]]) -> list[EncodedRows]:
    """Encode the rows of each source of a block."""
    return [encoder(rows, places) for rows, places in parts]
