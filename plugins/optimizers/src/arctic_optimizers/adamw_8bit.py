"""AdamW whose moments take a byte each, by the kernels of bitsandbytes (Dettmers et al., 2021, arXiv:2110.02861)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from arctic_training.errors import PluginError
from arctic_training.optimizer import OptimizerConfig, OptimizerFactory

if TYPE_CHECKING:
    import torch


class AdamW8bitFactory(OptimizerFactory):
    """bitsandbytes' AdamW in 8 bits; of an accelerator, where its kernels run."""

    name = "adamw_8bit"
    config: OptimizerConfig
    needs_whole_parameters: ClassVar[bool] = True

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found, unused-ignore]

        return AdamW8bit(self.parameter_groups(model), lr=self.config.learning_rate, betas=self.config.betas)

    @staticmethod
    def refuse_without_kernels(device: str, where: str) -> None:
        """Raise a PluginError where bitsandbytes does not run, before data is prepared."""
        if device != "cuda":
            problem = f"the 8-bit kernels of bitsandbytes step parameters on an accelerator, not on a {device}"
            raise PluginError(problem, where=where, remedy="take adamw, or adafactor, which needs as little memory")
        if find_spec("bitsandbytes") is None:
            remedy = "pip install 'arctic-plugin-optimizers[bitsandbytes]'"
            raise PluginError("adamw_8bit needs bitsandbytes, which is not installed", where=where, remedy=remedy)
