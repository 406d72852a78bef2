"""Arctic: post-training of language models, put together from plugins by a recipe.

Names are loaded when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training._exports import EXPORTS, lazy_attribute

if TYPE_CHECKING:
    from arctic_huggingface.model import HFModelFactory as HFModelFactory
    from arctic_huggingface.tokenizer import HFTokenizerFactory as HFTokenizerFactory
    from arctic_sft.data import SFTDataFactory as SFTDataFactory
    from arctic_sft.trainer import SFTTrainer as SFTTrainer
    from arctic_training.api import get_config as get_config
    from arctic_training.checkpoint import CheckpointConfig as CheckpointConfig
    from arctic_training.checkpoint import CheckpointEngine as CheckpointEngine
    from arctic_training.component import register as register
    from arctic_training.config import Config as Config
    from arctic_training.config import key as key
    from arctic_training.data import DataConfig as DataConfig
    from arctic_training.data import DataFactory as DataFactory
    from arctic_training.data import DataSource as DataSource
    from arctic_training.data import SourceConfig as SourceConfig
    from arctic_training.errors import ArcticError as ArcticError
    from arctic_training.hookspecs import hookimpl as hookimpl
    from arctic_training.loss import LossConfig as LossConfig
    from arctic_training.loss import LossFactory as LossFactory
    from arctic_training.loss import LossSum as LossSum
    from arctic_training.model import ModelConfig as ModelConfig
    from arctic_training.model import ModelFactory as ModelFactory
    from arctic_training.optimizer import OptimizerConfig as OptimizerConfig
    from arctic_training.optimizer import OptimizerFactory as OptimizerFactory
    from arctic_training.scheduler import SchedulerConfig as SchedulerConfig
    from arctic_training.scheduler import SchedulerFactory as SchedulerFactory
    from arctic_training.tokenizer import TokenizerConfig as TokenizerConfig
    from arctic_training.tokenizer import TokenizerFactory as TokenizerFactory
    from arctic_training.trainer import Trainer as Trainer
    from arctic_training.trainer import TrainerConfig as TrainerConfig

__version__ = "0.1.0"

__all__ = sorted([*EXPORTS["arctic_training"], "__version__"])


def __getattr__(name: str) -> Any:
    value = lazy_attribute(__name__, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS[__name__]})
