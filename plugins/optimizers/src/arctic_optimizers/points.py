"""The points of schedule-free training, in a module of its own so that the plugin loads without anything heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arctic_training.trainer import Trainer


def use(point: str, trainer: Trainer) -> None:
    """Let the model hold this point (``average`` or ``training_point``), where the optimizer has two."""
    if change := getattr(trainer.optimizer, f"use_{point}", None):
        change()
        trainer.engine.update_model()
