"""Bradley-Terry reward models: trainer, data and model factory ``reward``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_reward.data import RewardDataConfig as RewardDataConfig
    from arctic_reward.data import RewardDataFactory as RewardDataFactory
    from arctic_reward.model import RewardModelConfig as RewardModelConfig
    from arctic_reward.model import RewardModelFactory as RewardModelFactory
    from arctic_reward.trainer import RewardTrainer as RewardTrainer
    from arctic_reward.trainer import RewardTrainerConfig as RewardTrainerConfig

_MODULES = {
    "RewardDataConfig": "arctic_reward.data",
    "RewardDataFactory": "arctic_reward.data",
    "RewardModelConfig": "arctic_reward.model",
    "RewardModelFactory": "arctic_reward.model",
    "RewardTrainer": "arctic_reward.trainer",
    "RewardTrainerConfig": "arctic_reward.trainer",
}

__all__ = [
    "RewardDataConfig",
    "RewardDataFactory",
    "RewardModelConfig",
    "RewardModelFactory",
    "RewardTrainer",
    "RewardTrainerConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
