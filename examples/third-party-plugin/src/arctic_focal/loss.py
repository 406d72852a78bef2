"""The focal loss of next-token prediction.

Shapes: B rows, L tokens, V words, T trained tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100


def focal_loss_sum(logits_BLV: torch.Tensor, labels_BL: torch.Tensor, gamma: float) -> torch.Tensor:
    """Sum over the trained tokens of

        FL(p) = - (1 - p) ** gamma * log(p),

    where p is the probability that the model gives to the label (Lin et al., 2017, "Focal Loss for Dense Object
    Detection", arXiv:1708.02002, equation 4). In nats; gamma 0 is cross entropy.

    Args:
        logits_BLV: logits; those at t - 1 predict token t.
        labels_BL: the label of token t at t, -100 where it is not trained.
        gamma: at least 0.

    Returns:
        A scalar, in fp32 at least.
    """
    import torch

    log_p_T = trained_log_probabilities(logits_BLV, labels_BL)
    # 1 - p without cancellation. Kept above 0, where the slope of a root (gamma below 1) would be infinite.
    miss_T = (-torch.expm1(log_p_T)).clamp_min(torch.finfo(log_p_T.dtype).tiny)
    return -(miss_T**gamma * log_p_T).sum()


def trained_log_probabilities(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """log p of the label of each trained token, of shape (T,)."""
    labels_BL = labels_BL[:, 1:]
    trained_BL = labels_BL != IGNORE_INDEX
    logits_TV = logits_BLV[:, :-1][trained_BL]
    if logits_TV.element_size() < 4:
        logits_TV = logits_TV.float()
    return logits_TV.log_softmax(-1).gather(-1, labels_BL[trained_BL][:, None])[:, 0]
