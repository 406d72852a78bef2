"""Losses of one row that depend on what the model makes of all other rows of a step, at the memory of one micro-batch.

All micro-batches go through the model once without gradients, and the gradient of the loss over all rows with respect
to what came out is computed. Then each micro-batch goes through the model again, with the random numbers of its first
pass, so that dropout is the same, and passes its part of that gradient on (Gao et al. 2021, arXiv:2101.06983). A step
is the same for every split into micro-batches and ranks.

Shapes: T lines of all rows (a row has one or several), D units of a vector, R rows that are measured together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from arctic_training.distributed import gather_objects, rows_of_ranks, sum_over_ranks
from arctic_training.loss import LossSum
from arctic_training.state import random_state, restore_random_state

if TYPE_CHECKING:
    import torch

    from arctic_training.dataloader import MicroBatch
    from arctic_training.trainer import Trainer

ROWS_AT_ONCE = 1024
"""Rows that are measured together against all lines."""

Measure = Callable[["torch.Tensor", Mapping[str, "torch.Tensor"], range], "torch.Tensor"]


class _Share(NamedTuple):
    """What a micro-batch has of the step: the random numbers of its first pass, the gradient of the summed loss with
    respect to its vectors, and what was measured of its rows."""

    random_state: dict[str, Any]
    gradient_TD: torch.Tensor
    measured: torch.Tensor


class GradientCache:
    """Computes the losses of a trainer whose ``before_losses`` calls ``fill`` and whose ``loss`` returns ``loss``.

    The weight of a loss is its number of rows, as the trainer's ``loss_weight`` has to count too.

    Args:
        trainer: the trainer.
        vectors: from a micro-batch on the device to a vector of each of its lines, of shape (lines, D).
        measure: from the vectors of the lines of all ranks, of shape (T, D), what ``columns`` of micro-batches hold of
            each line, and the numbers of some rows, to a tensor of shape (R, 1 + figures): the loss of each of these
            rows, which has a gradient, and its figures.
        figures: their names.
    """

    def __init__(
        self, trainer: Trainer, vectors: Callable[[MicroBatch], torch.Tensor], measure: Measure, figures: Sequence[str]
    ) -> None:
        self.trainer = trainer
        self.vectors = vectors
        self.measure = measure
        self.figures = list(figures)
        self._shares: dict[tuple[int, ...], _Share] = {}
        self._filled_for: tuple[int, bool] | None = None

    def fill(self, batches: Iterable[MicroBatch]) -> None:
        """Send all micro-batches through the model whose losses belong together."""
        import torch

        trains = torch.is_grad_enabled()
        seen: list[tuple[tuple[int, ...], dict[str, Any], torch.Tensor]] = []
        columns: list[Mapping[str, torch.Tensor]] = []
        with torch.no_grad():
            for batch in batches:
                state = random_state() if trains else {}
                batch = batch.to(self.trainer.device)
                vectors = self.vectors(batch)
                kept = len(vectors) if batch.rows else 0  # the others keep this rank in step
                seen.append((tuple(batch.rows), state, vectors[:kept]))
                columns.append({name: values[:kept] for name, values in batch.columns.items()})
        mine = {name: torch.cat([each[name] for each in columns]) for name in columns[0]}
        rows = sum(len(numbers) for numbers, *_ in seen)
        gradient_TD, measured = self._measured(torch.cat([vectors for *_, vectors in seen]), mine, rows, trains)
        self._shares, self._filled_for = {}, (self.trainer.state.step, trains)
        line = row = 0
        for numbers, state, vectors in seen:
            gradient = gradient_TD[line : line + len(vectors)] if numbers else gradient_TD.new_zeros(1, 1)
            self._shares[numbers] = _Share(state, gradient, measured[row : row + len(numbers)])
            line, row = line + len(vectors), row + len(numbers)

    def loss(self, batch: MicroBatch) -> LossSum:
        """A micro-batch's part of the loss over all rows that ``fill`` saw; without it, of the loss over its own rows.

        Its value is the sum of the losses of its rows, its gradient that of the loss over all rows.
        """
        import torch

        trains, numbers = torch.is_grad_enabled(), tuple(batch.rows)
        if self._filled_for != (self.trainer.state.step, trains) or numbers not in self._shares:
            self.fill([batch])
        share = self._shares[numbers]
        total = share.measured[:, 0].sum()
        if trains:
            restore_random_state(share.random_state)
            surrogate = (self.vectors(batch) * share.gradient_TD).sum()
            total = total + surrogate - surrogate.detach()
        sums = share.measured[:, 1:].sum(0)
        weight = float(len(numbers))
        return LossSum(total, weight).with_figures(
            {name: (value, weight) for name, value in zip(self.figures, sums, strict=True)}
        )

    def _measured(
        self, mine_TD: torch.Tensor, columns: Mapping[str, torch.Tensor], rows: int, trains: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient with respect to this rank's vectors, and what is measured of its rows. Each rank measures its
        own rows against the lines of all, and the gradients are added up."""
        import torch

        of_ranks = rows_of_ranks(mine_TD)
        rank = self.trainer.global_rank if len(of_ranks) > 1 else 0
        all_columns = {name: torch.cat(rows_of_ranks(values)) for name, values in sorted(columns.items())}
        first_row = sum(gather_objects(rows)[:rank])
        first_line = sum(len(vectors) for vectors in of_ranks[:rank])
        all_TD = torch.cat(of_ranks).requires_grad_(trains)
        gradient_TD = torch.zeros_like(all_TD)
        measured = [all_TD.new_zeros(0, 1 + len(self.figures))]
        for begin in range(first_row, first_row + rows, ROWS_AT_ONCE):
            part = self.measure(all_TD, all_columns, range(begin, min(begin + ROWS_AT_ONCE, first_row + rows)))
            if trains:
                gradient_TD += torch.autograd.grad(part[:, 0].sum(), all_TD)[0]
            measured.append(part.detach())
        gradient_TD = sum_over_ranks(gradient_TD.detach(), self.trainer.device)
        return gradient_TD[first_line : first_line + len(mine_TD)], torch.cat(measured)
