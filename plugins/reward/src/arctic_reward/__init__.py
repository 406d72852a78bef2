"""Bradley-Terry reward models: trainer, data and model factory ``reward``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training.lazy_names import lazy_names

if TYPE_CHECKING:
    from arctic_reward.data import RewardDataConfig as RewardDataConfig
    from arctic_reward.data import RewardDataFactory as RewardDataFactory
    from arctic_reward.model import RewardModelConfig as RewardModelConfig
    from arctic_reward.model import RewardModelFactory as RewardModelFactory
    from arctic_reward.trainer import RewardTrainer as RewardTrainer
    from arctic_reward.trainer import RewardTrainerConfig as RewardTrainerConfig

MODULES = {
    "RewardDataConfig": "data",
    "RewardDataFactory": "data",
    "RewardModelConfig": "model",
    "RewardModelFactory": "model",
    "RewardTrainer": "trainer",
    "RewardTrainerConfig": "trainer",
}
__all__ = sorted(MODULES)
__getattr__, __dir__ = lazy_names(__name__, MODULES)
