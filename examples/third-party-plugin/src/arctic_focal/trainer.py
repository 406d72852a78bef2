"""The trainer ``focal``: next-token prediction with the focal loss, on any model and any data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_focal.loss import focal_loss_sum
from arctic_training import LossSum, Trainer

if TYPE_CHECKING:
    import torch


class FocalTrainer(Trainer):
    """Trains a causal language model with the focal loss; ``gamma`` stands in the recipe's ``focal`` section.

    Which model and data it works with is left open: a recipe names them by ``type``.
    """

    name = "focal"

    def loss(self, batch: dict[str, torch.Tensor]) -> LossSum:
        inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits_BLV = self.model(**inputs, use_cache=False).logits
        total = focal_loss_sum(logits_BLV, batch["labels"], self.config.sections["focal"].gamma)
        return LossSum(total, self.loss_weight(batch))
