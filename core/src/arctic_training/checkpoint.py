"""The checkpoint stage: what a checkpoint engine is, and core's own, which keeps what the engine says about itself.

Engines only write and read files inside a directory that they are given. How a directory becomes a checkpoint (votes,
the manifest, the rename) is the same for all of them and stands in ``checkpointing``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from arctic_training._exports import lazy_attribute
from arctic_training.adapters import adapter_of
from arctic_training.component import Component
from arctic_training.config import ComponentConfig, key
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from arctic_training.portable import PortableState
    from arctic_training.writing import Writer


class CheckpointConfig(ComponentConfig):
    kind: ClassVar[str] = "checkpoint"
    may_stand_alone: ClassVar[bool] = True

    type: str = key("auto", doc="Kind of checkpoint; auto is the engine's own, which can be resumed from.")
    output_dir: str = key(doc="Directory that checkpoints are written into, each as `global_step_<n>`.")
    enabled: bool = key(True, doc="false writes nothing.")
    background: bool = key(
        False,
        doc="Copy what is saved to host memory, and write it while training goes on; at most one such save at a time.",
    )
    allow_other_batch: bool = key(
        False, doc="Go on also where an optimizer step has another number of rows than when the checkpoint was written."
    )
    auto_resume: bool = key(False, doc="Go on from the newest complete checkpoint in output_dir, if there is one.")
    save_every_n_steps: int = key(0, ge=0, doc="Save after every so many optimizer steps; 0 for never.")
    save_every_n_epochs: int = key(0, ge=0, doc="Save after every so many epochs; 0 for never.")
    save_every_n_minutes: float = key(0.0, ge=0, doc="Save after the step that ends so many minutes; 0 for never.")
    save_end_of_training: bool = key(False, doc="Save when training reaches its end.")
    keep_last: int = key(
        0,
        ge=0,
        doc="Complete checkpoints to keep in output_dir, the newest; 0 keeps all, unless others say what is.",
    )
    keep_best: int = key(
        0, ge=0, doc="Keep the best so many by best_metric as well; before each save there is an evaluation."
    )
    best_metric: str = key("loss", doc="Figure of the evaluation that decides; `SET/loss` for one of several sets.")
    best_is: Literal["lowest", "highest"] = key("lowest", doc="Which value of it is the best.")
    keep_every: int = key(0, ge=0, doc="Keep the checkpoints of every so many-th step as well.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        for name, default in (("best_metric", "loss"), ("best_is", "lowest")):
            if getattr(self, name) != default and not self.keep_best:
                yield name, "has no effect without keep_best"


class CheckpointEngine(Component):
    """Writes and reads one kind of checkpoint."""

    kind = "checkpoint"
    config: CheckpointConfig
    resumes: ClassVar[bool] = False
    """Whether training can go on from what ``save`` writes."""
    of_engine: ClassVar[str | None] = None
    """The engine whose state it writes; None where it takes any engine's."""
    checkpoint_dir: Path
    """The directory to write into or read from; set before ``save`` and ``load`` are called, and existing."""
    _writer: Writer | None = None

    def estimated_bytes(self) -> int:
        """About how much ``save`` will write, over all ranks: the weights, and where training can go on from it, an
        optimizer's two fp32 moments and the fp32 master weights of what is trained."""
        model = self.trainer.model_unwrapped
        parameters = list(model.parameters())
        kept = [each for each in parameters if each.requires_grad] if adapter_of(model) else parameters
        weights = sum(_numel(each) * each.element_size() for each in kept)
        trained = sum(_numel(each) for each in parameters if each.requires_grad)
        return weights + (12 * trained if self.resumes else 0)

    @property
    def writer(self) -> Writer:
        """What ``save`` may give its files to, so that they can be written in the background; what it writes itself is
        written at once."""
        from arctic_training.writing import Writer

        return self._writer or Writer(self.checkpoint_dir)

    @writer.setter
    def writer(self, writer: Writer) -> None:
        self._writer = writer

    @abstractmethod
    def save(self, model: Any) -> None:
        """Write into ``self.checkpoint_dir``. Called on every rank.

        Args:
            model: ``trainer.model``.
        """

    @abstractmethod
    def load(self, model: Any) -> None:
        """Read from ``self.checkpoint_dir`` what ``save`` wrote. Called on every rank.

        Args:
            model: ``trainer.model``.

        Raises:
            CheckpointError: the files do not fit this run, or this kind cannot be resumed from.
        """

    @classmethod
    def read_model(cls, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """Each entry of the model's state in a checkpoint by name, whole, on the CPU, read when its turn comes.

        Called without a run, whatever number of ranks wrote the checkpoint; every reference to a tensor that is kept
        costs its memory.

        Args:
            path: a checkpoint of this kind whose manifest verifies.

        Raises:
            CheckpointError: the files cannot be read, or this kind only within a run.
        """
        raise CheckpointError(
            f"the model cannot be taken out of a {cls.name} checkpoint",
            where=str(path),
            remedy=f"override read_model in {cls.__name__}, or let the recipe save a huggingface checkpoint too",
        )

    @classmethod
    def read_state(cls, path: Path) -> PortableState:
        """What training goes on from in a checkpoint, for an engine, stage or number of ranks other than its own.

        Args:
            path: a checkpoint of this kind whose manifest verifies.

        Raises:
            CheckpointError: the files cannot be read, or this kind serves its own engine alone.
        """
        raise CheckpointError(
            f"a {cls.name} checkpoint can be continued by the engine and ranks that wrote it alone",
            where=str(path),
            remedy="resume with these",
        )


def _numel(parameter: Any) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty tensor in its place


class EngineCheckpoint(CheckpointEngine):
    """Model, optimizer and schedule in the form of the engine that trains them."""

    name = "torch"
    resumes = True
    of_engine = "torch"

    def save(self, model: Any) -> None:
        self.trainer.engine.writer = self.writer
        self.trainer.engine.save(self.checkpoint_dir)

    def load(self, model: Any) -> None:
        self.trainer.engine.load(self.checkpoint_dir)

    @classmethod
    def read_model(cls, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        from arctic_training.torch_engine import read_model

        return read_model(path)

    @classmethod
    def read_state(cls, path: Path) -> PortableState:
        from arctic_training.torch_engine import read_state

        return read_state(path)


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, name)
