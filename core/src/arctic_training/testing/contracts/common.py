"""What the contracts share: the fixtures that a subclass overrides, and how two runs are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arctic_training.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

    from arctic_training.plugins import PluginManager
    from arctic_training.run import Run
    from arctic_training.trainer import Trainer

Recipe = dict[str, Any]


class KeepsWeights:
    """A plugin that keeps the weights that training ended with, while the engine can still give them whole."""

    @hookimpl
    def arctic_train_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self.kept = trainer.run.last_weights = weights(trainer.run)  # type: ignore[attr-defined]


class Contract:
    """The fixtures of all contracts."""

    @pytest.fixture
    def recipe(self, tiny_recipe: Recipe) -> Recipe:
        """A recipe that selects the component under test."""
        return tiny_recipe

    @pytest.fixture
    def components(self) -> list[type]:
        """Component classes that no installed plugin brings."""
        return []

    @pytest.fixture(autouse=True)
    def registered_components(
        self, arctic_home: Path, plugin_manager: PluginManager, components: list[type]
    ) -> PluginManager:
        """The manager of this test, with ``components``."""
        plugin_manager.register(KeepsWeights(), "weights kept by the contract")
        if components:
            plugin_manager.register_classes(components, "components of the contract")
        return plugin_manager


def with_data(recipe: Recipe, **keys: Any) -> Recipe:
    """The recipe with these keys of its ``data`` section."""
    return recipe | {"data": recipe["data"] | keys}


def figures(run: Run, name: str) -> list[float]:
    """One figure of each optimizer step of a run that ``run_recipe`` gave."""
    return [record[name] for record in run.metrics if record["kind"] == "train"]  # type: ignore[attr-defined]


def weights(run: Run) -> dict[str, torch.Tensor]:
    """A copy of the whole model, as the engine has it now."""
    return {name: tensor.detach().clone() for name, tensor in run.trainer.engine.full_parameters()}


def last_weights(run: Run) -> dict[str, torch.Tensor]:
    """The whole model that a run of ``run_recipe`` ended with."""
    return run.last_weights  # type: ignore[attr-defined]


def differing(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same bit for bit."""
    return sorted(name for name in one.keys() | other.keys() if name not in other or not one[name].equal(other[name]))


def first_batch(run: Run) -> Any:
    """The first micro-batch of a run that was built."""
    return next(run.trainer.train_dataloader.epoch(0))[0].to(run.device)
