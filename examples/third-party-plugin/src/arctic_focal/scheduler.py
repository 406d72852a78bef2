"""The schedule ``cosine_with_floor``: a cosine that ends above zero."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from arctic_training import SchedulerConfig, SchedulerFactory, key

if TYPE_CHECKING:
    import torch


class CosineWithFloorConfig(SchedulerConfig):
    warmup_ratio: float = key(0.1, ge=0, lt=1, doc="Fraction of the optimizer steps that warm up, rounded.")
    floor: float = key(0.1, ge=0, le=1, doc="Share of the peak learning rate at which the cosine ends.")


class CosineWithFloorFactory(SchedulerFactory):
    """Up in a line, down in half a cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983, equation 5)."""

    name = "cosine_with_floor"
    config: CosineWithFloorConfig

    def create_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        import torch

        return torch.optim.lr_scheduler.LambdaLR(optimizer, self.share_of_peak)

    def share_of_peak(self, step: int) -> float:
        """Learning rate of optimizer step ``step``, from 0, as a share of its peak."""
        warmup = round(self.config.warmup_ratio * self.training_horizon)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(self.training_horizon - 1 - warmup, 1), 1.0)
        floor = self.config.floor
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
