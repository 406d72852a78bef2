"""Evaluation: every row once, on all ranks, weighted by trained tokens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from arctic_training.distributed import sum_over_ranks
from arctic_training.errors import ArcticError
from arctic_training.loss import Figures, LossSum, per_unit, trained_tokens
from arctic_training.retention import refuse_unknown_figure
from arctic_training.state import random_state, restore_random_state

if TYPE_CHECKING:
    import torch

    from arctic_training.dataloader import Loader, MicroBatch
    from arctic_training.state import Metrics
    from arctic_training.trainer import Trainer


def evaluate(trainer: Trainer) -> Metrics:
    """The loss over all rows of each set of evaluation data, in nats per unit of weight (trained token).

    The model is left in training mode, the random numbers of training untouched.

    Returns:
        The figures of the only set; of several sets, those over all of their rows, with ``sets`` for each by its name.

    Raises:
        ArcticError: there is nothing to evaluate on.
        RecipeError: checkpoints are kept by a figure that is not among them.
    """
    if not trainer.eval_dataloaders:
        raise ArcticError("there is nothing to evaluate on", remedy="give data.eval_sources and eval_interval")
    numbers = random_state()
    trainer.model.eval()
    records, totals, figures = {}, [], []
    for name, loader in trainer.eval_dataloaders.items():
        trainer.hook.arctic_evaluate_start(trainer=trainer)
        started = time.perf_counter()
        total, measured = _total(trainer, loader)
        records[name] = _record(trainer, name, total, time.perf_counter() - started) | per_unit(measured)
        totals.append(total)
        figures.append(measured)
        trainer.hook.arctic_evaluate_end(metrics=records[name], trainer=trainer)
        trainer.run.log_metrics(records[name], trainer.state.step)
    trainer.model.train()
    restore_random_state(numbers)
    trainer.run.last_evaluation_step = trainer.state.step
    trainer.run.last_evaluation = records
    for engine in trainer.checkpoint_engines:
        refuse_unknown_figure(records, engine.config, trainer.run.config.recipe)
    if len(records) == 1:
        return next(iter(records.values()))
    seconds = sum(record["seconds"] for record in records.values())
    record = _record(trainer, "all", sum(totals[1:], totals[0]), seconds) | per_unit(_added(figures))
    return record | {"sets": records}


def _total(trainer: Trainer, loader: Loader) -> tuple[torch.Tensor, dict[str, tuple[float, float]]]:
    """Loss, weight, rows, tokens and trained tokens of a set, and what its losses measure besides, over all ranks."""
    import torch

    totals, figures = torch.zeros(5, dtype=torch.float64), Figures()
    with torch.no_grad():
        trainer.before_losses(micro_batch for (micro_batch,) in loader.epoch(0))
        for (micro_batch,) in loader.epoch(0):
            totals += _totals_of(trainer, micro_batch.to(trainer.device), figures)
    return sum_over_ranks(totals, trainer.device).cpu(), figures.over_ranks(trainer.device)


def _added(figures: list[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """The figures of several sets as those of one."""
    added: dict[str, tuple[float, float]] = {}
    for measured in figures:
        for name, (total, number) in measured.items():
            before = added.get(name, (0.0, 0.0))
            added[name] = (before[0] + total, before[1] + number)
    return added


def _record(trainer: Trainer, name: str, totals: torch.Tensor, seconds: float) -> Metrics:
    loss, weight, rows, tokens, trained = totals.tolist()
    return {
        "kind": "eval",
        "step": trainer.state.step,
        "name": name,
        "loss": loss / weight if weight else None,
        "loss_weight": weight,
        "rows": int(rows),
        "tokens": int(tokens),
        "trained_tokens": int(trained),
        "seconds": seconds,
    }


def _totals_of(trainer: Trainer, batch: MicroBatch, figures: Figures) -> torch.Tensor:
    import torch

    counted = trainer.loss_weight(batch)  # before the loss, which may take the labels out of the batch
    trained = float(trained_tokens(batch)) if "labels" in batch else 0.0
    loss = trainer.hook.arctic_compute_loss(batch=batch, trainer=trainer)
    if isinstance(loss, LossSum):
        figures.add(loss, counts=bool(batch.rows))
    if not batch.rows:  # only here to keep this rank in step with the others
        return torch.zeros(5, dtype=torch.float64)
    weight = float(loss.weight) if isinstance(loss, LossSum) else float(counted)
    total = float(loss.sum) if isinstance(loss, LossSum) else float(loss) * weight if weight else 0.0
    return torch.tensor([total, weight, len(batch.rows), batch.num_tokens, trained], dtype=torch.float64)
