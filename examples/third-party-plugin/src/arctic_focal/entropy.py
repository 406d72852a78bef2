"""The entropy term that the wrapper of this plugin adds to a loss.

Shapes: B rows, L tokens, V words, T trained tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_focal.loss import IGNORE_INDEX
from arctic_training import LossSum

if TYPE_CHECKING:
    import torch


class LogitsOf:
    """Inside its ``with`` block, ``logits`` holds what the model gave last, so that no second forward is needed."""

    logits: torch.Tensor

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __enter__(self) -> LogitsOf:
        self.handle = self.model.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()

    def _keep(self, model: torch.nn.Module, arguments: Any, output: Any) -> None:
        self.logits = output.logits


def with_entropy_reward(
    loss: LossSum | torch.Tensor, logits_BLV: torch.Tensor, labels_BL: torch.Tensor, weight: float
) -> LossSum | torch.Tensor:
    """The loss minus ``weight`` times the entropy of the predictions of trained tokens (Pereyra et al., 2017,
    arXiv:1701.06548, section 3): subtracted from a sum as a sum, from a mean as a mean.
    """
    entropy_T = _entropy(logits_BLV, labels_BL)
    if isinstance(loss, LossSum):
        return LossSum(loss.sum - weight * entropy_T.sum(), loss.weight)
    return loss - weight * entropy_T.sum() / max(len(entropy_T), 1)


def _entropy(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    logits_TV = logits_BLV[:, :-1][labels_BL[:, 1:] != IGNORE_INDEX].float()
    log_p_TV = logits_TV.log_softmax(-1)
    return -(log_p_TV.exp() * log_p_TV).sum(-1)
