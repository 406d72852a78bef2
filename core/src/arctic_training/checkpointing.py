"""How a directory becomes a checkpoint, the same for every checkpoint engine.

All ranks write into ``global_step_<n>.incomplete`` and vote; then a manifest with the size and sha256 of every file,
then the rename. Only a directory whose manifest verifies is ever resumed from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training import __version__
from arctic_training.distributed import from_first_rank, gather_objects
from arctic_training.errors import ArcticError, CheckpointError
from arctic_training.redaction import redacted
from arctic_training.reporting import human_bytes
from arctic_training.retention import MANIFEST, NAME, metric_of, numbered, remove, steps_to_keep
from arctic_training.state import TrainState, random_state, restore_random_state, seed_everything
from arctic_training.trust import TRUST, written_by_others

if TYPE_CHECKING:
    from arctic_training.checkpoint import CheckpointEngine
    from arctic_training.run import Run
    from arctic_training.trainer import Trainer

STATE_FILE = "train_state.json"
PICKLES = frozenset({".pt", ".pth", ".bin", ".pkl", ".ckpt"})
"""Endings of files that an engine may unpickle, and look for by a pattern."""


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


def save(run: Run, engine: CheckpointEngine) -> Path:
    """Write one checkpoint. Every rank calls it between two optimizer steps.

    Returns:
        The directory of the complete checkpoint.

    Raises:
        CheckpointError: a rank could not write; nothing is left behind, and earlier checkpoints are as they were.
    """
    trainer = run.trainer
    step = trainer.state.step
    path = _path_of(engine, step)
    if run.saved.get(engine) == path:
        return path
    trainer.hook.arctic_before_save(path=str(path), step=step, trainer=trainer)
    started = time.perf_counter()
    incomplete = path.with_name(path.name + ".incomplete")
    problem = _attempt(run, engine, incomplete)
    problems = {rank: text for rank, text in enumerate(gather_objects(problem)) if text}
    if not problems and run.world.is_first:
        problem = _publish(run, engine, incomplete, path)
        problems = {0: problem} if problem else {}
    problems = from_first_rank(problems)
    if problems:
        if run.world.is_first:
            shutil.rmtree(incomplete, ignore_errors=True)
        rank, text = next(iter(problems.items()))
        raise CheckpointError(
            f"rank {rank} could not write the checkpoint: {text}",
            where=str(path),
            remedy=f"{_space(engine, path)}; earlier checkpoints are as they were",
        )
    run.saved[engine] = path
    run.saved_at[engine] = time.monotonic()
    run.event("checkpoint", step=step, path=str(path), type=engine.name, seconds=time.perf_counter() - started)
    trainer.hook.arctic_after_save(path=str(path), step=step, trainer=trainer)
    if run.world.is_first:
        _forget_old(run, engine, path)
    return path


def resume(run: Run) -> Path | None:
    """Go on from the newest complete checkpoint of the entries that say ``auto_resume``.

    Returns:
        The directory that was loaded, or None when there is none yet.

    Raises:
        CheckpointError: the checkpoint does not fit this run.
    """
    candidates = [engine for engine in run.trainer.checkpoint_engines if engine.config.auto_resume]
    for engine in candidates:
        if not engine.resumes:
            raise CheckpointError(
                f"training cannot go on from a {engine.name} checkpoint: it holds the model alone",
                remedy="set auto_resume on a checkpoint without type, the engine's own kind",
            )
    found = from_first_rank(_newest_of(run, candidates) if run.world.is_first else None) if candidates else None
    if found is None:
        return None
    number, path = found
    engine = candidates[number]
    refuse_foreign(path, trusted=run.config.trusted)
    stored = json.loads((path / STATE_FILE).read_text())
    _refuse_other_batch(run, engine, path, stored)
    layout = run.trainer.engine.layout()
    if stored.get("layout", layout) == layout and stored["world_size"] == run.world.size:
        engine.checkpoint_dir = path
        engine.load(run.trainer.model)
    else:
        _load_from_elsewhere(run, path, stored, layout)
    run.trainer.state = TrainState.from_dict(stored["state"])
    _fit_position(run)
    _continue_random_numbers(run, path)
    run.trainer.hook.arctic_after_load(path=str(path), state=stored["plugins"], trainer=run.trainer)
    run.event("resumed", step=run.trainer.state.step, path=str(path))
    return path


def newest_checkpoint(output_dir: Path, *, resumable: bool = False) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest complete checkpoint in a directory, and those passed over with the reason.

    Args:
        output_dir: where checkpoints are written.
        resumable: pass over those that hold the model alone.
    """
    passed_over: list[tuple[Path, str]] = []
    for _, path in sorted(numbered(output_dir).items(), reverse=True):
        problem = verify(path)
        if problem is None and resumable and not (path / STATE_FILE).is_file():
            problem = "it holds the model alone"
        if problem is None:
            return path, passed_over
        passed_over.append((path, problem))
    return None, passed_over


