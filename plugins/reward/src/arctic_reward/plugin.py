"""What the reward plugin offers to Arctic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("reward", "arctic_reward.trainer:RewardTrainer")
    components.data("reward", "arctic_reward.data:RewardDataFactory")
    components.model("reward", "arctic_reward.model:RewardModelFactory")
