"""What the dpo plugin offers to Arctic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components
    from arctic_training.trainer import Trainer


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("dpo", "arctic_dpo.trainer:DPOTrainer")
    components.data("dpo", "arctic_dpo.data:DPODataFactory")


@hookimpl
def arctic_checkpoint_state(trainer: Trainer) -> dict[str, Any] | None:
    from arctic_dpo.trainer import DPOTrainer

    return {"rewards": list(trainer.rewards)} if isinstance(trainer, DPOTrainer) else None


@hookimpl
def arctic_after_load(path: str, state: dict[str, Any], trainer: Trainer) -> None:
    from arctic_dpo.trainer import DPOTrainer

    if isinstance(trainer, DPOTrainer) and "dpo" in state:
        trainer.rewards = tuple(state["dpo"]["rewards"])
