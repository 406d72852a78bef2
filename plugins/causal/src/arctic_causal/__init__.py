"""Training on plain text: the trainer, the data factory and the source of texts, imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_causal.data import CausalDataConfig as CausalDataConfig
    from arctic_causal.data import CausalDataFactory as CausalDataFactory
    from arctic_causal.source import HFCausalDataSource as HFCausalDataSource
    from arctic_causal.trainer import CausalTrainer as CausalTrainer
    from arctic_causal.trainer import CausalTrainerConfig as CausalTrainerConfig

_MODULES = {
    "CausalDataConfig": "arctic_causal.data",
    "CausalDataFactory": "arctic_causal.data",
    "CausalTrainer": "arctic_causal.trainer",
    "CausalTrainerConfig": "arctic_causal.trainer",
    "HFCausalDataSource": "arctic_causal.source",
}

__all__ = ["CausalDataConfig", "CausalDataFactory", "CausalTrainer", "CausalTrainerConfig", "HFCausalDataSource"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
