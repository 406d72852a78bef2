"""Kahneman-Tversky optimisation: the trainer ``kto`` and the data factory ``kto``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_kto.data import KTODataConfig as KTODataConfig
    from arctic_kto.data import KTODataFactory as KTODataFactory
    from arctic_kto.trainer import KTOTrainer as KTOTrainer
    from arctic_kto.trainer import KTOTrainerConfig as KTOTrainerConfig

_MODULES = {
    "KTODataConfig": "arctic_kto.data",
    "KTODataFactory": "arctic_kto.data",
    "KTOTrainer": "arctic_kto.trainer",
    "KTOTrainerConfig": "arctic_kto.trainer",
}

__all__ = ["KTODataConfig", "KTODataFactory", "KTOTrainer", "KTOTrainerConfig"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