def refuse_foreign(path: Path, *, trusted: bool) -> None:
    """Refuse a checkpoint that others could have written: its files are unpickled, and a manifest that anybody could
    write vouches for nothing.

    Raises:
        CheckpointError: they could, and nobody said that they are trusted.
    """
    reason = next(filter(None, map(written_by_others, (path, path / MANIFEST))), None)
    if reason and not trusted:
        raise CheckpointError(
            f"{reason}, so its manifest vouches for nothing",
            where=str(path),
            remedy=f"take the right to write away from others (chmod -R o-w), {TRUST}",
        )


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is as its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, (size, sha256) in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, its manifest says {size}"
            if _sha256(file) != sha256:
                return f"{name} is not what was written"
        for file in path.rglob("*"):
            if file.suffix in PICKLES and file.relative_to(path).as_posix() not in manifest["files"]:
                return f"{file.relative_to(path)} is not in its manifest"
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {error}"
    return None


def _directory_of(engine: CheckpointEngine) -> Path:
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
    return _directory_of(engine) / f"global_step_{step}"


def _is_due(engine: CheckpointEngine, state: TrainState, epoch_ended: bool) -> bool:
    config = engine.config
    if config.save_every_n_steps and state.step % config.save_every_n_steps == 0:
        return True
    return bool(epoch_ended and config.save_every_n_epochs and state.epoch % config.save_every_n_epochs == 0)


def _attempt(run: Run, engine: CheckpointEngine, incomplete: Path) -> str | None:
    """Write this rank's files; what went wrong, as text, so that all ranks can agree on it."""
    problem = None
    if run.world.is_first:
        try:
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir(parents=True)
        except OSError as error:
            problem = str(error)
    problem = from_first_rank(problem)
    if problem:
        return problem
    try:
        engine.checkpoint_dir = incomplete
        engine.save(run.trainer.model)
        if engine.resumes:
            _write_state(run, incomplete)
        run.hook.arctic_write_checkpoint(path=str(incomplete), engine=engine, trainer=run.trainer)
    except Exception as error:
        run.log.exception("saving %s failed", incomplete, extra={"said": True})
        return str(error) if isinstance(error, (OSError, ArcticError)) else f"{type(error).__name__}: {error}"
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
        }
        (directory / STATE_FILE).write_text(json.dumps(stored, indent=1))


def _publish(run: Run, engine: CheckpointEngine, incomplete: Path, path: Path) -> str | None:
    try:
        files = sorted(file for file in incomplete.rglob("*") if file.is_file())
        manifest = {
            "format": 1,
            "type": engine.name,
            "step": run.trainer.state.step,
            "world_size": run.world.size,
            "arctic": __version__,
            "plugins": run.fingerprint,
            "evaluation": run.last_evaluation if run.last_evaluation_step == run.trainer.state.step else None,
            "files": {
                file.relative_to(incomplete).as_posix(): [file.stat().st_size, _sha256(file, sync=True)]
                for file in files
            },
        }
        with open(incomplete / MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        for directory in (incomplete, *(inner for inner in incomplete.rglob("*") if inner.is_dir())):
            _sync_directory(directory)
        replaced = path.with_name(path.name + ".replaced")
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)  # of a process that ended before it could
            run.warn(f"checkpoint: {path} of an earlier run is replaced")
            os.rename(path, replaced)
        os.rename(incomplete, path)
        _sync_directory(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, TypeError) as error:
        return str(error)
    return None


