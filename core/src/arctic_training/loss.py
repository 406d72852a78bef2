"""The loss stage: the contract that every objective keeps, and cross entropy.

One optimizer step on the same rows must be the same for every split into ranks, accumulation steps, micro-batches and
packs. So no mean is ever averaged: a loss is a sum with a weight, and the loop divides by the weight of the whole
global batch.

Shapes: B rows, L tokens, V words.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from arctic_training.component import Component
from arctic_training.config import ComponentConfig

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""The label of a token that is not trained."""


class LossSum(NamedTuple):
    """A loss before it is normalised.

    ``sum`` is a scalar tensor with a gradient, in nats; ``weight`` the number of units (trained tokens) it sums over.
    """

    sum: torch.Tensor
    weight: torch.Tensor | float

    def __mul__(self, factor: Any) -> LossSum:
        """The loss times a number; a tuple would repeat itself."""
        return LossSum(self.sum * factor, self.weight)

    def __rmul__(self, factor: Any) -> LossSum:
        return self * factor

    def __truediv__(self, divisor: Any) -> LossSum:
        return LossSum(self.sum / divisor, self.weight)

    def __add__(self, other: Any) -> LossSum:
        """The loss plus another sum over the same units, or plus a term that is a mean over them."""
        return LossSum(self.sum + (other.sum if isinstance(other, LossSum) else other * self.weight), self.weight)

    def __radd__(self, other: Any) -> LossSum:
        return self + other


class Loss(Protocol):
    """What ``arctic_build_loss`` builds."""

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> LossSum: ...


class LossConfig(ComponentConfig):
    kind: ClassVar[str] = "loss"


class LossFactory(Component):
    """Builds the loss of a run."""

    kind = "loss"
    config: LossConfig

    @abstractmethod
    def create_loss(self) -> Loss:
        """A callable from (model, micro-batch) to a ``LossSum``."""


class CrossEntropyFactory(LossFactory):
    """Next-token cross entropy over the trained tokens, computed in fp32."""

    name = "cross_entropy"

    def create_loss(self) -> Loss:
        return cross_entropy


def cross_entropy(model: Any, batch: dict[str, torch.Tensor]) -> LossSum:
    """Sum of -log p(label | tokens before it) over the trained tokens of a micro-batch.

    Args:
        model: gives ``logits`` of shape (B, L, V).
        batch: ``input_ids`` and ``labels`` of shape (B, L); label t is the token at t, so logits at t - 1 predict it.
    """
    import torch.nn.functional as F

    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits_BLV = model(**inputs, use_cache=False).logits
    labels_BL = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    # Labels move left instead of logits: slicing logits would copy (B, L, V) floats.
    total = F.cross_entropy(
        logits_BLV.float().flatten(0, 1), labels_BL.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return LossSum(total, trained_tokens(batch))


def trained_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Number of trained tokens in a micro-batch, a scalar: labels that are set, the first of each row never
    predicted."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
