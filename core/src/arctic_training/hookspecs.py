"""Every hook of Arctic, in the order in which a run calls them: the framework's table of contents.

``register_`` fills a registrar. ``build_`` makes one object, ``load_`` and ``prepare_`` transform, ``should_`` answers
True, False or None for no opinion: for these the first answer that is not None wins, and core's own implementation
comes last. ``before_``, ``after_``, ``_start`` and ``_end`` observe: every implementation is called. To change what a
build hook makes, write a hookimpl with ``wrapper=True``, call ``result = yield`` and return what shall take its place.

Unless a docstring says otherwise, a hook runs on every rank, may be wrapped, and exists since version 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from arctic_training.checkpoint import CheckpointConfig, CheckpointEngine
    from arctic_training.config import Config, KeyProblem
    from arctic_training.data import DataConfig, Rows, SourceConfig
    from arctic_training.dataloader import Batch, Loader
    from arctic_training.engine import Engine
    from arctic_training.loss import Loss, LossConfig
    from arctic_training.model import ModelConfig
    from arctic_training.optimizer import OptimizerConfig
    from arctic_training.registry import Components
    from arctic_training.run import Run
    from arctic_training.scheduler import SchedulerConfig
    from arctic_training.state import Metrics
    from arctic_training.tokenizer import TokenizerConfig
    from arctic_training.trainer import Trainer
    from arctic_training.trainer_config import TrainerConfig

PROJECT_NAME = "arctic"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


# ---- setup ----------------------------------------------------------------------------------------------------------


@hookspec
def arctic_register_components(components: Components) -> None:
    """Name the components that this plugin offers.

    Called once for each plugin, as soon as it is registered, in every process. Import nothing heavy here: a target is
    text, ``"package.module:Class"``, imported when a recipe selects it. Cannot be wrapped.

    Args:
        components: the registrar of this plugin, with one method a kind: ``components.trainer(name, target)``.
    """


@hookspec
def arctic_register_config_sections() -> dict[str, type[Config]] | None:
    """Bring sections of your own to the top level of the recipe.

    Called while a recipe is resolved, also by ``arctic validate``. Every implementation is called.

    Returns:
        The section's name and its class; it is found in ``config.sections[name]``. None for no section.
    """


@hookspec
def arctic_check_recipe(config: TrainerConfig) -> Iterable[KeyProblem] | None:
    """Find what is wrong with a resolved recipe, also for ``arctic validate``: look at nothing else.

    Args:
        config: the resolved recipe.

    Returns:
        What is wrong, with paths from the top of the recipe; None for nothing. Every implementation is called.
    """


@hookspec
def arctic_configure(run: Run) -> None:
    """Prepare for this run.

    Called once when the run directory exists, before data is prepared. Every implementation is called.

    Args:
        run: the run, with its config, plugins, directory and world.
    """


@hookspec(firstresult=True)
def arctic_build_trainer(run: Run) -> Trainer | None:
    """Build the trainer, still empty; the stages that follow are put on it as they are built.

    Args:
        run: the run; ``run.config.trainer_class`` is what the recipe's ``type`` names.

    Returns:
        The trainer, or None to leave it to the others.
    """


# ---- architecture and tokenizer -------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def arctic_build_model_config(config: ModelConfig, run: Run) -> Any:
    """Build the architecture's configuration, without weights; before data is prepared, which has its longest sequence.

    Args:
        config: the recipe's ``model`` section.
        run: the run.

    Returns:
        The architecture's configuration, or None to leave it to the others.
    """


@hookspec(firstresult=True)
def arctic_build_tokenizer(config: TokenizerConfig, run: Run) -> Any:
    """Build the tokenizer, before data is prepared and outside any process group.

    Args:
        config: the recipe's ``tokenizer`` section.
        run: the run.

    Returns:
        The tokenizer, or None to leave it to the others.
    """


# ---- data -----------------------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def arctic_load_data(config: SourceConfig, split: str, run: Run) -> Rows | None:
    """Load one source.

    Called once for each source whose rows are not cached, on the one rank of each file system that prepares data,
    outside any process group. Not called for training rows that are streamed: their source's ``stream`` is.

    Args:
        config: one entry of ``data.sources`` or ``data.eval_sources``.
        split: ``train`` or ``eval``, the use that the rows are for.
        run: the run.

    Returns:
        The rows, a sequence of mappings, or None to leave it to the others.
    """


@hookspec(firstresult=True)
def arctic_prepare_data(datasets: list[Rows], tokenizer: Any, split: str, config: DataConfig, run: Run) -> Rows | None:
    """Turn loaded rows into rows that a model trains on: tokenise, filter, pack.

    Called once for each split that is not cached, where ``arctic_load_data`` is; not for rows that are streamed.

    Args:
        datasets: the loaded rows of this split, one entry for each source; sources differ in their columns.
        tokenizer: what ``arctic_build_tokenizer`` gave.
        split: ``train`` or ``eval``.
        config: the recipe's ``data`` section.
        run: the run.

    Returns:
        Rows with ``input_ids`` and ``labels`` of equal length, and ``position_ids`` where a row is a pack, or None to
        leave it to the others.
    """


@hookspec(firstresult=True)
def arctic_build_dataloader(dataset: Rows | None, split: str, config: DataConfig, run: Run) -> Loader | None:
    """Build what hands out the micro-batches of a split, after the process group is joined: ranks divide the rows.

    Args:
        dataset: prepared rows; None for training rows that are streamed.
        split: ``train`` or ``eval``.
        config: the recipe's ``data`` section.
        run: the run.

    Returns:
        A loader whose order is a function of seed, epoch and position, or None to leave it to the others.
    """


# ---- model, loss and optimizer ---------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def arctic_build_model(model_config: Any, config: ModelConfig, run: Run) -> torch.nn.Module | None:
    """Build the model, in the process group. Adapters, kernels and partitioned initialisation wrap this hook.

    Args:
        model_config: what ``arctic_build_model_config`` gave.
        config: the recipe's ``model`` section.
        run: the run.

    Returns:
        The model on the CPU or on ``run.device``, or None to leave it to the others.
    """


@hookspec(firstresult=True)
def arctic_build_loss(config: LossConfig, run: Run) -> Loss | None:
    """Build the loss, once a run.

    Args:
        config: the recipe's ``loss`` section.
        run: the run.

    Returns:
        A callable from (model, micro-batch) to a ``LossSum`` or a scalar mean, or None to leave it to the others.
    """


@hookspec(firstresult=True)
def arctic_compute_loss(batch: dict[str, torch.Tensor], trainer: Trainer) -> Any:
    """Compute the loss of one micro-batch; core's implementation calls ``trainer.loss(batch)``.

    Called for each micro-batch with gradients on, and under ``torch.no_grad()`` when evaluating
    (``trainer.model.training`` tells which). Wrap it to add terms.

    Args:
        batch: tensors on the device, ``input_ids`` and ``labels`` of shape (batch, length).
        trainer: the trainer.

    Returns:
        A scalar mean over the micro-batch's trained tokens, or a ``LossSum``.
    """


@hookspec(firstresult=True)
def arctic_build_optimizer(model: torch.nn.Module, config: OptimizerConfig, run: Run) -> torch.optim.Optimizer | None:
    """Build the optimizer over the model's parameters.

    Args:
        model: what ``arctic_build_model`` gave.
        config: the recipe's ``optimizer`` section.
        run: the run.

    Returns:
        The optimizer, or None to leave it to the others.
    """


@hookspec(firstresult=True)
def arctic_build_scheduler(optimizer: torch.optim.Optimizer, config: SchedulerConfig, run: Run) -> Any:
    """Build the schedule of the learning rate, counted in optimizer steps.

    Args:
        optimizer: what ``arctic_build_optimizer`` gave.
        config: the recipe's ``scheduler`` section.
        run: the run; ``run.trainer.training_horizon`` is the number of optimizer steps.

    Returns:
        An object with ``step()``, ``state_dict()`` and ``load_state_dict()``, or None to leave it to the others.
    """


@hookspec(firstresult=True)
def arctic_build_engine(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, run: Run
) -> Engine | None:
    """Build the engine that runs backward and the optimizer step.

    Args:
        model: what ``arctic_build_model`` gave.
        optimizer: what ``arctic_build_optimizer`` gave.
        scheduler: what ``arctic_build_scheduler`` gave.
        run: the run; ``run.engine_class`` is what the recipe's ``engine.type`` came to.

    Returns:
        The engine, ready to train, or None to leave it to the others.
    """


# ---- checkpoint -----------------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def arctic_build_checkpoint_engine(config: CheckpointConfig, run: Run) -> CheckpointEngine | None:
    """Build what writes and reads one kind of checkpoint.

    Called once for each entry of the recipe's ``checkpoint`` list.

    Args:
        config: the entry.
        run: the run.

    Returns:
        The checkpoint engine, or None to leave it to the others.
    """


@hookspec(firstresult=True)
def arctic_should_checkpoint(step: int, trainer: Trainer) -> bool | None:
    """Decide whether to save after this optimizer step, whatever the recipe's intervals say.

    Called after each optimizer step; every rank must give the same answer.

    Args:
        step: optimizer steps taken, from 1.
        trainer: the trainer.

    Returns:
        True to save to every checkpoint entry, False to save to none, None to leave it to the recipe.
    """


@hookspec
def arctic_checkpoint_state(trainer: Trainer) -> dict[str, Any] | None:
    """Give what your plugin needs to go on after a resume.

    Called on each save; the first rank's answers are stored. Every implementation is called.

    Args:
        trainer: the trainer.

    Returns:
        JSON-able values without secrets, stored by plugin and handed back by ``arctic_after_load``; None for nothing.
    """


@hookspec
def arctic_before_save(path: str, step: int, trainer: Trainer) -> None:
    """Observe that a checkpoint is about to be written.

    Args:
        path: the directory that it will have.
        step: optimizer steps taken.
        trainer: the trainer.
    """


@hookspec
def arctic_write_checkpoint(path: str, engine: CheckpointEngine, trainer: Trainer) -> None:
    """Write files of your own into a checkpoint: called on each save, after its engine wrote, before the manifest.

    Args:
        path: the directory to write into; it gets its name when it is complete.
        engine: the checkpoint engine; ``engine.resumes`` tells whether training can go on from what it writes.
        trainer: the trainer.
    """


@hookspec
def arctic_after_save(path: str, step: int, trainer: Trainer) -> None:
    """Observe that a checkpoint is complete.

    Args:
        path: its directory.
        step: optimizer steps taken.
        trainer: the trainer.
    """


@hookspec
def arctic_after_load(path: str, state: dict[str, Any], trainer: Trainer) -> None:
    """Observe that training goes on from a checkpoint.

    Args:
        path: its directory.
        state: what plugins gave to ``arctic_checkpoint_state``, by plugin name.
        trainer: the trainer, its state restored.
    """


# ---- train ----------------------------------------------------------------------------------------------------------


@hookspec
def arctic_train_start(trainer: Trainer) -> None:
    """Observe that everything is built and restored, and the first step is next.

    Args:
        trainer: the trainer.
    """


@hookspec
def arctic_train_end(trainer: Trainer, error: BaseException | None) -> None:
    """Observe that training is over. Always runs, errors or not.

    Args:
        trainer: the trainer.
        error: what ended training, or None when it reached its end.
    """


@hookspec
def arctic_epoch_start(epoch: int, trainer: Trainer) -> None:
    """Observe that an epoch begins or, after a resume, goes on.

    Args:
        epoch: from 0.
        trainer: the trainer.
    """


@hookspec
def arctic_epoch_end(epoch: int, trainer: Trainer) -> None:
    """Observe that the last step of an epoch is done.

    Args:
        epoch: from 0.
        trainer: the trainer.
    """


@hookspec
def arctic_step_start(step: int, batch: Batch, trainer: Trainer) -> None:
    """Observe that an optimizer step begins.

    Args:
        step: the number that this step will have, from 1.
        batch: this rank's micro-batches of the step.
        trainer: the trainer.
    """


@hookspec
def arctic_before_optimizer_step(step: int, trainer: Trainer) -> None:
    """Observe that all gradients of a step are there and the optimizer is next.

    Args:
        step: the number of this step, from 1.
        trainer: the trainer.
    """


@hookspec
def arctic_step_end(step: int, metrics: Metrics, trainer: Trainer) -> None:
    """Observe that an optimizer step is done; entries put into ``metrics`` are logged with the others.

    Args:
        step: the number of this step, from 1.
        metrics: what will be logged, by name; loss in nats per trained token over the global batch.
        trainer: the trainer.
    """


@hookspec
def arctic_evaluate_start(trainer: Trainer) -> None:
    """Observe that an evaluation begins.

    Args:
        trainer: the trainer.
    """


@hookspec
def arctic_evaluate_end(metrics: Metrics, trainer: Trainer) -> None:
    """Observe that an evaluation is done.

    Args:
        metrics: its figures; loss in nats per trained token over all rows.
        trainer: the trainer.
    """


# ---- report ---------------------------------------------------------------------------------------------------------


@hookspec
def arctic_log_metrics(metrics: Metrics, step: int, run: Run) -> None:
    """Take one record of metrics: write it, show it, send it.

    Called on rank 0 for each optimizer step, evaluation and event. Every implementation is called.

    Args:
        metrics: plain numbers and text, as one line of ``metrics.jsonl``; ``metrics["kind"]`` is train, eval or event.
        step: optimizer steps taken.
        run: the run.
    """


@hookspec
def arctic_unconfigure(run: Run) -> None:
    """Tidy up. Always runs, errors or not, in reverse order of ``arctic_configure``.

    Args:
        run: the run.
    """


# ---- command line ---------------------------------------------------------------------------------------------------


@hookspec
def arctic_register_commands(commands: Any) -> None:
    """Bring commands to ``arctic``. Its implementations stand in modules of the entry-point group ``arctic.commands``,
    apart from a plugin's other hooks, so that asking for help loads no training code.

    Args:
        commands: the registrar: ``commands.add(name, target, help)``, with the target of a click command as text.
    """
