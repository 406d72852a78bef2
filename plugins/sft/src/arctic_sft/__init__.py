"""Supervised fine-tuning on chats: the trainer ``sft`` and the data factory ``sft``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training.lazy_names import lazy_names

if TYPE_CHECKING:
    from arctic_sft.data import SFTDataConfig as SFTDataConfig
    from arctic_sft.data import SFTDataFactory as SFTDataFactory
    from arctic_sft.trainer import SFTTrainer as SFTTrainer
    from arctic_sft.trainer import SFTTrainerConfig as SFTTrainerConfig

MODULES = {
    "SFTDataConfig": "data",
    "SFTDataFactory": "data",
    "SFTTrainer": "trainer",
    "SFTTrainerConfig": "trainer",
}
__all__ = sorted(MODULES)
__getattr__, __dir__ = lazy_names(__name__, MODULES)
