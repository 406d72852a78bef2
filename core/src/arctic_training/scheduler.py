"""The scheduler stage: what a scheduler factory is, and core's own, a constant rate."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_training.component import Component
from arctic_training.config import ComponentConfig

if TYPE_CHECKING:
    import torch


class SchedulerConfig(ComponentConfig):
    kind: ClassVar[str] = "scheduler"


class SchedulerFactory(Component):
    """Builds the schedule of the learning rate. Schedules count optimizer steps, whatever the engine."""

    kind = "scheduler"
    config: SchedulerConfig

    @abstractmethod
    def create_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """An object with ``step()``, ``state_dict()`` and ``load_state_dict()``.

        ``self.training_horizon`` is the number of optimizer steps that the run will take.
        """

    @property
    def training_horizon(self) -> int:
        """Optimizer steps that the run will take."""
        return self.trainer.training_horizon


class ConstantSchedulerFactory(SchedulerFactory):
    """The recipe's learning rate in every step."""

    name = "constant"

    def create_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        import torch

        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
