"""The optimizer stage: what an optimizer factory is, and core's own, torch's AdamW."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from arctic_training.component import Component
from arctic_training.config import ComponentConfig, key

if TYPE_CHECKING:
    import torch


class OptimizerConfig(ComponentConfig):
    kind: ClassVar[str] = "optimizer"

    learning_rate: float = key(5e-4, ge=0, aliases=("lr",), doc="Peak learning rate.")
    weight_decay: float = key(0.1, ge=0, doc="Decoupled weight decay; none on biases and on vectors such as norms.")
    betas: tuple[float, float] = key((0.9, 0.999), doc="Decay rates of Adam's two running means.")

    def check(self) -> Iterator[tuple[str, str]]:
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", f"each must be at least 0 and below 1, not {list(self.betas)}"


class OptimizerFactory(Component):
    """Builds the optimizer of a run."""

    kind = "optimizer"
    config: OptimizerConfig

    @abstractmethod
    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer over ``parameter_groups(model)``, or over what you choose."""

    def parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        """Two groups: matrices with the recipe's weight decay; vectors (biases, norms) with none."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A parameter that ZeRO-3 has partitioned looks empty; its full shape stands in ds_shape.
        matrices = [parameter for parameter in trained if len(getattr(parameter, "ds_shape", parameter.shape)) > 1]
        vectors = [parameter for parameter in trained if len(getattr(parameter, "ds_shape", parameter.shape)) <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


class AdamWFactory(OptimizerFactory):
    """torch's AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), fused where the device has a fused kernel."""

    name = "adamw"

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            self.parameter_groups(model),
            lr=self.config.learning_rate,
            betas=self.config.betas,
            fused=self.device.type in ("cpu", "cuda"),
        )
