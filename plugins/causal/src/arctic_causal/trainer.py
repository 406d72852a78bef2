"""Training on plain text, such as continued pre-training: next-token cross entropy over whole documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_causal.data import CausalDataFactory
from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_training.checkpoint import CheckpointEngine
from arctic_training.optimizer import OptimizerFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    import torch

    from arctic_training.loss import LossSum


class CausalTrainerConfig(TrainerConfig):
    """The recipe of training on text has the keys that every recipe has."""


class CausalTrainer(Trainer):
    """Trains a causal language model on plain text.

    The loss of an optimizer step is

        L = - sum over tokens t of log p(t | tokens before t in its piece of a document)  /  number of these tokens,

    sum and number taken over the micro-batches of all ranks; the first token of a piece has nothing before it and does
    not count.
    """

    name = "causal"
    config: CausalTrainerConfig
    model_factory: HFModelFactory
    tokenizer_factory: HFTokenizerFactory
    data_factory: CausalDataFactory
    optimizer_factory: OptimizerFactory
    scheduler_factory: SchedulerFactory
    checkpoint_engine: CheckpointEngine

    def loss(self, batch: dict[str, torch.Tensor]) -> LossSum:
        return self.loss_function(self.model, batch)
