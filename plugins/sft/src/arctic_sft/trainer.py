"""Supervised fine-tuning: next-token cross entropy over what the assistant said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_sft.data import SFTDataFactory
from arctic_training.checkpoint import CheckpointEngine
from arctic_training.optimizer import OptimizerFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    import torch

    from arctic_training.loss import LossSum


class SFTTrainerConfig(TrainerConfig):
    """The recipe of supervised fine-tuning has the keys that every recipe has."""


class SFTTrainer(Trainer):
    """Fine-tunes a causal language model on chats.

    The loss of an optimizer step is

        L = - sum over trained tokens t of log p(t | tokens before t)  /  number of trained tokens,

    sum and number taken over the micro-batches of all ranks. A subclass may instead return the mean of a micro-batch.
    """

    name = "sft"
    config: SFTTrainerConfig
    model_factory: HFModelFactory
    tokenizer_factory: HFTokenizerFactory
    data_factory: SFTDataFactory
    optimizer_factory: OptimizerFactory
    scheduler_factory: SchedulerFactory
    checkpoint_engine: CheckpointEngine

    def loss(self, batch: dict[str, torch.Tensor]) -> LossSum:
        return self.loss_function(self.model, batch)
