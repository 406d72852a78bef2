"""Kahneman-Tversky optimisation: the trainer ``kto`` and the data factory ``kto``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training.lazy_names import lazy_names

if TYPE_CHECKING:
    from arctic_kto.data import KTODataConfig as KTODataConfig
    from arctic_kto.data import KTODataFactory as KTODataFactory
    from arctic_kto.trainer import KTOTrainer as KTOTrainer
    from arctic_kto.trainer import KTOTrainerConfig as KTOTrainerConfig

MODULES = {
    "KTODataConfig": "data",
    "KTODataFactory": "data",
    "KTOTrainer": "trainer",
    "KTOTrainerConfig": "trainer",
}
__all__ = sorted(MODULES)
__getattr__, __dir__ = lazy_names(__name__, MODULES)
