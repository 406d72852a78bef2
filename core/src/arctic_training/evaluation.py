"""Evaluation: every row once, on all ranks, weighted by trained tokens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from arctic_training.distributed import sum_over_ranks
from arctic_training.errors import ArcticError
from arctic_training.loss import LossSum, trained_tokens
from arctic_training.state import random_state, restore_random_state

if TYPE_CHECKING:
    import torch

    from arctic_training.dataloader import MicroBatch
    from arctic_training.state import Metrics
    from arctic_training.trainer import Trainer


def evaluate(trainer: Trainer, name: str = "eval") -> Metrics:
    """The loss over all rows of the evaluation data, in nats per unit of weight (trained token).

    The model is left in training mode, the random numbers of training untouched.
    """
    import torch

    if trainer.eval_dataloader is None:
        raise ArcticError("there is nothing to evaluate on", remedy="give data.eval_sources and eval_interval")
    trainer.hook.arctic_evaluate_start(trainer=trainer)
    started = time.perf_counter()
    numbers = random_state()
    trainer.model.eval()
    totals = torch.zeros(5, dtype=torch.float64)  # loss, weight, rows, tokens, trained tokens
    with torch.no_grad():
        for (micro_batch,) in trainer.eval_dataloader.epoch(0):
            totals += _totals_of(trainer, micro_batch.to(trainer.device))
    trainer.model.train()
    restore_random_state(numbers)
    loss, weight, rows, tokens, trained = sum_over_ranks(totals, trainer.device).tolist()
    metrics: Metrics = {
        "kind": "eval",
        "step": trainer.state.step,
        "name": name,
        "loss": loss / weight if weight else None,
        "rows": int(rows),
        "tokens": int(tokens),
        "trained_tokens": int(trained),
        "seconds": time.perf_counter() - started,
    }
    trainer.hook.arctic_evaluate_end(metrics=metrics, trainer=trainer)
    trainer.run.last_evaluation_step = trainer.state.step
    trainer.run.log_metrics(metrics, trainer.state.step)
    return metrics


def _totals_of(trainer: Trainer, batch: MicroBatch) -> torch.Tensor:
    import torch

    counted = trainer.loss_weight(batch)  # before the loss, which may take the labels out of the batch
    trained = float(trained_tokens(batch)) if "labels" in batch else 0.0
    loss = trainer.hook.arctic_compute_loss(batch=batch, trainer=trainer)
    if not batch.rows:  # only here to keep this rank in step with the others
        return torch.zeros(5, dtype=torch.float64)
    weight = float(loss.weight) if isinstance(loss, LossSum) else float(counted)
    total = float(loss.sum) if isinstance(loss, LossSum) else float(loss) * weight if weight else 0.0
    return torch.tensor([total, weight, len(batch.rows), batch.num_tokens, trained], dtype=torch.float64)
