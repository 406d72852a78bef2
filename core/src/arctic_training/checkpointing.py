"""How a directory becomes a checkpoint, the same for every checkpoint engine.

All ranks write into ``global_step_<n>.incomplete`` and vote; then a manifest with the size and sha256 of every file,
then the rename. Only a directory whose manifest verifies is ever resumed from. In the background the same happens, with
the vote between the first two steps at which all ranks have written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from arctic_training import __version__
from arctic_training.adapters import adapter_of, trained_shapes
from arctic_training.continuity import remembered
from arctic_training.distributed import from_first_rank, gather_objects
from arctic_training.dump import dump
from arctic_training.errors import CheckpointError
from arctic_training.manifest import STATE_FILE, sync, verify, write_manifest
from arctic_training.redaction import redacted
from arctic_training.reporting import human_bytes
from arctic_training.retention import (
    INCOMPLETE,
    MANIFEST,
    REPLACED,
    metric_of,
    numbered,
    remove,
    remove_rubble,
    steps_to_keep,
)
from arctic_training.run_record import versions
from arctic_training.state import TrainState, random_state
from arctic_training.writing import Writer, problem_of

if TYPE_CHECKING:
    from arctic_training.checkpoint import CheckpointEngine
    from arctic_training.run import Run
    from arctic_training.trainer import Trainer


def due(trainer: Trainer, epoch_ended: bool) -> list[CheckpointEngine]:
    """The checkpoint engines that save after the step just taken."""
    engines = [engine for engine in trainer.checkpoint_engines if engine.config.enabled]
    opinion = trainer.hook.arctic_should_checkpoint(step=trainer.state.step, trainer=trainer) if engines else None
    if opinion is not None:
        return engines if opinion else []
    return [engine for engine in engines if _is_due(engine, trainer.state, epoch_ended)]


def due_by_clock(run: Run) -> list[int]:
    """The numbers of the entries whose minutes are over; rank 0's clock decides for all."""
    now = time.monotonic()
    return [
        number
        for number, engine in enumerate(run.trainer.checkpoint_engines)
        if engine.config.enabled
        and engine.config.save_every_n_minutes
        and now - run.saved_at.setdefault(engine, now) >= 60 * engine.config.save_every_n_minutes
    ]


def due_at_end(trainer: Trainer, *, only_missing: bool = False) -> list[CheckpointEngine]:
    """The checkpoint engines that save at the end of training, or those of them whose checkpoint is not there yet."""
    engines = [
        engine for engine in trainer.checkpoint_engines if engine.config.enabled and engine.config.save_end_of_training
    ]
    if not only_missing:
        return engines
    step = trainer.state.step
    missing = [verify(_path_of(engine, step)) is not None for engine in engines] if trainer.global_rank == 0 else []
    return [engine for engine, is_missing in zip(engines, from_first_rank(missing), strict=True) if is_missing]


def due_at_pause(trainer: Trainer) -> list[CheckpointEngine]:
    """The checkpoint engines that the next process goes on from by itself."""
    return [engine for engine in trainer.checkpoint_engines if engine.config.enabled and engine.config.auto_resume]


def saves_the_end(trainer: Trainer) -> bool:
    """Whether an entry saves after the last step, as far as the recipe tells."""
    configs = [engine.config for engine in trainer.checkpoint_engines if engine.config.enabled]
    last = trainer.last_step
    return any(
        config.save_end_of_training
        or config.save_every_n_epochs
        or (config.save_every_n_steps and last % config.save_every_n_steps == 0)
        for config in configs
    )


