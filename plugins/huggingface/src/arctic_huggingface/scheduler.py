"""The scheduler factory ``huggingface``: the learning-rate schedules of transformers, counted in optimizer steps."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from arctic_training.config import key
from arctic_training.errors import RecipeError
from arctic_training.scheduler import SchedulerConfig, SchedulerFactory
from arctic_training.wording import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

WSD = "warmup_stable_decay"
_MIN_LR = ("num_cycles", "min_lr", "min_lr_rate")
SPECIFIC_KWARGS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": _MIN_LR,
    "cosine_warmup_with_min_lr": (*_MIN_LR, "warmup_lr_rate"),
    WSD: ("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
}
"""The schedules, and what ``scheduler_specific_kwargs`` may hold for each. Written out, so that a recipe is validated
without transformers. Its schedules that follow a metric instead of the step are left out."""

ALIASES = {"wsd": WSD, "wds": WSD}
Name = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "wsd", "wds",
]  # fmt: skip


class HFSchedulerConfig(SchedulerConfig):
    name: Name = key("linear", doc="Shape of the schedule; wsd (or wds) stands for warmup_stable_decay.")
    warmup_ratio: float = key(
        0.1, ge=0, le=1, doc="Fraction of the optimizer steps that warm up, rounded up to whole steps."
    )
    warmup_steps: int | None = key(None, ge=0, doc="Optimizer steps that warm up, instead of warmup_ratio.")
    scheduler_specific_kwargs: dict[str, Any] = key(
        factory=dict,
        doc="Further arguments of the schedule, by its names in transformers. warmup_stable_decay decays over the last "
        "tenth of the steps unless num_decay_steps says otherwise.",
    )

    @property
    def schedule(self) -> str:
        """The schedule's name in transformers."""
        return ALIASES.get(self.name, self.name)

    def check(self) -> Iterator[tuple[str, str]]:
        allowed = SPECIFIC_KWARGS[self.schedule]
        for name in self.scheduler_specific_kwargs:
            if name not in allowed:
                hint = nearest(name, allowed) or (f"it takes {', '.join(allowed)}" if allowed else "it takes none")
                yield "scheduler_specific_kwargs", f"the schedule {self.name!r} has no argument {name!r}; {hint}"
        if self.warmup_steps is not None and "warmup_ratio" in self.given:
            yield "warmup_steps", "contradicts warmup_ratio: give one of them"
        for name in ("warmup_ratio", "warmup_steps"):
            if self.schedule == "constant" and name in self.given and getattr(self, name):
                yield name, "has no effect on the schedule 'constant': name constant_with_warmup"
        if self.schedule.endswith("min_lr") and not {"min_lr", "min_lr_rate"} & set(self.scheduler_specific_kwargs):
            yield "scheduler_specific_kwargs", f"the schedule {self.name!r} needs min_lr or min_lr_rate"


class HFSchedulerFactory(SchedulerFactory):
    """A schedule of transformers over the run's optimizer steps."""

    name: ClassVar[str] = "huggingface"
    config: HFSchedulerConfig

    def create_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """The schedule: ``scheduler_specific_kwargs`` on top of ``num_warmup_steps`` and ``training_horizon``."""
        from transformers import get_scheduler

        horizon = self.training_horizon
        arguments = dict(self.config.scheduler_specific_kwargs)
        if self.config.schedule == WSD and "num_decay_steps" not in arguments:
            arguments["num_decay_steps"] = share_of_steps(0.1, horizon)
        if (self.config.warmup_steps or 0) > self.num_warmup_steps:
            self.run.warn(
                f"scheduler: a warm-up of {self.config.warmup_steps} steps does not fit into {horizon}: it takes "
                f"{self.num_warmup_steps}"
            )
        try:
            return get_scheduler(
                self.config.schedule,
                optimizer,
                num_warmup_steps=self.num_warmup_steps,
                num_training_steps=horizon,
                scheduler_specific_kwargs=arguments,
            )
        except (ValueError, TypeError) as error:
            recipe = self.run.config.recipe
            raise RecipeError(recipe.problem(("scheduler", "scheduler_specific_kwargs"), str(error))) from error

    @property
    def num_warmup_steps(self) -> int:
        """Optimizer steps that warm up; never all, or a run of one step would train at a rate of 0."""
        steps = self.config.warmup_steps
        if steps is None:
            steps = share_of_steps(self.config.warmup_ratio, self.training_horizon)
        return min(steps, self.training_horizon - 1)


def share_of_steps(ratio: float, steps: int) -> int:
    """``ratio`` of the steps, rounded up; exact, so that a tenth of 30 is 3, though 0.1 * 30 is above 3 in binary."""
    return math.ceil(Fraction(str(ratio)) * steps)
