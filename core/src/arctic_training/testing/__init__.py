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
    "ModelFactoryContract": "arctic_training.testing.contracts",
    "OptimizerFactoryContract": "arctic_training.testing.contracts",
    "SchedulerFactoryContract": "arctic_training.testing.contracts",
    "TrainerContract": "arctic_training.testing.contracts",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
