"""The engine stage: what runs backward and the optimizer step, and core's own for one process.

Precision is the same in every engine: arithmetic in the recipe's ``model.dtype`` over fp32 master weights and fp32
optimizer state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from arctic_training.component import Component
from arctic_training.config import ComponentConfig, key
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from arctic_training.portable import PortableState
    from arctic_training.writing import Writer


class EngineConfig(ComponentConfig):
    kind: ClassVar[str] = "engine"

    type: str = key(
        "auto",
        doc="auto takes deepspeed when there is an accelerator, more than one rank, a `deepspeed:` section or a "
        "`deepspeed` checkpoint, else torch; the run's header says which and why.",
    )


class StepResult(NamedTuple):
    """What an optimizer step came to: whether it was applied, and the gradient norm before clipping (L2, all
    parameters)."""

    applied: bool
    grad_norm: float


class Engine(Component):
    """Runs a model: forward, backward, the optimizer step, and its own kind of checkpoint.

    ``model`` is what the trainer calls; ``model_unwrapped`` the module inside.
    """

    kind = "engine"
    config: EngineConfig
    needs_process_group: ClassVar[bool] = False
    """Whether a single process must be a process group of one."""
    checkpoint_type: ClassVar[str] = "torch"
    """The checkpoint component that an entry without ``type`` means."""
    model: Any
    model_unwrapped: torch.nn.Module
    writer: Writer | None = None
    """What ``save`` gives its files to, through ``writer_for``, so that they can be written in the background."""

    @classmethod
    def prepare_process(cls, run: Any) -> None:
        """Set up what must stand before the process group is joined. Nothing by default."""
        return

    @abstractmethod
    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Take the stages over: move the model to the device and get ready for the first step."""

    @abstractmethod
    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch.

        Args:
            loss: scalar, this rank's loss sum divided by the weight of the whole global batch: gradients are to be
                summed over micro-batches and ranks, never averaged.
        """

    @abstractmethod
    def step(self) -> StepResult:
        """Clip, take the optimizer step, advance the schedule, forget the gradients."""

    def update_model(self) -> None:
        """Put the optimizer's weights into the model, after something else than a step has changed them. Called on
        every rank; nothing to do where they are the same tensors."""
        return

    @abstractmethod
    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each entry of the model's state by name, whole, on the CPU, one at a time; of a model that trains an adapter
        without the frozen weights of its base (``adapters.kept_state``).

        Every rank must iterate to the end; only rank 0 gets tensors with content, the others may get empty ones.
        """

    def writer_for(self, path: Path) -> Writer:
        """The writer that was set, or one that writes at once into a directory."""
        from arctic_training.writing import Writer

        return self.writer or Writer(path)

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write model, optimizer and schedule into the existing directory ``path``, from every rank."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read what ``save`` wrote."""

    def layout(self) -> dict[str, Any]:
        """What decides how ``save`` lays its files out: those of another layout go through ``continue_from``."""
        return {"engine": self.name}

    def continue_from(self, state: PortableState) -> None:
        """Go on from what another engine, stage or number of ranks saved. Called on every rank.

        Raises:
            CheckpointError: the state does not fit, or this engine takes its own alone.
        """
        raise CheckpointError(
            f"the {self.name} engine cannot go on from what another engine or number of ranks has saved",
            remedy="resume with the engine and ranks that the checkpoint was written with",
        )

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The rate of the next step."""

    def place_frozen(self, model: torch.nn.Module) -> torch.nn.Module:
        """Take a model over that is only asked, without gradients: to the device by default.

        Called after ``prepare``, on every rank. What it returns is called as a model is.
        """
        return model.to(self.device)

    def memory_bytes(self) -> int:
        """Peak memory of this rank: of its device, or of the process on a CPU."""
        if self.device.type == "cpu":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        import torch

        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
