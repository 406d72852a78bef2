"""AdamW whose moments take a byte each, by the kernels of bitsandbytes (Dettmers et al., 2021, arXiv:2110.02861)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from arctic_training.errors import PluginError, UsageError
from arctic_training.optimizer import OptimizerConfig, OptimizerFactory

if TYPE_CHECKING:
    import torch


class AdamW8bitFactory(OptimizerFactory):
    """bitsandbytes' AdamW in 8 bits; of an accelerator, where its kernels run."""

    name = "adamw_8bit"
    config: OptimizerConfig
    needs_whole_parameters: ClassVar[bool] = True

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        if self.device.type != "cuda":
            raise UsageError(
                f"the 8-bit kernels of bitsandbytes step parameters on an accelerator, not on a {self.device.type}",
                where="optimizer.type",
                remedy="take adamw, or adafactor, which needs as little memory",
            )
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise PluginError(
                f"adamw_8bit needs bitsandbytes: {error}",
                where="optimizer.type",
                remedy="pip install 'arctic-plugin-optimizers[bitsandbytes]'",
            ) from error
        return AdamW8bit(self.parameter_groups(model), lr=self.config.learning_rate, betas=self.config.betas)
