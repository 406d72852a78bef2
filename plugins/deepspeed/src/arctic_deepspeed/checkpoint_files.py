"""DeepSpeed's checkpoint files inside a directory that the core gives: whole on every rank, or an error.

DeepSpeed's own `latest` file is neither written nor read: it names a checkpoint before all ranks have finished theirs.
Reading unpickles, so the core verifies the manifest of the directory before it calls ``load``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_deepspeed.process import without_chatter
from arctic_training.adapters import adapter_of, load_kept, names_left_out
from arctic_training.distributed import any_rank, barrier
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    from arctic_training.writing import Writer

TAG = "deepspeed"
DESCRIPTION_FILE = "engine.json"
STATE_KEY = "arctic"
LAYOUT = {"zero_stage": "ZeRO stage", "num_ranks": "number of ranks", "precision": "precision"}
"""What decides how the files are laid out, in words."""


def save(engine: Any, path: Path, state: dict[str, Any], description: dict[str, Any], writer: Writer) -> None:
    """Write model, optimizer and ``state``. Called on every rank.

    Args:
        engine: DeepSpeed's engine.
        path: an existing directory, in which no DeepSpeed checkpoint lies yet.
        state: what the engine of ours adds; tensors and plain values.
        description: what a run must have in common with this one to go on from here.
        writer: what the files are given to.

    Raises:
        CheckpointError: there is a checkpoint already, or this rank could not write.
    """
    if any_rank((path / TAG).exists(), engine.device):
        # A folder that another stage or number of ranks has written into keeps shards that a later load would pick up.
        raise CheckpointError("there is a checkpoint already", where=str(path), remedy="save into an empty directory")
    barrier()  # no rank looks after another has begun to write
    keeper = _FaultKeeper(engine.checkpoint_engine, writer, engine.module)
    copy_script = engine._copy_recovery_script
    engine.checkpoint_engine = keeper
    engine._copy_recovery_script = lambda directory: keeper.guard(lambda: copy_script(directory))
    try:
        engine.save_checkpoint(
            str(path),
            tag=TAG,
            client_state={STATE_KEY: state},
            save_latest=False,
            exclude_frozen_parameters=adapter_of(engine.module) is not None,
        )
    finally:
        engine.checkpoint_engine = keeper.inner
        engine._copy_recovery_script = copy_script
    if engine.global_rank == 0 and keeper.fault is None:
        keeper.guard(lambda: (path / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1), "utf-8"))
    if keeper.fault is not None:
        raise CheckpointError(
            f"rank {engine.global_rank} could not write its part of the checkpoint: {keeper.fault}",
            where=str(path),
            remedy="see that there is space and permission to write",
        ) from keeper.fault


def load(engine: Any, path: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Read what ``save`` wrote. Called on every rank.

    Returns:
        The ``state`` that was saved.

    Raises:
        CheckpointError: the checkpoint does not fit this run, or cannot be read.
    """
    _check_description(path, description)
    fault: Exception | None = None
    loaded: Any = None
    state: Any = {}
    try:
        with without_chatter():
            loaded, state = engine.load_checkpoint(
                str(path), tag=TAG, load_lr_scheduler_states=False, custom_load_fn=_loader(engine.module)
            )
    except (RuntimeError, ValueError, KeyError, AssertionError, OSError, AttributeError) as error:
        fault = error
    if loaded is None or fault is not None:
        raise CheckpointError(
            f"the checkpoint does not fit this model and optimizer: {fault or 'its files are missing'}",
            where=str(path),
            remedy="resume with the model, optimizer and deepspeed sections that the checkpoint was written with",
        ) from fault
    return state[STATE_KEY]


def _loader(module: Any) -> Any:
    """What loads a state into a module that trains an adapter; None leaves it to DeepSpeed."""
    return None if adapter_of(module) is None else lambda src, dst: load_kept(dst, src)


def _check_description(path: Path, description: dict[str, Any]) -> None:
    try:
        saved = json.loads((path / DESCRIPTION_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"this is no DeepSpeed checkpoint of Arctic: {error}", where=str(path), remedy="choose another checkpoint"
        ) from error
    for key, word in LAYOUT.items():
        if saved.get(key) != description[key]:
            raise CheckpointError(
                f"the checkpoint was written with {word} {saved.get(key)}, and this run has {description[key]}",
                where=str(path),
                remedy=f"resume with {word} {saved.get(key)}",
            )


class _FaultKeeper:
    """Stands in for DeepSpeed's writer while a checkpoint is saved: a rank that cannot write keeps the error for later.

    Raised at once it would leave the others waiting in DeepSpeed's barrier.
    """

    def __init__(self, inner: Any, writer: Writer, module: Any) -> None:
        self.inner = inner
        self.writer = writer
        self.module = module
        self.fault: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def makedirs(self, *args: Any, **kwargs: Any) -> None:
        self.guard(lambda: self.inner.makedirs(*args, **kwargs))

    def save(self, state_dict: Any, path: Any) -> None:
        kept = self.writer.kept(self._without_base(state_dict))
        self.guard(lambda: self.writer.write(Path(path), lambda: self.inner.save(kept, path)))

    def _without_base(self, state_dict: Any) -> Any:
        """DeepSpeed leaves frozen parameters out; what belongs to them, such as scales, it does not."""
        module = state_dict.get("module")
        left_out = names_left_out(self.module, module) if module else ()
        if not left_out:
            return state_dict
        return {**state_dict, "module": {name: entry for name, entry in module.items() if name not in left_out}}

    def guard(self, write: Any) -> None:
        """Run ``write`` and keep what it raises."""
        try:
            write()
        except Exception as error:  # noqa: BLE001 - raised again when every rank is past DeepSpeed's barrier
            self.fault = self.fault or error
