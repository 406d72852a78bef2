"""Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235): second moments by rows and columns alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from arctic_training.config import key
from arctic_training.optimizer import OptimizerConfig, OptimizerFactory

if TYPE_CHECKING:
    import torch


class AdafactorConfig(OptimizerConfig):
    # Relative to a parameter's root mean square.
    learning_rate: float = key(1e-2, ge=0, aliases=("lr",), doc="Largest relative step, at most 1 / sqrt(step).")
    beta2_decay: float = key(-0.8, le=0, doc="The second moments at step t decay by 1 - t ** beta2_decay.")
    clip_threshold: float = key(1.0, ge=1, doc="Largest root mean square of an update before the learning rate.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if "betas" in self.given:
            yield "betas", "has no effect on adafactor, which has no first moment: beta2_decay is its second one's"


class AdafactorFactory(OptimizerFactory):
    """torch's Adafactor."""

    name = "adafactor"
    config: AdafactorConfig
    needs_whole_parameters: ClassVar[bool] = True

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        import torch

        chosen = {"beta2_decay": self.config.beta2_decay, "d": self.config.clip_threshold}
        return torch.optim.Adafactor(self.parameter_groups(model), lr=self.config.learning_rate, **chosen)