def save(run: Run, engine: CheckpointEngine) -> Path:
    """Write one checkpoint, or begin to, where its entry says ``background``. Every rank calls it between two steps.

    Returns:
        The directory of the checkpoint.

    Raises:
        CheckpointError: a rank could not write; nothing is left behind, and earlier checkpoints are as they were.
    """
    trainer = run.trainer
    step = trainer.state.step
    path = _path_of(engine, step)
    if run.saved.get(engine) == path:
        return path
    complete(run)  # at most one in flight
    trainer.hook.arctic_before_save(path=str(path), step=step, trainer=trainer)
    writer = Writer(path.with_name(path.name + INCOMPLETE), background=engine.config.background)
    run.pending = Pending(engine, path, writer, step, time.perf_counter(), _attempt(run, engine, writer))
    run.saved[engine] = path
    run.saved_at[engine] = time.monotonic()
    writer.start()
    if not writer.background:
        complete(run)
    return path


@attrs.frozen(eq=False)
class Pending:
    """A checkpoint that is being written: ``problem`` is what this rank met before its writer began."""

    engine: CheckpointEngine
    path: Path
    writer: Writer
    step: int
    started: float
    problem: str | None


def complete(run: Run) -> None:
    """Vote on the checkpoint that is being written, if there is one, and give it its name. Every rank calls it.

    Raises:
        CheckpointError: as of ``save``.
    """
    pending = run.pending
    if pending is None:
        return
    run.pending = None
    engine, path, writer = pending.engine, pending.path, pending.writer
    writer.wait()
    votes = gather_objects((pending.problem or writer.problem, writer.hashes))
    problems = {rank: text for rank, (text, _) in enumerate(votes) if text}
    if not problems and run.world.is_first:
        known = {name: fact for _, hashes in votes for name, fact in hashes.items()}
        problem = _publish(run, pending, known)
        problems = {0: problem} if problem else {}
    problems = from_first_rank(problems)
    if problems:
        del run.saved[engine]
        if run.world.is_first:
            shutil.rmtree(writer.directory, ignore_errors=True)
        rank, text = next(iter(problems.items()))
        raise CheckpointError(
            f"rank {rank} could not write the checkpoint: {text}",
            where=str(path),
            remedy=f"{_space(engine, path)}; earlier checkpoints are as they were",
        )
    seconds = time.perf_counter() - pending.started
    run.event("checkpoint", step=pending.step, path=str(path), type=engine.name, seconds=seconds)
    run.trainer.hook.arctic_after_save(path=str(path), step=pending.step, trainer=run.trainer)
    if run.world.is_first:
        _forget_old(run, engine, path)


def data_keys(run: Run) -> dict[str, str]:
    """What the rows of each set were made of, as the key of their cache says it; none for rows that are streamed."""
    return {name: facts["cache"] for name, facts in run.data_facts.items() if facts.get("cache")}


def directory_of(engine: CheckpointEngine) -> Path:
    """Where an entry's checkpoints go: its ``output_dir``, or a folder named after its kind in there when an entry
    before it writes into the same one, since both would write ``global_step_<n>``."""
    directory = Path(engine.config.output_dir).absolute()
    for other in engine.trainer.checkpoint_engines:
        if other is engine:
            break
        if other.config.enabled and Path(other.config.output_dir).absolute() == directory:
            return directory / engine.name
    return directory


def _path_of(engine: CheckpointEngine, step: int) -> Path:
    return directory_of(engine) / f"global_step_{step}"


def _is_due(engine: CheckpointEngine, state: TrainState, epoch_ended: bool) -> bool:
    config = engine.config
    if config.save_every_n_steps and state.step % config.save_every_n_steps == 0:
        return True
    return bool(epoch_ended and config.save_every_n_epochs and state.epoch % config.save_every_n_epochs == 0)


