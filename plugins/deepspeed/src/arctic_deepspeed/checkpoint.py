"""Checkpoints in DeepSpeed's own form, sharded as the ranks hold their state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.checkpoint import CheckpointConfig, CheckpointEngine
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from arctic_training.portable import PortableState


class DSCheckpointEngine(CheckpointEngine):
    """Writes and reads what the DeepSpeed engine holds: weights, master weights, optimizer state, schedule."""

    name = "deepspeed"
    config: CheckpointConfig
    resumes = True
    of_engine = "deepspeed"

    def save(self, model: Any) -> None:
        engine = self._engine()
        engine.writer = self.writer
        engine.save(self.checkpoint_dir)

    def load(self, model: Any) -> None:
        self._engine().load(self.checkpoint_dir)

    @classmethod
    def read_model(cls, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        from arctic_deepspeed.reading import read_model

        return read_model(path)

    @classmethod
    def read_state(cls, path: Path) -> PortableState:
        from arctic_deepspeed.portable import read_state

        return read_state(path)

    def _engine(self) -> Any:
        engine = self.trainer.engine
        if engine.checkpoint_type != self.name:
            raise CheckpointError(
                f"a deepspeed checkpoint holds a deepspeed engine, and this run has the {engine.name} engine",
                where=str(self.checkpoint_dir),
                remedy="leave the checkpoint's type out, which means the engine's own kind",
            )
        return engine
