"""The optimizer factory ``schedule_free``: AdamW that averages instead of lowering its rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from arctic_training.optimizer import OptimizerConfig, OptimizerFactory

if TYPE_CHECKING:
    import torch


class ScheduleFreeConfig(OptimizerConfig):
    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if not self.betas[0]:
            yield "betas", "the first is the weight of the average in the point that is trained, and must be above 0"


class ScheduleFreeFactory(OptimizerFactory):
    """Schedule-free AdamW (Defazio et al., 2024, arXiv:2405.15682), elementwise, so that any engine may divide it."""

    name = "schedule_free"
    config: ScheduleFreeConfig

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        from arctic_optimizers.schedule_free_step import ScheduleFreeAdamW

        schedule = getattr(self.run.config.scheduler, "schedule", "constant")
        if not schedule.startswith("constant"):
            self.run.warn(f"schedule_free needs no falling rate: name constant_with_warmup, not {schedule}")
        return ScheduleFreeAdamW(self.parameter_groups(model), lr=self.config.learning_rate, betas=self.config.betas)
