"""Supervised fine-tuning on chats: the trainer ``sft`` and the data factory ``sft``, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_sft.data import SFTDataConfig as SFTDataConfig
    from arctic_sft.data import SFTDataFactory as SFTDataFactory
    from arctic_sft.trainer import SFTTrainer as SFTTrainer
    from arctic_sft.trainer import SFTTrainerConfig as SFTTrainerConfig

_MODULES = {
    "SFTDataConfig": "arctic_sft.data",
    "SFTDataFactory": "arctic_sft.data",
    "SFTTrainer": "arctic_sft.trainer",
    "SFTTrainerConfig": "arctic_sft.trainer",
}

__all__ = ["SFTDataConfig", "SFTDataFactory", "SFTTrainer", "SFTTrainerConfig"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
