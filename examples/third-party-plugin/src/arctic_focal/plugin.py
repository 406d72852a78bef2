"""What this plugin offers to Arctic: hook implementations and nothing else, so that loading it costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training import hookimpl

if TYPE_CHECKING:
    from collections.abc import Generator

    from arctic_training import Config, Trainer
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("focal", "arctic_focal.trainer:FocalTrainer")
    components.loss("focal", "arctic_focal.stage:FocalLossFactory")
    components.scheduler("cosine_with_floor", "arctic_focal.scheduler:CosineWithFloorFactory")


@hookimpl
def arctic_register_config_sections() -> dict[str, type[Config]]:
    from arctic_focal.config import FocalConfig

    return {"focal": FocalConfig}


@hookimpl(wrapper=True)
def arctic_compute_loss(batch: Any, trainer: Trainer) -> Generator[None, Any, Any]:
    """Add the entropy term to whatever loss the trainer has; evaluation shows the loss without it."""
    weight = trainer.config.sections["focal"].entropy_weight
    if not weight or not trainer.model.training:
        return (yield)
    from arctic_focal.entropy import LogitsOf, with_entropy_reward

    with LogitsOf(trainer.model_unwrapped) as seen:
        loss = yield
    return with_entropy_reward(loss, seen.logits, batch["labels"], weight)


@hookimpl
def arctic_after_save(path: str, step: int, trainer: Trainer) -> None:
    """Note in the run's metrics with which gamma a checkpoint was trained."""
    if trainer.name == "focal":
        trainer.run.event("focal_checkpoint", step=step, path=path, gamma=trainer.config.sections["focal"].gamma)
