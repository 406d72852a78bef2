"""A trainer with a key of its own in the recipe, whose loss is a sum with its weight.

Shapes: B rows, L tokens, V words.
"""

from arctic_training import LossSum, SFTTrainer, TrainerConfig, key, register


class SmoothedConfig(TrainerConfig):
    smoothing: float = key(0.1, ge=0, lt=1, doc="Share of each target that is spread evenly over all words.")


@register
class SmoothedTrainer(SFTTrainer):
    """Cross entropy against smoothed targets (Szegedy et al., 2015, arXiv:1512.00567, section 7)."""

    name = "smoothed"
    config: SmoothedConfig

    def loss(self, batch):
        import torch.nn.functional as F

        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits_BLV = self.model(**inputs, use_cache=False).logits[:, :-1]
        labels_BL = batch["labels"][:, 1:]
        total = F.cross_entropy(
            logits_BLV.float().flatten(0, 1),
            labels_BL.flatten(),
            label_smoothing=self.config.smoothing,
            reduction="sum",
        )
        return LossSum(total, (labels_BL != -100).sum())
