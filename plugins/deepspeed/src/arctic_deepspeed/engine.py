"""The DeepSpeed engine: ZeRO stages 0 to 3 with offload, in one process or many.

DeepSpeed averages gradients over data-parallel ranks and divides losses by the accumulation; the core wants sums, so
the loss is multiplied by what DeepSpeed will divide by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_deepspeed import checkpoint_files, ds_config, portable, process
from arctic_deepspeed.replicated import MasterWeights
from arctic_training.adapters import kept_state
from arctic_training.distributed import any_rank
from arctic_training.engine import Engine, EngineConfig, StepResult
from arctic_training.errors import ArcticError, UsageError
from arctic_training.optimizer import base_learning_rate
from arctic_training.portable import GROUPS, PortableState, groups_digest, parameter_names, put_into_optimizer
from arctic_training.scheduler import continue_schedule

if TYPE_CHECKING:
    import torch


class DeepSpeedEngineConfig(EngineConfig):
    """The engine is configured by the recipe's ``deepspeed`` section."""


class DeepSpeedEngine(Engine):
    """Trains through ``deepspeed.initialize``."""

    name = "deepspeed"
    config: DeepSpeedEngineConfig
    needs_process_group: ClassVar[bool] = True
    checkpoint_type: ClassVar[str] = "deepspeed"

    @classmethod
    def prepare_process(cls, run: Any) -> None:
        stage, optimizer = ds_config.zero_stage(run.config.deepspeed), run.config.optimizer
        if stage and getattr(optimizer.component, "needs_whole_parameters", False) and not run.only_prepares:
            raise UsageError(
                f"the optimizer {optimizer.type!r} steps whole matrices, which ZeRO stage {stage} divides among ranks",
                where=run.config.recipe.place(("optimizer", "type")),
                remedy="set deepspeed: {zero_optimization: {stage: 0}}, or another optimizer",
            )
        setattr(run, process.SET_BY_US, process.prepare_environment(run.world, run.device.type))
        process.share_cores(run.world, run.device.type)
        process.import_without_compiling()

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        deepspeed = process.import_without_compiling()
        self.ds_config = ds_config.complete_for(self.run, getattr(model, "config", None))
        self.stage = ds_config.zero_stage(self.ds_config)
        self.scheduler = scheduler
        self.optimizer = optimizer
        self.parameter_names = parameter_names(model, optimizer)
        self.groups = groups_digest(model, optimizer)
        self.num_micro_batches = 0
        if self.stage == 0:
            model.to(self.device)
            self.masters = MasterWeights(optimizer)
        self.scaler = self._loss_scaler()
        try:
            with process.without_chatter():
                self.model = deepspeed.initialize(model=model, optimizer=optimizer, config=self.ds_config)[0]
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise UsageError(
                f"DeepSpeed refuses this configuration: {error}",
                where=self.run.config.recipe.place(("deepspeed",), "key"),
                remedy="change the section, or model.dtype where it is about precision",
            ) from error
        process.let_groups_wait(self.run.config.process_group_timeout)
        self.model_unwrapped = self.model.module
        ds_config.check_engine(self.model, self.ds_config)
        self.divisor = self.model.seq_dp_world_size if getattr(self.model, "gradient_average", True) else 1
        if self.stage == 0:
            self.masters.read_model()  # rank 0's weights have been sent to all

    def place_frozen(self, model: torch.nn.Module) -> torch.nn.Module:
        """Under ZeRO-3 it is partitioned like the model that is trained, and every rank has to take part in asking."""
        if self.stage < 3:
            return super().place_frozen(model)
        deepspeed = process.import_without_compiling()
        with process.without_chatter():
            engine = deepspeed.initialize(model=model, config=ds_config.frozen(self.ds_config))[0]
        engine.eval()  # gives nothing back
        frozen: torch.nn.Module = engine
        return frozen

    def backward(self, loss: torch.Tensor) -> None:
        accumulation = self.ds_config["gradient_accumulation_steps"]
        self.num_micro_batches += 1
        self.model.set_gradient_accumulation_boundary(self.num_micro_batches == accumulation)
        self.model.backward(self.scaler.scale(loss * self.divisor), scale_wrt_gas=False)

    def step(self) -> StepResult:
        accumulation = self.ds_config["gradient_accumulation_steps"]
        if self.num_micro_batches != accumulation:
            raise ArcticError(
                f"an optimizer step has {accumulation} micro-batches, and {self.num_micro_batches} went backward",
                remedy="call trainer.backward once for each micro-batch of the step",
            )
        self.num_micro_batches = 0
        result = self._step_replicated() if self.stage == 0 else self._step_partitioned()
        if result.applied:
            self.scheduler.step()
        return result

    def update_model(self) -> None:
        if self.stage == 0:
            self.masters.write_back()
        else:
            portable.update_model(self.model.optimizer, self.stage)

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        first = self.global_rank == 0
        for name, tensor in kept_state(self.model_unwrapped, keep_vars=True).items():
            with self._gathered(tensor):
                whole = tensor.detach().to("cpu", copy=True) if first else torch.empty(0, dtype=tensor.dtype)
            yield name, whole

    def save(self, path: Path) -> None:
        state = {
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            portable.NAMES: self.parameter_names,
        }
        if self.stage == 0:
            state["master_weights"] = self.masters.state_dict()
        checkpoint_files.save(self.model, path, state, self._description(), self.writer_for(path))

    def load(self, path: Path) -> None:
        state = checkpoint_files.load(self.model, path, self._description())
        continue_schedule(self.scheduler, state["scheduler"], self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        if self.stage == 0:
            self.masters.load_state_dict(state["master_weights"])

    def continue_from(self, state: PortableState) -> None:
        if self.stage == 0:
            put_into_optimizer(state, self.model_unwrapped, self.parameter_names, self.optimizer)
        else:
            portable.write_partitioned(state, self.model, self.model_unwrapped, self.stage)
        continue_schedule(self.scheduler, state.scheduler, self.optimizer)
        if self.stage == 0 and state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def layout(self) -> dict[str, Any]:
        described = {key: self._description()[key] for key in checkpoint_files.LAYOUT}
        return {"engine": self.name, **described, GROUPS: self.groups}

    @property
    def learning_rate(self) -> float:
        return base_learning_rate(self.optimizer)

    def _step_partitioned(self) -> StepResult:
        """ZeRO 1 to 3 look for non-finite gradients themselves, on all ranks together."""
        self.model.step()
        applied = self.model.was_step_applied()
        norm = self.model.get_global_grad_norm()
        if not applied and self.stage < 3:
            # With offload, DeepSpeed 0.19 keeps the partition's sum after such a step and adds the next gradients to
            # it.
            kept = getattr(self.model.optimizer, "averaged_gradients", {})
            kept.update(dict.fromkeys(kept))
        return StepResult(applied, float(norm) if norm is not None else math.nan)

    def _step_replicated(self) -> StepResult:
        """After the reduction every rank has the same gradients; without ZeRO nobody looks whether they are finite."""
        import torch

        self.masters.take_gradients()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        grad_norm = float(torch.nn.utils.get_total_norm(gradients))
        applied = not any_rank(not math.isfinite(grad_norm), self.device)
        if applied:
            self.model.step()  # clips, steps and forgets
            self.masters.write_back()
        else:
            self.model.zero_grad()
        self.masters.clear()
        self.scaler.update()
        return StepResult(applied, grad_norm)

    def _loss_scaler(self) -> torch.amp.GradScaler:
        """ZeRO scales the loss of fp16 itself; without ZeRO it is done here."""
        import torch

        fp16 = self.run.config.model.precision == "fp16"
        return torch.amp.GradScaler(self.device.type, enabled=fp16 and self.stage == 0)

    def _gathered(self, tensor: torch.Tensor) -> AbstractContextManager:
        """Within it a parameter that ZeRO-3 has partitioned is whole."""
        if not hasattr(tensor, "ds_id"):
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([tensor])

    def _description(self) -> dict[str, Any]:
        import deepspeed

        return {
            "deepspeed": deepspeed.__version__,
            "zero_stage": self.stage,
            "num_ranks": self.world_size,
            "precision": self.run.config.model.precision,
        }
