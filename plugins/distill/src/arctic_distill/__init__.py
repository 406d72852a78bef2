"""Distillation: the trainer ``distill`` and the data factory ``distill``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_distill.data import DistillDataConfig as DistillDataConfig
    from arctic_distill.data import DistillDataFactory as DistillDataFactory
    from arctic_distill.trainer import DistillTrainer as DistillTrainer
    from arctic_distill.trainer import DistillTrainerConfig as DistillTrainerConfig

_MODULES = {
    "DistillDataConfig": "arctic_distill.data",
    "DistillDataFactory": "arctic_distill.data",
    "DistillTrainer": "arctic_distill.trainer",
    "DistillTrainerConfig": "arctic_distill.trainer",
}

__all__ = ["DistillDataConfig", "DistillDataFactory", "DistillTrainer", "DistillTrainerConfig"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
