"""The optimizer stage: what an optimizer factory is, and core's own, torch's AdamW."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from arctic_training.component import Component
from arctic_training.config import ComponentConfig, Config, key
from arctic_training.errors import RecipeError
from arctic_training.name_patterns import matches, refuse_unmatched

if TYPE_CHECKING:
    import torch


RATE_SCALE = "learning_rate_scale"
"""What a group of parameters remembers: its learning rate as a factor of the recipe's."""


class ParameterGroupConfig(Config):
    match: str | list[str] = key(
        doc="A pattern over names of parameters, or several: `*` stands for any text, `?` for a letter."
    )
    learning_rate: float | None = key(None, ge=0, aliases=("lr",), doc="Peak learning rate of these parameters.")
    learning_rate_scale: float | None = key(None, ge=0, doc="The same as a factor of optimizer.learning_rate.")
    weight_decay: float | None = key(None, ge=0, doc="Weight decay of these parameters, biases and vectors too.")

    @property
    def patterns(self) -> list[str]:
        """What ``match`` gives, as a list."""
        return [self.match] if isinstance(self.match, str) else self.match

    def check(self) -> Iterator[tuple[str, str]]:
        if not self.match:
            yield "match", "names no parameter"
        if self.learning_rate is not None and self.learning_rate_scale is not None:
            yield "learning_rate_scale", "contradicts learning_rate: give one of them"
        if (self.learning_rate, self.learning_rate_scale, self.weight_decay) == (None, None, None):
            yield "match", "changes nothing: give learning_rate, learning_rate_scale or weight_decay"


class OptimizerConfig(ComponentConfig):
    kind: ClassVar[str] = "optimizer"

    learning_rate: float = key(5e-4, ge=0, aliases=("lr",), doc="Peak learning rate.")
    weight_decay: float = key(0.1, ge=0, doc="Decoupled weight decay; none on biases and on vectors such as norms.")
    betas: tuple[float, float] = key((0.9, 0.999), doc="Decay rates of Adam's two running means.")
    groups: list[ParameterGroupConfig] = key(
        factory=list, doc="Parameters with a learning rate or weight decay of their own; the first that fits counts."
    )

    def check(self) -> Iterator[tuple[str, str]]:
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", f"each must be at least 0 and below 1, not {list(self.betas)}"


class OptimizerFactory(Component):
    """Builds the optimizer of a run."""

    kind = "optimizer"
    config: OptimizerConfig
    algorithm: ClassVar[str] = ""
    """Whose state its optimizer keeps, where those of several factories go on from each other's; else its own name."""
    needs_whole_parameters: ClassVar[bool] = False
    """Whether a step looks at the shape of a parameter, which it does not have where ZeRO divides it."""

    @abstractmethod
    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer over ``parameter_groups(model)``, or over what you choose."""

    def parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        """The trained parameters in groups, each with ``params``, ``lr`` and ``weight_decay``.

        Matrices decay; vectors (biases, norms) do not, unless a group of the recipe that fits them says so. What no
        group of the recipe fits comes first.

        Raises:
            RecipeError: a pattern fits no trained parameter, or groups before one have all that it fits.
        """
        config = self.config
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        groups: dict[tuple[int, bool], dict] = {}
        for number, own in enumerate((None, *config.groups)):
            if own is not None:
                refuse_unmatched(own.patterns, list(trained), own, "match", self.run)
            for is_vector in (False, True):
                decay = 0.0 if is_vector else config.weight_decay
                groups[number, is_vector] = {"params": [], "lr": self._rate(own), "weight_decay": decay}
                if own is None:
                    continue
                base, rate = config.learning_rate, groups[number, is_vector]["lr"]
                groups[number, is_vector][RATE_SCALE] = rate / base if base else 0.0
                if own.weight_decay is not None:
                    groups[number, is_vector]["weight_decay"] = own.weight_decay
        for name, parameter in trained.items():
            fitting = (number for number, own in enumerate(config.groups, start=1) if matches(name, own.patterns))
            # A parameter that ZeRO-3 has partitioned looks empty; its full shape stands in ds_shape.
            is_vector = len(getattr(parameter, "ds_shape", parameter.shape)) <= 1
            groups[next(fitting, 0), is_vector]["params"].append(parameter)
        for number, own in enumerate(config.groups, start=1):
            if not groups[number, False]["params"] and not groups[number, True]["params"]:
                message = "fits only parameters that groups before it have"
                raise RecipeError(self.run.config.recipe.problem((*own.section_path, "match"), message))
        return [group for group in groups.values() if group["params"]]

    def _rate(self, group: ParameterGroupConfig | None) -> float:
        if group is not None and group.learning_rate is not None:
            return group.learning_rate
        scale = None if group is None else group.learning_rate_scale
        return self.config.learning_rate * (1.0 if scale is None else scale)


def base_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The recipe's learning rate as the schedule has it now, whatever rates groups have of their own."""
    groups = sorted(optimizer.param_groups, key=lambda group: abs(group.get(RATE_SCALE, 1.0) - 1.0))
    scales = [group.get(RATE_SCALE, 1.0) for group in groups]
    return next((float(group["lr"]) / scale for group, scale in zip(groups, scales, strict=True) if scale), 0.0)


class AdamWFactory(OptimizerFactory):
    """torch's AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), fused where the device has a fused kernel."""

    name = "adamw"
    algorithm = "adamw"

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            self.parameter_groups(model),
            lr=self.config.learning_rate,
            betas=self.config.betas,
            fused=self.device.type in ("cpu", "cuda"),
        )
