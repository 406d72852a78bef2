"""Core's own engine: plain torch in one process.

A bf16 or fp16 model trains over fp32 master weights: the optimizer holds fp32 copies, gradients are added up in fp32
as each micro-batch's backward reaches a parameter, and after a step the copies are rounded back into the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_training import portable
from arctic_training._exports import KNOWN_COMPONENTS
from arctic_training.adapters import kept_state, load_kept
from arctic_training.config import key
from arctic_training.engine import Engine, EngineConfig, StepResult
from arctic_training.errors import CheckpointError, UsageError
from arctic_training.optimizer import base_learning_rate
from arctic_training.portable import PortableState
from arctic_training.scheduler import continue_schedule

if TYPE_CHECKING:
    import torch

STATE_FILE = "engine.pt"


class TorchEngineConfig(EngineConfig):
    gradient_clipping: float = key(1.0, ge=0, doc="Largest L2 norm of the gradient; 0 for no clipping.")
    master_weights: bool = key(
        True, doc="Keep fp32 master weights beside a bf16 or fp16 model. false is pure bf16 training."
    )


class TorchEngine(Engine):
    """Plain torch, one process, any one device."""

    name = "torch"
    config: TorchEngineConfig
    checkpoint_type: ClassVar[str] = "torch"

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        import torch

        if self.world_size > 1:
            raise UsageError(
                f"the torch engine trains in one process, and there are {self.world_size} ranks",
                remedy=f"pip install {KNOWN_COMPONENTS['engine', 'deepspeed']}, or set engine: {{type: deepspeed}}",
            )
        fp16 = any(parameter.dtype == torch.float16 for parameter in model.parameters() if parameter.requires_grad)
        if fp16 and not self.config.master_weights:
            raise UsageError(
                "fp16 cannot train without master weights: its scaled gradients have to be divided in fp32",
                where=self.run.config.recipe.place(("engine", "master_weights")),
                remedy="leave it out, or set model.dtype: bf16",
            )
        self.model = self.model_unwrapped = model.to(self.device)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.parameter_names = portable.parameter_names(model, optimizer)
        self.groups = portable.groups_digest(model, optimizer)
        self.master_of: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        if self.config.master_weights:
            self._make_master_weights()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        self.trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> StepResult:
        import torch

        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        grad_norm = float(norm)  # the one read of the device in a step
        applied = grad_norm == grad_norm and grad_norm not in (float("inf"), float("-inf"))
        if applied:
            if self.config.gradient_clipping:
                torch.nn.utils.clip_grads_with_norm_(self.trained, self.config.gradient_clipping, norm)
            self.scaler.step(self.optimizer)
            self.scheduler.step()
            self.update_model()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(applied, grad_norm)

    def update_model(self) -> None:
        import torch

        with torch.no_grad():
            for parameter, master in self.master_of.items():
                parameter.copy_(master)

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in kept_state(self.model_unwrapped).items():
            yield name, tensor.detach().cpu()

    def save(self, path: Path) -> None:
        state = {
            "model": kept_state(self.model_unwrapped),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "master_weights": [master.detach() for master in self.master_of.values()],
            "parameter_names": self.parameter_names,
        }
        self.writer_for(path).save(state, path / STATE_FILE)

    def load(self, path: Path) -> None:
        import torch

        try:
            state = torch.load(path / STATE_FILE, map_location=self.device, weights_only=True)
            load_kept(self.model_unwrapped, state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for master, saved in zip(self.master_of.values(), state["master_weights"], strict=True):
                master.data.copy_(saved)
        except (RuntimeError, ValueError, KeyError, OSError, UnpicklingError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this model and optimizer: {error}",
                where=str(path),
                remedy="resume with the model, optimizer and engine sections that the checkpoint was written with",
            ) from error
        continue_schedule(self.scheduler, state["scheduler"], self.optimizer)
        self.scaler.load_state_dict(state["scaler"])

    def continue_from(self, state: PortableState) -> None:
        portable.put_into_optimizer(state, self.model_unwrapped, self.parameter_names, self.optimizer)
        portable.put_others(state, self.model_unwrapped)
        continue_schedule(self.scheduler, state.scheduler, self.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def layout(self) -> dict[str, Any]:
        precision = self.run.config.model.precision
        masters = self.config.master_weights
        return {"engine": self.name, "precision": precision, "master_weights": masters, portable.GROUPS: self.groups}

    @property
    def learning_rate(self) -> float:
        return base_learning_rate(self.optimizer)

    def _make_master_weights(self) -> None:
        import torch

        def add_up(parameter: torch.nn.Parameter) -> None:
            master = self.master_of[parameter]
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

        for group in self.optimizer.param_groups:
            for position, parameter in enumerate(group["params"]):
                if parameter.dtype in (torch.bfloat16, torch.float16):
                    master = torch.nn.Parameter(parameter.detach().float(), requires_grad=True)
                    self.master_of[parameter] = group["params"][position] = master
                    parameter.register_post_accumulate_grad_hook(add_up)


def read_state(path: Path) -> PortableState:
    """What ``TorchEngine.save`` wrote, for another engine.

    Raises:
        CheckpointError: it cannot be read, or was written before parameters had names in it.
    """
    import torch

    try:
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
        names = state["parameter_names"]
        read, others = portable.from_optimizer(names, state["model"], state["optimizer"], state["master_weights"])
        return PortableState(names, read, others, state["scheduler"], state["scaler"])
    except (RuntimeError, ValueError, KeyError, OSError, UnpicklingError) as error:
        raise CheckpointError(
            f"its state cannot be read for another engine: {error}",
            where=str(path),
            remedy="resume with the torch engine, or choose another checkpoint",
        ) from error


def read_model(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries of the model's state in what ``TorchEngine.save`` wrote, mapped from the file and not copied.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    import torch

    try:
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
        yield from state["model"].items()
    except (RuntimeError, ValueError, KeyError, OSError, UnpicklingError) as error:
        raise CheckpointError(
            f"the model cannot be read: {error}", where=str(path), remedy="choose another checkpoint"
        ) from error
