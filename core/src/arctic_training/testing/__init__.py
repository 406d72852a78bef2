"""The plugin author's kit: a pytest plugin with fixtures, tiny components that need no network, and contract classes.

Installing ``arctic-core`` makes the fixtures available in pytest; see ``arctic_training.testing.plugin``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_training.testing.recorder import HookRecorder as HookRecorder

_NAMES = {
    "HookRecorder": "arctic_training.testing.recorder",
    "TinyDataFactory": "arctic_training.testing.tiny",
    "TinyModelFactory": "arctic_training.testing.tiny",
    "TinySource": "arctic_training.testing.tiny",
    "TinyTokenizerFactory": "arctic_training.testing.tiny",
    "TinyTrainer": "arctic_training.testing.tiny",
    "TrainerContract": "arctic_training.testing.contracts.training",
    "EngineContract": "arctic_training.testing.contracts.training",
    "CheckpointEngineContract": "arctic_training.testing.contracts.training",
    "DataSourceContract": "arctic_training.testing.contracts.data",
    "DataFactoryContract": "arctic_training.testing.contracts.data",
    "TokenizerFactoryContract": "arctic_training.testing.contracts.stages",
    "ModelFactoryContract": "arctic_training.testing.contracts.stages",
    "LossFactoryContract": "arctic_training.testing.contracts.stages",
    "OptimizerFactoryContract": "arctic_training.testing.contracts.stages",
    "SchedulerFactoryContract": "arctic_training.testing.contracts.stages",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
