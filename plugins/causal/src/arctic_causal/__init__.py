"""Training on plain text: the trainer, the data factory and the source of texts, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training.lazy_names import lazy_names

if TYPE_CHECKING:
    from arctic_causal.data import CausalDataConfig as CausalDataConfig
    from arctic_causal.data import CausalDataFactory as CausalDataFactory
    from arctic_causal.source import HFCausalDataSource as HFCausalDataSource
    from arctic_causal.trainer import CausalTrainer as CausalTrainer
    from arctic_causal.trainer import CausalTrainerConfig as CausalTrainerConfig

MODULES = {
    "CausalDataConfig": "data",
    "CausalDataFactory": "data",
    "CausalTrainer": "trainer",
    "CausalTrainerConfig": "trainer",
    "HFCausalDataSource": "source",
}
__all__ = sorted(MODULES)
__getattr__, __dir__ = lazy_names(__name__, MODULES)
