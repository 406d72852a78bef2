"""The loss stage: the contract that every objective keeps, and cross entropy.

One optimizer step on the same rows must be the same for every split into ranks, accumulation steps, micro-batches and
packs. So no mean is ever averaged: a loss is a sum with a weight, and the loop divides by the weight of the whole
global batch.

Shapes: B rows, L tokens, V words.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from arctic_training.component import Component
from arctic_training.config import ComponentConfig

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""The label of a token that is not trained."""
MOST_SOURCES = 1024
"""Sources that losses are told apart for; a fixed number, so that counting them reads nothing from the device."""


class _SumAndWeight(NamedTuple):
    sum: torch.Tensor
    weight: torch.Tensor | float


class LossSum(_SumAndWeight):
    """A loss before it is normalised.

    ``sum`` is a scalar tensor with a gradient, in nats; ``weight`` the number of units (trained tokens) it sums over.
    ``by_source``, of shape (2, sources), holds sum and weight of each source of the data, without a gradient, where the
    batch has several and the loss tells; what is added to a loss later is not told apart. ``figures`` holds what else
    an objective measures, by the name that metrics have it under: a scalar sum, without a gradient, and the number of
    units it sums over. It has the same names on every rank and in every micro-batch.
    """

    by_source: torch.Tensor | None = None
    figures: Mapping[str, tuple[torch.Tensor | float, torch.Tensor | float]] = MappingProxyType({})

    @classmethod
    def told_apart(cls, sum: torch.Tensor, weight: torch.Tensor | float, by_source: torch.Tensor | None) -> LossSum:
        """A loss that tells what it is over each source."""
        loss = cls(sum, weight)
        loss.by_source = by_source
        return loss

    def with_figures(self, figures: Mapping[str, tuple[torch.Tensor | float, torch.Tensor | float]]) -> LossSum:
        """The loss with more of what an objective measures: by name, a sum and the number of units it is over."""
        loss = self._with_sum(self.sum)
        loss.figures = {**self.figures, **figures}
        return loss

    def _with_sum(self, sum: torch.Tensor) -> LossSum:
        loss = self.told_apart(sum, self.weight, self.by_source)
        loss.figures = self.figures
        return loss

    def __mul__(self, factor: Any) -> LossSum:
        """The loss times a number; a tuple would repeat itself."""
        return self._with_sum(self.sum * factor)

    def __rmul__(self, factor: Any) -> LossSum:
        return self * factor

    def __truediv__(self, divisor: Any) -> LossSum:
        return self._with_sum(self.sum / divisor)

    def __add__(self, other: Any) -> LossSum:
        """The loss plus another sum over the same units, or plus a term that is a mean over them."""
        added = other.sum if isinstance(other, LossSum) else other * self.weight
        loss = self._with_sum(self.sum + added)
        return loss.with_figures(other.figures) if isinstance(other, LossSum) else loss

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
    logits, labels = logits_BLV.float().flatten(0, 1), labels_BL.flatten()
    source_ids_BL = getattr(batch, "source_ids", None)
    if source_ids_BL is None:
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        return LossSum(total, trained_tokens(batch))
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    by_source = _by_source(losses, labels, source_ids_BL.flatten())
    return LossSum.told_apart(losses.sum(), trained_tokens(batch), by_source)


def _by_source(losses: torch.Tensor, labels: torch.Tensor, source_ids: torch.Tensor) -> torch.Tensor:
    """Sum and number of trained tokens of each source, of shape (2, sources); all arguments are flat.

    A loss stands at the token before the one it is about, which is of the same document and so of the same source.
    """
    import torch

    sums = torch.zeros(2, MOST_SOURCES, dtype=torch.float32, device=losses.device)
    sums[0].index_add_(0, source_ids, losses.detach())
    sums[1].index_add_(0, source_ids, (labels != IGNORE_INDEX).float())
    return sums


def trained_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Number of trained tokens in a micro-batch, a scalar: labels that are set, the first of each row never
    predicted."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()


class Figures:
    """Adds up what losses measure besides, over micro-batches and over all ranks."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        """Sum and number of units of each figure, float64 of shape (2,)."""

    def clear(self) -> None:
        """Begin anew."""
        self.sums = {}

    def add(self, loss: LossSum, *, counts: bool = True) -> None:
        """Add those of one micro-batch; of one that does not count, the names alone, which all ranks must agree on."""
        import torch

        for name, pair in loss.figures.items():
            device = loss.sum.device
            values = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in pair])
            added = values.detach() if counts else torch.zeros_like(values)
            self.sums[name] = self.sums[name] + added if name in self.sums else added

    def over_ranks(self, device: torch.device) -> dict[str, tuple[float, float]]:
        """Sum and number of units of each figure over all ranks; every rank calls it."""
        import torch

        from arctic_training.distributed import sum_over_ranks

        if not self.sums:
            return {}
        names = sorted(self.sums)
        sums = sum_over_ranks(torch.stack([self.sums[name] for name in names]), device).tolist()
        return {name: (total, number) for name, (total, number) in zip(names, sums, strict=True)}

    def metrics(self, device: torch.device) -> dict[str, float]:
        """Each figure per unit, where there was one; every rank calls it."""
        return per_unit(self.over_ranks(device))


def per_unit(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Sums divided by their numbers of units, where these are not 0."""
    return {name: total / number for name, (total, number) in sums.items() if number}


class LossesBySource:
    """Adds up what losses tell of the sources of the data, over the micro-batches of a step and over all ranks."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """What the sources are called; nothing is told while there are none."""
        self._sums: torch.Tensor | None = None

    def clear(self) -> None:
        """Begin anew."""
        self._sums = None

    def add(self, loss: LossSum) -> None:
        """Add the loss of one micro-batch."""
        if loss.by_source is not None:
            self._sums = loss.by_source if self._sums is None else self._sums + loss.by_source

    def metrics(self, device: torch.device) -> dict[str, float]:
        """``loss/NAME`` in nats per trained token, of each source that had one; every rank calls it."""
        import torch

        from arctic_training.distributed import sum_over_ranks

        if not self.names:
            return {}
        sums = torch.zeros(2, MOST_SOURCES, device=device) if self._sums is None else self._sums
        totals, weights = sum_over_ranks(sums, device).tolist()
        return {
            f"loss/{name}": total / weight
            for name, total, weight in zip(self.names, totals, weights, strict=False)
            if weight
        }
