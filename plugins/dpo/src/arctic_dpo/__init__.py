"""Learning from preferences: the trainer ``dpo`` and the data factory ``dpo``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_dpo.config import DPOTrainerConfig as DPOTrainerConfig
    from arctic_dpo.data import DPODataFactory as DPODataFactory
    from arctic_dpo.trainer import DPOTrainer as DPOTrainer

_MODULES = {"DPODataFactory": "data", "DPOTrainer": "trainer", "DPOTrainerConfig": "config"}
__all__ = ["DPODataFactory", "DPOTrainer", "DPOTrainerConfig"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"arctic_dpo.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