def _attempt(run: Run, engine: CheckpointEngine, writer: Writer) -> str | None:
    """Write this rank's files, or hand them to the writer; what went wrong, as text, so that all ranks can agree."""
    problem = None
    if run.world.is_first:
        try:
            shutil.rmtree(writer.directory, ignore_errors=True)
            writer.directory.mkdir(parents=True)
        except OSError as error:
            problem = str(error)
    problem = from_first_rank(problem)
    if problem:
        return problem
    try:
        engine.checkpoint_dir = writer.directory
        engine.writer = writer
        engine.save(run.trainer.model)
        if engine.resumes:
            _write_state(run, writer.directory)
        run.hook.arctic_write_checkpoint(path=str(writer.directory), engine=engine, trainer=run.trainer)
    except Exception as error:
        run.log.exception("saving %s failed", writer.directory, extra={"said": True})
        return problem_of(error, writer.directory)
    return None


def _write_state(run: Run, directory: Path) -> None:
    import torch

    torch.save(random_state(), directory / f"random-{run.world.rank}.pt")
    answers = run.plugins.collect("arctic_checkpoint_state", trainer=run.trainer)
    plugins = {info.name: redacted(answer) for info, answer in answers if answer is not None}
    if run.world.is_first:
        stored = {
            "state": run.trainer.state.as_dict(),
            "world_size": run.world.size,
            "layout": run.trainer.engine.layout(),
            "global_batch_size": run.trainer.train_dataloader.global_batch_size,
            "plugins": plugins,
            **remembered(run.config),
        }
        if (adapter := adapter_of(run.trainer.model_unwrapped)) is not None:
            stored["adapter"] = attrs.asdict(adapter) | {"shapes": trained_shapes(run.trainer.model_unwrapped)}
        (directory / STATE_FILE).write_text(json.dumps(stored, indent=1))


def _publish(run: Run, pending: Pending, known: dict[str, list[Any]]) -> str | None:
    """Write the manifest and rename; what went wrong."""
    path, incomplete = pending.path, pending.writer.directory
    facts = {
        "type": pending.engine.name,
        "step": pending.step,
        "world_size": run.world.size,
        "arctic": __version__,
        "versions": versions(),
        "plugins": run.fingerprint,
        "recipe": hashlib.sha256(dump(run.config).encode()).hexdigest(),
        "data": data_keys(run),
        "evaluation": run.last_evaluation if run.last_evaluation_step == pending.step else None,
    }
    try:
        write_manifest(incomplete, facts, known)
        replaced = path.with_name(path.name + REPLACED)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)  # of a process that ended before it could
            run.warn(f"checkpoint: {path} of an earlier run is replaced")
            os.rename(path, replaced)
        os.rename(incomplete, path)
        sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, TypeError) as error:
        return str(error)
    return None


def _forget_old(run: Run, engine: CheckpointEngine, newest: Path) -> None:
    """Remove what the entry does not keep, once the new checkpoint has been read back. Training goes on where that
    fails: the new one is written."""
    try:
        remove_rubble(newest.parent)
        going = _no_longer_kept(engine, newest)
        if not going:
            return
        if problem := verify(newest):
            raise CheckpointError(
                f"the checkpoint that was just written is damaged: {problem}",
                where=str(newest),
                remedy="look at the disk; earlier checkpoints were kept",
            )
        for path in going:
            remove(path)
    except OSError as error:
        run.warn(f"checkpoint: old ones could not be removed: {error}")


def _no_longer_kept(engine: CheckpointEngine, newest: Path) -> list[Path]:
    config = engine.config
    found = {step: path for step, path in numbered(newest.parent).items() if (path / MANIFEST).is_file()}
    values = {step: metric_of(path, config.best_metric) if config.keep_best else None for step, path in found.items()}
    return [path for step, path in found.items() if step not in steps_to_keep(values, config) and path != newest]


def _space(engine: CheckpointEngine, path: Path) -> str:
    """What a checkpoint takes and what there is, in words."""
    needed = engine.estimated_bytes()
    words = f"it takes about {human_bytes(needed)}"
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return f"{words}; see that there is space and permission to write"
    words += f", {human_bytes(free)} are free"
    if free < needed:
        return f"{words}: free some space or set another output_dir"
    return f"{words}: see that it may be written there, and that no quota or limit of file sizes is in the way"
