"""The resumable dataloader: which rows each rank sees in each optimizer step, as a function of seed, epoch and
position.

Every rank runs the same number of micro-batches in every step, so that no collective ever waits for a rank that has no
rows left: a slot without rows repeats a row with nothing to train on, and counts for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arctic_training.distributed import World
from arctic_training.loss import IGNORE_INDEX

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

    def __init__(self, tensors: Mapping[str, torch.Tensor], rows: Sequence[int], num_tokens: int = 0) -> None:
        super().__init__(tensors)
        self.rows = list(rows)
        self.num_tokens = num_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return MicroBatch, (dict(self), self.rows, self.num_tokens)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device; entries that are not tensors stay as they are."""
        moved = {
            name: value.to(device, non_blocking=True) if hasattr(value, "to") else value for name, value in self.items()
        }
        return self.with_tensors(**moved)

    def with_tensors(self, **tensors: torch.Tensor) -> MicroBatch:
        """The same with some entries replaced."""
        batch = MicroBatch({**self, **tensors}, self.rows, self.num_tokens)
        batch.weight = self.weight
        return batch


class DataLoader:
    """Hands out, for one rank, the micro-batches of each optimizer step.

    The rows of an epoch are in an order drawn from (seed, epoch). Step s takes rows [s * G, (s + 1) * G) of that
    order, with G = micro_batch_size * accumulation * ranks; they fill the slots (micro-batch, rank) one after the
    other. The last step takes what is left, unless ``drop_last``.

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
        self.rows = rows
        self.collate = collate
        self.micro_batch_size = micro_batch_size
        self.accumulation = accumulation
        self.world = world or World()
        self.seed = seed
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.pin_memory = pin_memory

    @property
    def global_batch_size(self) -> int:
        """Rows in a full optimizer step, over all ranks."""
        return self.micro_batch_size * self.accumulation * self.world.size

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        full, rest = divmod(len(self.rows), self.global_batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[MicroBatch]]:
        """The steps of an epoch from step ``start`` on, each a list of ``accumulation`` micro-batches."""
        import torch.utils.data

        slots = _Slots(self, self.order(epoch))
        total = len(self) * self.accumulation
        loader: Any = torch.utils.data.DataLoader(
            slots,
            batch_size=None,
            sampler=range(start * self.accumulation, total),
            num_workers=self.num_workers if total and _CAN_FORK else 0,
            multiprocessing_context="fork" if self.num_workers and total and _CAN_FORK else None,
            pin_memory=self.pin_memory,
            generator=self._generator(epoch),  # its own, or each pass would draw from the random numbers of training
        )
        step: list[MicroBatch] = []
        for micro_batch in loader:
            step.append(micro_batch)
            if len(step) == self.accumulation:
                yield step
                step = []

    def order(self, epoch: int) -> np.ndarray:
        """The row numbers of an epoch in the order in which they are trained on."""
        import numpy as np

        if self.seed is None:
            return np.arange(len(self.rows))
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.rows))

    def _generator(self, epoch: int) -> torch.Generator:
        """Seeds the workers, for a ``collate`` that draws: other numbers in each epoch and on each rank."""
        import torch

        seed = ((self.seed or 0) * 1_000_003 + epoch) * self.world.size + self.world.rank
        return torch.Generator().manual_seed(seed % 2**63)


class _Slots:
    """The micro-batches of one rank in one epoch, by number."""

    def __init__(self, loader: DataLoader, order: np.ndarray) -> None:
        self.loader = loader
        self.order = order

    def __len__(self) -> int:
        return len(self.loader) * self.loader.accumulation

    def __getitem__(self, slot: int) -> MicroBatch:
        loader = self.loader
        # Slots of all ranks in the order (step, micro-batch, rank).
        first = (slot * loader.world.size + loader.world.rank) * loader.micro_batch_size
        numbers = [int(number) for number in self.order[first : first + loader.micro_batch_size]]
        if numbers:
            rows = [loader.rows[number] for number in numbers]
            return MicroBatch(loader.collate(rows), numbers, sum(_num_tokens(row) for row in rows))
        tensors = loader.collate([loader.rows[int(self.order[0])]])
        if "labels" in tensors:
            tensors["labels"] = tensors["labels"].fill_(IGNORE_INDEX)
        return MicroBatch(tensors, [])


def _num_tokens(row: Any) -> int:
    ids = row.get("input_ids") if isinstance(row, Mapping) else None
    return len(ids) if ids is not None else 0
