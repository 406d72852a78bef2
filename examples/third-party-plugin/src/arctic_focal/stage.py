"""The loss stage ``focal``: what a recipe selects for any trainer that takes its loss from it, such as ``sft``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_focal.loss import focal_loss_sum
from arctic_training import LossConfig, LossFactory, LossSum, key
from arctic_training.loss import trained_tokens

if TYPE_CHECKING:
    import torch

    from arctic_training.loss import Loss


class FocalLossConfig(LossConfig):
    gamma: float = key(
        2.0, ge=0, le=10, doc="How much the tokens that are predicted well already count less; 0 is cross entropy."
    )


class FocalLossFactory(LossFactory):
    """Builds the focal loss; its ``gamma`` stands in the recipe's ``loss`` section."""

    name = "focal"
    config: FocalLossConfig

    def create_loss(self) -> Loss:
        gamma = self.config.gamma

        def focal(model: Any, batch: dict[str, torch.Tensor]) -> LossSum:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            logits_BLV = model(**inputs, use_cache=False).logits
            return LossSum(focal_loss_sum(logits_BLV, batch["labels"], gamma), trained_tokens(batch))

        return focal
