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


def continue_schedule(scheduler: Any, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Go on with a schedule from a saved position, by the recipe as it is now.

    A schedule of torch keeps its old rates in its state, and the optimizer the rate of the step before. Another
    learning rate or another length in the recipe would reach the second step at the earliest, or none. With an
    unchanged recipe the rates are those that were saved, to the bit.
    """
    import torch

    base_rates = list(getattr(scheduler, "base_lrs", ()))
    if len(state.get("lr_lambdas", base_rates)) != len(base_rates):  # other groups of parameters than before
        state = state | {"lr_lambdas": [None] * len(base_rates)}
    scheduler.load_state_dict(state)
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        scheduler.base_lrs = base_rates
        rates = [
            base * shape(scheduler.last_epoch) for base, shape in zip(base_rates, scheduler.lr_lambdas, strict=True)
        ]
        for group, base, rate in zip(optimizer.param_groups, base_rates, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate
        scheduler._last_lr = rates
