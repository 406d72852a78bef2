"""What is looked at before a run begins: whether what the recipe asks for can be had here, and on which engine."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training import distributed
from arctic_training.config import Config, KeyInfo, default_value, walk
from arctic_training.errors import CheckpointError, RecipeError, UsageError
from arctic_training.reporting import human_bytes
from arctic_training.resolve import TRAINER_ATTRIBUTES, own_name

if TYPE_CHECKING:
    from arctic_training.engine import Engine
    from arctic_training.run import Run
    from arctic_training.trainer import Trainer
    from arctic_training.trainer_config import TrainerConfig


def refuse_later_keys(config: TrainerConfig) -> None:
    """A key whose feature is not there yet may only hold its default."""
    for path, info, value in _all_keys(config):
        if info.later and value != default_value(info):
            raise RecipeError(
                config.recipe.problem(
                    path,
                    f"asks for {info.later}, which is not there yet",
                    remedy=f"set it to {json.dumps(default_value(info))}",
                )
            )


def refuse_keys_without_their_plugin(config: TrainerConfig) -> None:
    """A key that another plugin makes work may only hold its default where that plugin is not active."""
    active = {info.distribution for info in config.plugin_manager.plugins if info.status == "active"}
    for path, info, value in _all_keys(config):
        if info.needs and info.needs not in active and value != default_value(info):
            raise RecipeError(
                config.recipe.problem(
                    path,
                    f"needs {info.needs}, which is not installed or is blocked",
                    of="key",
                    remedy=f"pip install {info.needs}",
                )
            )


def _all_keys(config: TrainerConfig) -> Iterator[tuple[tuple, KeyInfo, Any]]:
    """The keys of a recipe and of the sections that plugins brought to it."""
    yield from walk(config)
    for name, section in config.sections.items():
        if isinstance(section, Config):
            yield from walk(section, (name,))


def refuse_endless_streams(config: TrainerConfig) -> None:
    """Nobody knows how many steps an epoch of a stream has, and the schedule has to."""
    if config.data.streaming and not config.train_iters:
        raise RecipeError(
            config.recipe.problem(
                ("data", "streaming"),
                "needs train_iters, since nobody knows how long a stream is",
                remedy="set train_iters to the number of optimizer steps",
            )
        )


def choose_engine(run: Run) -> tuple[type[Engine], Any, str]:
    """The engine of a run: the class, its config, and why it was chosen."""
    registry, config = run.plugins.registry, run.config
    if config.engine.type != "auto":
        assert config.engine.component is not None
        return config.engine.component, config.engine, "the recipe says so"
    reasons = {
        "there is an accelerator": run.device.type != "cpu",
        f"there are {run.world.size} ranks": run.world.size > 1,
        "the recipe has a deepspeed section": bool(config.deepspeed),
        "the recipe has a deepspeed checkpoint": any(entry.type == "deepspeed" for entry in config.checkpoint),
    }
    reason = next((text for text, holds in reasons.items() if holds), None)
    needed = run.world.size > 1 or bool(config.deepspeed)
    name = "deepspeed" if reason and (needed or "deepspeed" in registry.names("engine")) else "torch"
    if reason is None:
        reason = "one process without an accelerator"
    elif name == "torch":
        reason = f"{reason}, and no deepspeed engine is installed"
    engine_class: Any = registry.get("engine", name)
    engine_config = engine_class.config_class()(type=name)
    return engine_class, engine_config, reason


def refuse_checkpoints_of_other_engines(run: Run) -> None:
    """A kind of checkpoint that holds the state of one engine cannot hold that of another.

    Raises:
        RecipeError: an entry asks for it.
    """
    for number, entry in enumerate(run.config.checkpoint):
        engine = getattr(entry.component, "of_engine", None)
        if entry.enabled and engine not in (None, run.engine_class.name):
            raise RecipeError(
                run.config.recipe.problem(
                    ("checkpoint", number, "type"),
                    f"{entry.type} holds the state of the {engine} engine, and this run has the "
                    f"{run.engine_class.name} engine, since {run.engine_reason}",
                    remedy="leave it out, which means the engine's own kind",
                )
            )


def refuse_other_components(config: TrainerConfig, given: type[Trainer]) -> None:
    """A trainer made by hand must want what the recipe was resolved for."""
    wanted = config.trainer_class
    for attribute in ("config", *TRAINER_ATTRIBUTES.values()):
        if given.declared(attribute) != wanted.declared(attribute):
            raise UsageError(
                f"{given.__name__} declares another {attribute} than {wanted.__name__}, which the recipe was "
                "resolved for",
                remedy=f"set type: {own_name(given)}",
            )


def refuse_full_disks(run: Run) -> None:
    """Find out before the first step whether there is space for a checkpoint of each entry.

    Raises:
        CheckpointError: there is not even space for the weights.
    """
    problem = None
    for engine in run.trainer.checkpoint_engines if run.world.is_first else ():
        if not engine.config.enabled:
            continue
        directory = Path(engine.config.output_dir).absolute()
        free, needed = shutil.disk_usage(directory).free, engine.estimated_bytes()
        words = f"a {engine.name} checkpoint takes about {human_bytes(needed)}, and {human_bytes(free)} are free"
        if free < (needed // 4 if engine.resumes else needed):
            problem = (str(directory), words)
            break
        if free < needed:
            run.warn(f"checkpoint: {directory}: {words}")
    problem = distributed.from_first_rank(problem)
    if problem:
        raise CheckpointError(problem[1], where=problem[0], remedy="free some space or set another output_dir")


def refuse_unwritable_checkpoints(run: Run) -> None:
    """Find out before the first step whether checkpoints can be written, not after the last."""
    problem = None
    for engine in run.trainer.checkpoint_engines if run.world.is_first else ():
        directory = Path(engine.config.output_dir).absolute()
        try:
            if engine.config.enabled:
                directory.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            problem = (str(directory), error.strerror or str(error))
            break
    problem = distributed.from_first_rank(problem)
    if problem:
        raise CheckpointError(
            f"checkpoints cannot be written there: {problem[1]}",
            where=problem[0],
            remedy="set checkpoint.output_dir to a directory that you may write to",
        )