def _newest_of(run: Run, engines: list[CheckpointEngine]) -> tuple[int, Path] | None:
    best: tuple[int, int, Path] | None = None
    for number, engine in enumerate(engines):
        path, passed_over = newest_checkpoint(_directory_of(engine), resumable=True)
        for other, problem in passed_over:
            run.warn(f"checkpoint: passed over {other}: {problem}")
        if path is not None:
            step = int(NAME.fullmatch(path.name)[1])  # type: ignore[index]
            if best is None or step > best[0]:
                best = (step, number, path)
    return (best[1], best[2]) if best else None


def _refuse_other_batch(run: Run, engine: CheckpointEngine, path: Path, stored: dict[str, Any]) -> None:
    """A step of other rows is another training; whoever means it says so."""
    here, there = run.trainer.train_dataloader.global_batch_size, stored["global_batch_size"]
    if here == there:
        return
    if not engine.config.allow_other_batch:
        raise CheckpointError(
            f"the checkpoint was written with {there} rows in a step, and this run has {here}",
            where=str(path),
            remedy="rows = micro_batch_size x gradient_accumulation_steps x ranks; allow_other_batch: true goes on",
        )
    run.warn(f"checkpoint: {there} rows in a step before it was written, {here} from here on (allow_other_batch)")


def _load_from_elsewhere(run: Run, path: Path, stored: dict[str, Any], layout: dict[str, Any]) -> None:
    """Go on from what another engine, ZeRO stage, precision or number of ranks has saved."""
    kind = json.loads((path / MANIFEST).read_text())["type"]
    there = {"ranks": stored["world_size"], **stored.get("layout", {})}
    here = {"ranks": run.world.size, **layout}
    names = [name for name in here if there.get(name) != here[name] and name != "num_ranks"]
    changed = [f"{name.replace('_', ' ')} {there.get(name)} -> {here[name]}" for name in names]
    run.say(f"checkpoint: taken over from another layout: {', '.join(changed)}")
    written_by: Any = run.plugins.registry.get("checkpoint", kind, needed_by=f"the checkpoint {path}")
    run.trainer.engine.continue_from(written_by.read_state(path))


def _continue_random_numbers(run: Run, path: Path) -> None:
    """Those of this rank; a rank that there was none of begins with its own."""
    import torch

    file = path / f"random-{run.world.rank}.pt"
    if file.is_file():
        restore_random_state(torch.load(file, weights_only=True))
    else:
        seed_everything(run.config.seed + run.world.rank + run.trainer.state.step * run.world.size)


def _fit_position(run: Run) -> None:
    """Begin the next epoch when the data has become so short that the position is behind its end."""
    state, loader = run.trainer.state, run.trainer.train_dataloader
    if state.step_in_epoch and not loader.holds(state.position):
        run.warn(
            f"checkpoint: it was written after step {state.step_in_epoch} of epoch {state.epoch}, and the data has "
            "become shorter than that; going on with the next epoch"
        )
        state.epoch, state.step_in_epoch, state.position = state.epoch + 1, 0, {}


def _forget_old(run: Run, engine: CheckpointEngine, newest: Path) -> None:
    """Remove what the entry does not keep, once the new checkpoint has been read back."""
    config = engine.config
    found = {step: path for step, path in numbered(newest.parent).items() if (path / MANIFEST).is_file()}
    values = {step: metric_of(path, config.best_metric) if config.keep_best else None for step, path in found.items()}
    going = [path for step, path in found.items() if step not in steps_to_keep(values, config) and path != newest]
    if not going:
        return
    if problem := verify(newest):
        raise CheckpointError(
            f"the checkpoint that was just written is damaged: {problem}",
            where=str(newest),
            remedy="look at the disk; earlier checkpoints were kept",
        )
    for path in going:
        try:
            remove(path)
        except OSError as error:  # the new one is written, and training can go on
            run.warn(f"checkpoint: {path} could not be removed: {error}")


def _space(engine: CheckpointEngine, path: Path) -> str:
    """What a checkpoint takes and what there is, in words."""
    needed = f"it takes about {human_bytes(engine.estimated_bytes())}"
    try:
        free = f"{human_bytes(shutil.disk_usage(path.parent).free)} are free"
    except OSError:
        return f"{needed}; see that there is space and permission to write"
    return f"{needed}, {free}: free some space or set another output_dir"


def _sha256(path: Path, *, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
