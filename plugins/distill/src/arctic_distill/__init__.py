"""Distillation: the trainer ``distill`` and the data factory ``distill``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training.lazy_names import lazy_names

if TYPE_CHECKING:
    from arctic_distill.data import DistillDataConfig as DistillDataConfig
    from arctic_distill.data import DistillDataFactory as DistillDataFactory
    from arctic_distill.trainer import DistillTrainer as DistillTrainer
    from arctic_distill.trainer import DistillTrainerConfig as DistillTrainerConfig

MODULES = {
    "DistillDataConfig": "data",
    "DistillDataFactory": "data",
    "DistillTrainer": "trainer",
    "DistillTrainerConfig": "trainer",
}
__all__ = sorted(MODULES)
__getattr__, __dir__ = lazy_names(__name__, MODULES)
