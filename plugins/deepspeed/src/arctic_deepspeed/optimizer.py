"""DeepSpeed's optimizers, ``fused_adam`` and ``cpu_adam``: both AdamW (Loshchilov and Hutter, arXiv:1711.05101).

Neither compiles anything unasked: ``fused_adam`` takes DeepSpeed's kernel only where it is built already, and
``cpu_adam``, which has no other form, says beforehand what is missing.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.errors import UsageError
from arctic_training.optimizer import OptimizerConfig, OptimizerFactory

if TYPE_CHECKING:
    import torch

SECONDS_OF_A_BUILD = 180
"""A lock in the folder of compiled ops that is older than this belongs to a build that was killed."""


class FusedAdamFactory(OptimizerFactory):
    """AdamW in one kernel over all parameters: DeepSpeed's where its op is built, else torch's."""

    name = "fused_adam"
    algorithm = "adamw"
    config: OptimizerConfig

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        import torch

        arguments: dict[str, Any] = {"lr": self.config.learning_rate, "betas": self.config.betas}
        groups = self.parameter_groups(model)
        if self.device.type == "cuda" and is_installed("fused_adam"):
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(groups, adam_w_mode=True, **arguments)
        why = "on a CPU" if self.device.type == "cpu" else "since DeepSpeed's op is not built"
        self.run.say(f"optimizer: fused_adam is torch's fused AdamW {why}")
        return torch.optim.AdamW(groups, fused=self.device.type in ("cpu", "cuda", "mps", "xpu"), **arguments)


class CPUAdamFactory(OptimizerFactory):
    """DeepSpeed's AdamW for optimizer state that is offloaded to the CPU; compiled at its first use."""

    name = "cpu_adam"
    algorithm = "adamw"
    config: OptimizerConfig

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        from arctic_deepspeed.process import import_without_compiling, without_chatter

        self._refuse_without_offload()
        import_without_compiling()
        if not is_installed("cpu_adam"):
            refuse_without_compiler(self.run.config.recipe.place(("optimizer", "type")))
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from filelock import FileLock

        groups = self.parameter_groups(model)
        try:
            directory = build_directory("cpu_adam")
            with FileLock(directory / "arctic.lock"), without_chatter():  # ranks of one machine build one after another
                wait_for_build(directory)
                return DeepSpeedCPUAdam(groups, lr=self.config.learning_rate, betas=self.config.betas, adamw_mode=True)
        except (RuntimeError, ImportError, OSError) as error:
            cause = error.__cause__ or error
            raise UsageError(f"DeepSpeed's cpu_adam could not be built: {cause}", remedy=_OTHERWISE) from error

    def _refuse_without_offload(self) -> None:
        zero = self.run.config.deepspeed.get("zero_optimization") or {}
        offload = zero.get("offload_optimizer") or {}
        if self.device.type != "cpu" and offload.get("device") not in ("cpu", "nvme"):
            raise UsageError(
                "cpu_adam trains weights on the CPU, and nothing is offloaded there",
                where=self.run.config.recipe.place(("optimizer", "type")),
                remedy="set deepspeed.zero_optimization.offload_optimizer.device: cpu, or optimizer.type: fused_adam",
            )


_OTHERWISE = "install g++ and ninja, or set optimizer.type: fused_adam, which also works with offload"


def is_installed(op: str) -> bool:
    """Whether DeepSpeed was installed with this op built."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(op, False))


def refuse_without_compiler(where: str) -> None:
    """Refuse to begin a build that cannot end well.

    Args:
        where: the place in the recipe that asks for it.

    Raises:
        UsageError: the compiler or ninja is missing; says which.
    """
    wanted = {"a C++ compiler": ("c++", "g++", "clang++"), "ninja": ("ninja",)}
    missing = [what for what, names in wanted.items() if not any(map(shutil.which, names))]
    if missing:
        raise UsageError(
            f"DeepSpeed's cpu_adam has to be compiled, and there is no {' and no '.join(missing)}",
            where=where,
            remedy=_OTHERWISE,
        )


def build_directory(op: str) -> Path:
    """Where torch builds an op."""
    from torch.utils import cpp_extension

    return Path(cpp_extension._get_build_directory(op, verbose=False))


def wait_for_build(directory: Path, seconds: float = SECONDS_OF_A_BUILD) -> None:
    """Wait while another program builds in this directory; torch itself would wait for ever.

    Raises:
        UsageError: the build was killed and left its lock.
    """
    lock = directory / "lock"
    while lock.exists():
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            return
        if age > seconds:
            raise UsageError(
                "a build of DeepSpeed's cpu_adam was killed and left its lock",
                where=str(lock),
                remedy="delete this file and start again",
            )
        time.sleep(0.5)
