"""Parameters that are not trained, by the patterns of ``model.freeze`` and ``model.train_only``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training.errors import RecipeError
from arctic_training.name_patterns import matches, refuse_unmatched

if TYPE_CHECKING:
    import torch

    from arctic_training.model import ModelConfig
    from arctic_training.run import Run


def freeze(model: torch.nn.Module, config: ModelConfig, run: Run) -> None:
    """Take gradients away from what the recipe does not train, and say how much is left.

    Raises:
        RecipeError: a pattern fits nothing, or nothing is left to train.
    """
    patterns = config.freeze or config.train_only
    if not patterns:
        return
    key = "freeze" if config.freeze else "train_only"
    parameters = dict(model.named_parameters())
    refuse_unmatched(patterns, list(parameters), config, key, run)
    for name, parameter in parameters.items():
        if matches(name, patterns) == (key == "freeze"):
            parameter.requires_grad_(False)
    sizes = {name: getattr(parameter, "ds_numel", parameter.numel()) for name, parameter in parameters.items()}
    trained = sum(sizes[name] for name, parameter in parameters.items() if parameter.requires_grad)
    if not trained:
        message = "leaves no parameter to train"
        raise RecipeError(run.config.recipe.problem((*config.section_path, key), message))
    run.say(f"model: {trained:,} of {sum(sizes.values()):,} parameters are trained (model.{key})")
