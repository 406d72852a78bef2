"""The resumable dataloader: which rows each rank sees in each optimizer step, as a function of seed, epoch and
position.

Every rank runs the same number of micro-batches in every step, so that no collective ever waits for a rank that has no
rows left: a slot without rows repeats a row with nothing to train on, and counts for nothing.
"""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arctic_training.births import started
from arctic_training.distributed import World
from arctic_training.errors import DataError
from arctic_training.loss import IGNORE_INDEX
from arctic_training.signals import leave_signals_alone
from arctic_training.token_rows import OTHER_COLUMNS, SOURCES

if TYPE_CHECKING:
    import numpy as np
    import torch

_CAN_FORK = sys.platform == "linux"
"""Workers are forked, whatever Python's default is: they hold the rows and what collates them already, and neither can
always be sent."""
Collate = Callable[[list[Any]], dict[str, "torch.Tensor"]]


class MicroBatch(dict):
    """Tensors by name, ready for the model, with the numbers of the rows they hold.

    ``num_tokens`` counts their tokens without padding. ``rows`` is empty where the slot only keeps this rank in step
    with the others.
    """

    rows: list[int]
    num_tokens: int
    weight: float | None = None
    """What the trainer's ``loss_weight`` counts in it, once it has been counted."""
    source_ids: torch.Tensor | None = None
    """The number of the source of each token, shaped as ``input_ids``, where there are several sources. No tensor of
    the batch itself: models take no argument of this name."""
    columns: dict[str, torch.Tensor]
    """Other columns of the rows, by name, for the loss alone; of shape (B, L), 0 in padding."""

    def __init__(
        self,
        tensors: Mapping[str, Any],
        rows: Sequence[int],
        num_tokens: int = 0,
        source_ids: torch.Tensor | None = None,
        columns: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(tensors)
        self.rows = list(rows)
        self.num_tokens = num_tokens
        self.source_ids = self.pop(SOURCES, source_ids)
        self.columns = dict(self.pop(OTHER_COLUMNS, columns) or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return MicroBatch, (dict(self), self.rows, self.num_tokens, self.source_ids, self.columns)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device; entries that are not tensors stay as they are."""
        moved = {
            name: value.to(device, non_blocking=True) if hasattr(value, "to") else value for name, value in self.items()
        }
        batch = self.with_tensors(**moved)
        if self.source_ids is not None:
            batch.source_ids = self.source_ids.to(device, non_blocking=True)
        batch.columns = {name: values.to(device, non_blocking=True) for name, values in self.columns.items()}
        return batch

    def with_tensors(self, **tensors: torch.Tensor) -> MicroBatch:
        """The same with some entries replaced."""
        batch = MicroBatch({**self, **tensors}, self.rows, self.num_tokens, self.source_ids, self.columns)
        batch.weight = self.weight
        return batch


class Batch(list[MicroBatch]):
    """This rank's micro-batches of one optimizer step.

    Attributes:
        position: where the step after it begins, JSON-able; the same on every rank and for every number of ranks.
        share: how much of its epoch is done with it, from 0 to 1; 0 where that is not known.
        ends_epoch: whether it is the last of its epoch.
    """

    def __init__(
        self, micro_batches: Iterable[MicroBatch], position: Mapping[str, Any], share: float, ends_epoch: bool
    ) -> None:
        super().__init__(micro_batches)
        self.position = dict(position)
        self.share = share
        self.ends_epoch = ends_epoch


class Loader(ABC):
    """Hands out, for one rank, the micro-batches of each optimizer step.

    Args:
        micro_batch_size: rows in a micro-batch.
        accumulation: micro-batches of a rank in an optimizer step.
        world: this rank among all.
    """

    def __init__(self, *, micro_batch_size: int, accumulation: int = 1, world: World | None = None) -> None:
        self.micro_batch_size = micro_batch_size
        self.accumulation = accumulation
        self.world = world or World()

    @property
    def global_batch_size(self) -> int:
        """Rows in a full optimizer step, over all ranks."""
        return self.micro_batch_size * self.accumulation * self.world.size

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None where that is not known beforehand."""

    @abstractmethod
    def epoch(self, epoch: int, position: Mapping[str, Any] | None = None) -> Iterator[Batch]:
        """The steps of an epoch from a position on that an earlier batch told; from its beginning by default."""

    def holds(self, position: Mapping[str, Any]) -> bool:
        """Whether an epoch has anything at a position and behind it."""
        return True

    def slot(self, number: int) -> range:
        """Which of the rows of a step this rank's micro-batch of this number takes: micro-batches of all ranks follow
        each other in the order (micro-batch, rank)."""
        first = (number * self.world.size + self.world.rank) * self.micro_batch_size
        return range(first, first + self.micro_batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)


class DataLoader(Loader):
    """Hands out, for one rank, the micro-batches of each optimizer step.

    The rows of an epoch are in an order drawn from (seed, epoch). A step takes the next G rows of that order, with
    G = micro_batch_size * accumulation * ranks; they fill the slots (micro-batch, rank) one after the other. The last
    step takes what is left, unless ``drop_last``. A position is the number of rows that were handed out, so that
    another number of ranks goes on with the next row.

    Args:
        rows: prepared rows.
        collate: from a list of rows to the tensors of a micro-batch.
        micro_batch_size: rows in a micro-batch.
        accumulation: micro-batches of a rank in an optimizer step.
        world: this rank among all.
        seed: of the order; None keeps the order of the rows.
        num_workers: processes that collate ahead; 0 collates in this one.
        drop_last: leave out a last step that is not full.
        pin_memory: collate into page-locked memory, for a device that copies from it.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Collate,
        *,
        micro_batch_size: int,
        accumulation: int = 1,
        world: World | None = None,
        seed: int | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(micro_batch_size=micro_batch_size, accumulation=accumulation, world=world)
        self.rows = rows
        self.collate = collate
        self.seed = seed
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        return self._steps_from(0)

    @property
    def steps_per_epoch(self) -> int:
        return len(self)

    def epoch(self, epoch: int, position: Mapping[str, Any] | None = None) -> Iterator[Batch]:
        import torch.utils.data

        start = self._start(position or {})
        steps = self._steps_from(start)
        slots = _Slots(self, self.order(epoch)[start:])
        total = steps * self.accumulation
        num_workers = self.num_workers if total and _CAN_FORK else 0

        def begun(born: Callable[[], None]) -> Iterator[Any]:
            def begin(worker: int) -> None:
                _work_quietly(worker)
                born()

            loader = torch.utils.data.DataLoader(
                slots,
                batch_size=None,
                sampler=range(total),
                num_workers=num_workers,
                multiprocessing_context="fork" if num_workers else None,
                pin_memory=self.pin_memory,
                worker_init_fn=begin,
                generator=self._generator(epoch),  # its own, or each pass would draw from training's random numbers
            )
            return iter(loader)

        micro_batches = started(begun, num_workers, _end_workers)
        for step in range(1, steps + 1):
            row = min(start + step * self.global_batch_size, len(self.rows))
            step_slots = [next(micro_batches) for _ in range(self.accumulation)]
            yield Batch(step_slots, {"row": row}, row / len(self.rows), step == steps)

    def holds(self, position: Mapping[str, Any]) -> bool:
        return self._steps_from(self._start(position)) > 0

    def order(self, epoch: int) -> np.ndarray:
        """The row numbers of an epoch in the order in which they are trained on."""
        import numpy as np

        if self.seed is None:
            return np.arange(len(self.rows))
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.rows))

    def _start(self, position: Mapping[str, Any]) -> int:
        if position and "row" not in position:
            raise other_position("prepared rows")
        return int(position.get("row", 0))

    def _steps_from(self, row: int) -> int:
        full, rest = divmod(max(0, len(self.rows) - row), self.global_batch_size)
        return full + (rest > 0 and not self.drop_last)

    def _generator(self, epoch: int) -> torch.Generator:
        """Seeds the workers, for a ``collate`` that draws: other numbers in each epoch and on each rank."""
        import torch

        seed = ((self.seed or 0) * 1_000_003 + epoch) * self.world.size + self.world.rank
        return torch.Generator().manual_seed(seed % 2**63)


def _work_quietly(worker: int) -> None:
    leave_signals_alone()


def _end_workers(micro_batches: Any) -> None:
    """End all workers of a pass, also those that were not born."""
    workers = list(micro_batches._workers)
    micro_batches._shutdown_workers()  # from here on torch does not take their end for a fault
    for worker in workers:
        with contextlib.suppress(ValueError):  # closed already
            if worker.is_alive():
                worker.kill()
            worker.join()


class _Slots:
    """The micro-batches of one rank in the rest of an epoch, by number."""

    def __init__(self, loader: DataLoader, order: np.ndarray) -> None:
        self.loader = loader
        self.order = order

    def __len__(self) -> int:
        return -(-len(self.order) // self.loader.global_batch_size) * self.loader.accumulation

    def __getitem__(self, number: int) -> MicroBatch:
        slot = self.loader.slot(number)
        numbers = self.order[slot.start : slot.stop].tolist()
        rows = [self.loader.rows[row] for row in numbers]
        return micro_batch(self.loader.collate, rows, numbers, spare=lambda: self.loader.rows[int(self.order[0])])


def other_position(kind: str) -> DataError:
    """The error for a position that a loader of another kind told."""
    return DataError(
        f"the position to go on from is none of {kind}: data.streaming is another than when it was written",
        remedy="go on with the data section that the run began with, or start a new run",
    )


def micro_batch(collate: Collate, rows: Sequence[Any], numbers: Sequence[int], spare: Callable[[], Any]) -> MicroBatch:
    """The tensors of rows; without any, those of a spare row that nothing is trained on, so that this rank keeps in
    step with the others."""
    if rows:
        return MicroBatch(collate(list(rows)), numbers, sum(_num_tokens(row) for row in rows))
    tensors = collate([spare()])
    if "labels" in tensors:
        tensors["labels"] = tensors["labels"].fill_(IGNORE_INDEX)
    return MicroBatch(tensors, [])


def _num_tokens(row: Any) -> int:
    ids = row.get("input_ids") if isinstance(row, Mapping) else None
    return len(ids) if ids is not None else 0
