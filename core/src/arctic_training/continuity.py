"""What a checkpoint remembers of the recipe it was written with, and what a run says that goes on with another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.dump import plain_recipe
from arctic_training.errors import CheckpointError
from arctic_training.resolve import own_name
from arctic_training.wording import counted, described_value

if TYPE_CHECKING:
    from arctic_training.run import Run
    from arctic_training.trainer_config import TrainerConfig

OF_THE_RUN = ("run_dir", "resume", "checkpoint", "logger", "wandb", "exit_iteration", "exit_iteration_this_run")
"""Keys that say where a run writes and when it pauses, and change nothing that is trained."""
MOST_KEYS = 8
"""Changed keys that are named; of more their number is told."""


def remembered(config: TrainerConfig) -> dict[str, Any]:
    """What a checkpoint keeps: the optimizer's algorithm, and every key of the resolved recipe, without secrets."""
    return {"optimizer": _algorithm(config), "recipe": _keys(config)}


def refuse_other_optimizer(run: Run, path: Path, stored: Mapping[str, Any]) -> None:
    """What one algorithm keeps of each parameter means nothing to another.

    Raises:
        CheckpointError: the checkpoint was written by another algorithm than this run's.
    """
    here, there = _algorithm(run.config), stored.get("optimizer", _algorithm(run.config))
    if here != there:
        given = run.config.recipe.place(("optimizer", "type"))
        raise CheckpointError(
            f"it holds the state of the optimizer {there}, and this run has {here} ({given})",
            where=str(path),
            remedy=f"resume with {there}; to go on from the weights alone, `arctic export` them and name the folder in "
            "model.name_or_path",
        )


def tell_other_keys(run: Run, path: Path, stored: Mapping[str, Any]) -> None:
    """Say which keys of the recipe had other values when the checkpoint was written; warn where the trainer had."""
    here = _keys(run.config)
    there = stored.get("recipe", here)
    odd = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if not odd:
        return
    words = [f"{name} {_shown(there, name)} -> {_shown(here, name)}" for name in odd[:MOST_KEYS]]
    if len(odd) > MOST_KEYS:
        words.append(f"and {counted(len(odd) - MOST_KEYS, 'more key')}")
    tell = run.warn if "type" in odd else run.say
    tell(f"checkpoint: the recipe has changed since {path}: {', '.join(words)}")


def _algorithm(config: TrainerConfig) -> str:
    factory: Any = config.optimizer.component
    return factory.algorithm or own_name(factory)


def _keys(config: TrainerConfig) -> dict[str, Any]:
    """The keys of a resolved recipe by their dotted paths."""
    return dict(_flat({name: value for name, value in plain_recipe(config).items() if name not in OF_THE_RUN}, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """As JSON has them, so that what was read back can be held against what is here."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{path}.{number}")
    else:
        scalar = value is None or isinstance(value, (bool, int, float, str))
        yield path, list(value) if isinstance(value, (list, tuple)) else value if scalar else str(value)


def _shown(keys: Mapping[str, Any], name: str) -> str:
    if name not in keys:
        return "not given"
    value = keys[name]
    text = str(value) if isinstance(value, (list, dict, str)) else described_value(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
