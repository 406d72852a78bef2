"""Learning from preferences: the trainer ``dpo`` and the data factory ``dpo``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training.lazy_names import lazy_names

if TYPE_CHECKING:
    from arctic_dpo.config import DPOTrainerConfig as DPOTrainerConfig
    from arctic_dpo.data import DPODataFactory as DPODataFactory
    from arctic_dpo.trainer import DPOTrainer as DPOTrainer

MODULES = {
    "DPODataFactory": "data",
    "DPOTrainer": "trainer",
    "DPOTrainerConfig": "config",
}
__all__ = sorted(MODULES)
__getattr__, __dir__ = lazy_names(__name__, MODULES)
