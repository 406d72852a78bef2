"""How a run goes on: the newest whole checkpoint, whoever wrote it, and what has to fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.adapters import adapter_of, trained_shapes
from arctic_training.checkpointing import data_keys, directory_of
from arctic_training.continuity import refuse_other_optimizer, tell_other_keys
from arctic_training.distributed import from_first_rank
from arctic_training.errors import CheckpointError
from arctic_training.manifest import NOT_THERE, STATE_FILE, newest_checkpoint, refuse_foreign, verify
from arctic_training.retention import MANIFEST, NAME, numbered
from arctic_training.state import TrainState, restore_random_state, seed_everything
from arctic_training.wording import counted

if TYPE_CHECKING:
    from arctic_training.checkpoint import CheckpointEngine
    from arctic_training.run import Run


def resume(run: Run) -> Path | None:
    """Go on from the checkpoint that ``resume`` names, or the newest complete one of the entries with ``auto_resume``.

    Returns:
        The directory that was loaded, or None when there is none yet.

    Raises:
        CheckpointError: the checkpoint is not whole or does not fit this run.
    """
    engines = run.trainer.checkpoint_engines
    candidates = [engine for engine in engines if engine.config.auto_resume]
    for engine in candidates:
        if not engine.resumes:
            raise CheckpointError(
                f"training cannot go on from a {engine.name} checkpoint: it holds the model alone",
                remedy="set auto_resume on a checkpoint without type, the engine's own kind",
            )
    path = from_first_rank(_chosen(run, candidates) if run.world.is_first else None)
    if isinstance(path, CheckpointError):
        raise path
    if path is None:
        return None
    refuse_foreign(path, trusted=run.config.trusted)
    stored = json.loads((path / STATE_FILE).read_text())
    manifest = json.loads((path / MANIFEST).read_text())
    kind = manifest["type"]
    _refuse_other_batch(run, path, stored)
    refuse_other_optimizer(run, path, stored)
    tell_other_keys(run, path, stored)
    _warn_of_other_data(run, path, manifest)
    _refuse_other_base(run, path, stored.get("adapter"))
    layout = run.trainer.engine.layout()
    same = layout | stored.get("layout", {}) == layout and stored["world_size"] == run.world.size
    if same and (own := next((engine for engine in engines if engine.name == kind), None)):
        own.checkpoint_dir = path
        own.load(run.trainer.model)
    elif same and kind == run.trainer.engine.checkpoint_type:
        run.trainer.engine.load(path)
    else:
        _load_from_elsewhere(run, path, kind, stored, layout)
    run.trainer.state = TrainState.from_dict(stored["state"])
    _fit_position(run)
    _continue_random_numbers(run, path)
    run.trainer.hook.arctic_after_load(path=str(path), state=stored["plugins"], trainer=run.trainer)
    run.event("resumed", step=run.trainer.state.step, path=str(path))
    return path


def refuse_absent(run: Run) -> None:
    """Find out before anything is prepared whether what ``resume`` names is there, as the first rank sees it.

    Raises:
        CheckpointError: it is not.
    """
    given = _named(run)
    if run.world.is_first and given is not None and not given.is_dir():
        raise _refused(given, NOT_THERE)


def _chosen(run: Run, candidates: list[CheckpointEngine]) -> Path | CheckpointError | None:
    """The checkpoint to go on from; an error instead of raising it on one rank alone."""
    given = _named(run)
    told = {given} if given else set()  # what is wrong with the one that is named is told by its error
    found = [path for engine in candidates if (path := _newest_of(run, directory_of(engine), told))]
    newest = max(found, key=_step_of, default=None)
    if given is None:
        for directory in {directory_of(engine) for engine in candidates} if newest is None else ():
            if damaged := len(numbered(directory)):
                run.warn(
                    f"checkpoint: of {counted(damaged, 'checkpoint')} in {directory} none is whole, so training "
                    "starts anew"
                )
        return newest
    path = given if NAME.fullmatch(given.name) else _newest_of(run, given, told)
    nothing = "there is no checkpoint in it that training can go on from"
    problem = verify(path) if path else nothing if given.is_dir() else NOT_THERE
    if path is not None and problem is None and not (path / STATE_FILE).is_file():
        problem = "it holds the model alone"
    if path is None or problem is not None:
        return _refused(path or given, str(problem))
    if newest is not None and _step_of(newest) > _step_of(path):
        run.say(f"checkpoint: {newest} is newer than {path}, and auto_resume goes on from it")
        return newest
    return path


def _named(run: Run) -> Path | None:
    return Path(run.config.resume).expanduser().absolute() if run.config.resume else None


def _refused(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(problem, where=str(path), remedy="name a whole checkpoint, or a directory that holds one")


def _newest_of(run: Run, directory: Path, told: set[Path]) -> Path | None:
    """The newest whole checkpoint in a directory; each that is passed over is told once."""
    path, passed_over = newest_checkpoint(directory, resumable=True)
    for other, problem in passed_over:
        if other not in told:
            run.warn(f"checkpoint: passed over {other}: {problem}")
        told.add(other)
    return path


def _step_of(path: Path) -> int:
    return int(NAME.fullmatch(path.name)[1])  # type: ignore[index]


def _refuse_other_batch(run: Run, path: Path, stored: dict[str, Any]) -> None:
    """A step of other rows is another training; whoever means it says so."""
    here, there = run.trainer.train_dataloader.global_batch_size, stored["global_batch_size"]
    if here == there:
        return
    if not any(engine.config.allow_other_batch for engine in run.trainer.checkpoint_engines):
        raise CheckpointError(
            f"the checkpoint was written with {there} rows in a step, and this run has {here}",
            where=str(path),
            remedy="rows = gradient_accumulation_steps x micro_batch_size x ranks: twice the ranks need half the "
            "accumulation; allow_other_batch: true on the entry of checkpoint goes on all the same",
        )
    run.warn(f"checkpoint: {there} rows in a step before it was written, {here} from here on (allow_other_batch)")


def _warn_of_other_data(run: Run, path: Path, manifest: dict[str, Any]) -> None:
    """The position in the data is a number of rows, which other rows may stand behind."""
    there, here = manifest.get("data", {}).get("train"), data_keys(run).get("train")
    if there and here and there != here:
        run.warn(
            f"checkpoint: the training rows are not those that {path} was written with; training goes on behind as "
            "many of the new ones (arctic cache explain tells what differs)"
        )


def _refuse_other_base(run: Run, path: Path, there: dict[str, Any] | None) -> None:
    """An adapter means nothing beside other weights than those it was trained with."""
    here = adapter_of(run.trainer.model_unwrapped)
    if (here is None) != (there is None):
        has, lacks = ("the checkpoint", "this run") if here is None else ("this run", "the checkpoint")
        raise CheckpointError(
            f"{has} trains an adapter, and {lacks} does not",
            where=str(path),
            remedy="resume with the model section that the checkpoint was written with",
        )
    if here is None or there is None:
        return
    if here.precision == there["precision"] and here.fingerprint != there["fingerprint"]:
        raise CheckpointError(
            f"its adapter was trained beside {there['base']!r}, and the weights of {here.base!r} are others",
            where=str(path),
            remedy="resume with the base model that the checkpoint was written with",
        )
    names = sorted(name for name in {*here.config, *there["config"]} if name not in ("base_model_name_or_path",))
    odd = [
        f"{name} is {here.config.get(name)}, and was {there['config'].get(name)}"
        for name in names
        if here.config.get(name) != there["config"].get(name)
    ]
    words = f"the adapter is not the one that was saved: {'; '.join(odd) or 'it has other weights'}"
    shapes = trained_shapes(run.trainer.model_unwrapped)
    if there.get("shapes", shapes) != shapes:
        remedy = "resume with the peft_config that the checkpoint was written with, or begin in another output_dir"
        raise CheckpointError(words, where=str(path), remedy=remedy)
    if odd:
        run.warn(f"checkpoint: {words} in {path}")


def _load_from_elsewhere(run: Run, path: Path, kind: str, stored: dict[str, Any], layout: dict[str, Any]) -> None:
    """Go on from what another engine, ZeRO stage, precision or number of ranks has saved."""
    there = {"ranks": stored["world_size"], **stored.get("layout", {})}
    here = {"ranks": run.world.size, **layout}
    names = [name for name in here if name in there and there[name] != here[name] and name != "num_ranks"]
    changed = [f"{name.replace('_', ' ')} {there[name]} -> {here[name]}" for name in names]
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
