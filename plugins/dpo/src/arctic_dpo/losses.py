"""The losses of preferences, each a function of one number for each answer.

Legend: P pairs. ``chosen`` (c) and ``rejected`` (r), of shape (P,), are log p(answer | prompt) in nats, of losses with
a reference less its log p(answer | prompt), of whole answers or per token; d = c - r, s is the logistic function.
Each gives a loss for each pair, of shape (P,).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


def sigmoid(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """-log s(beta d) (Rafailov et al., 2023, arXiv:2305.18290, equation 7), a share of the pairs counted the other way
    round."""
    return _smoothed(beta * (chosen - rejected), label_smoothing)


def hinge(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta d) (SLiC, Zhao et al., 2023, arXiv:2305.10425, as in Liu et al., 2023, arXiv:2309.06657)."""
    return (1 - beta * (chosen - rejected)).relu()


def ipo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """(d - 1 / (2 beta))^2 per token (Azar et al., 2023, arXiv:2310.12036, equation 17, where beta is called tau)."""
    return (chosen - rejected - 1 / (2 * beta)).square()


def robust(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """The sigmoid loss, free of what a share of wrong labels adds (Chowdhury et al., 2024, arXiv:2403.00409)."""
    clean, flipped = -_log_sigmoid(beta * (chosen - rejected)), -_log_sigmoid(beta * (rejected - chosen))
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def bco_pair(chosen: Tensor, rejected: Tensor, *, beta: float, mean_reward: float) -> Tensor:
    """-log s(beta c - m) - log s(m - beta r), m the mean reward so far (Jung et al., 2024, arXiv:2404.04656)."""
    return -_log_sigmoid(beta * chosen - mean_reward) - _log_sigmoid(mean_reward - beta * rejected)


def apo_zero(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """1 - s(beta c) + s(beta r) (D'Oosterlinck et al., 2024, arXiv:2408.06266, equation 7)."""
    return 1 - (beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def apo_down(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """s(beta c) + 1 - s(beta d) (D'Oosterlinck et al., 2024, arXiv:2408.06266, equation 8)."""
    return (beta * chosen).sigmoid() + 1 - (beta * (chosen - rejected)).sigmoid()


def sppo_hard(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 (Wu et al., 2024, arXiv:2405.00675, equation 4.7)."""
    return (chosen - 1 / (2 * beta)).square() + (rejected + 1 / (2 * beta)).square()


def exo_pair(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """KL(s(beta d), s(-beta d) || 1 - e, e), e being ``label_smoothing`` (Ji et al., 2024, arXiv:2402.00856, 16)."""
    logits = beta * (chosen - rejected)
    better = logits.sigmoid() * (_log_sigmoid(logits) - math.log1p(-label_smoothing))
    return better + (-logits).sigmoid() * (_log_sigmoid(-logits) - math.log(label_smoothing))


def discopop(chosen: Tensor, rejected: Tensor, *, beta: float, discopop_tau: float) -> Tensor:
    """-log s(x) (1 - s(x / tau)) + exp(-x) s(x / tau), x = beta d (Lu et al., 2024, arXiv:2406.08414, equation 5)."""
    logits = beta * (chosen - rejected)
    share = (logits / discopop_tau).sigmoid()
    return -_log_sigmoid(logits) * (1 - share) + (-logits).exp() * share


def orpo(chosen: Tensor, rejected: Tensor, *, orpo_lambda: float) -> Tensor:
    """-c - lambda log s(log odds(c) - log odds(r)) per token, odds = p / (1 - p) (Hong et al., 2024, arXiv:2403.07691,
    equations 6 and 7)."""
    log_odds = (chosen - _log_1_minus_exp(chosen)) - (rejected - _log_1_minus_exp(rejected))
    return -chosen - orpo_lambda * _log_sigmoid(log_odds)


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, simpo_gamma: float, label_smoothing: float) -> Tensor:
    """-log s(beta d - gamma) per token (Meng et al., 2024, arXiv:2405.14734, equation 6)."""
    return _smoothed(beta * (chosen - rejected) - simpo_gamma, label_smoothing)


def cpo(
    chosen: Tensor, rejected: Tensor, *, beta: float, cpo_alpha: float, label_smoothing: float, chosen_mean: Tensor
) -> Tensor:
    """-log s(beta d) - alpha c per token (Xu et al., 2024, arXiv:2401.08417, equation 5)."""
    return _smoothed(beta * (chosen - rejected), label_smoothing) - cpo_alpha * chosen_mean


class PairLoss(NamedTuple):
    """A loss, whether it is told log-ratios to a reference, and whether what it is told is always per token."""

    function: Callable[..., Tensor]
    needs_reference: bool = True
    per_token: bool = False

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of what it takes besides the answers: keys of the recipe, and what the trainer knows."""
        return tuple(inspect.signature(self.function).parameters)[2:]


WITH_REFERENCE = (sigmoid, hinge, robust, bco_pair, apo_zero, apo_down, sppo_hard, exo_pair, discopop)
LOSSES: dict[str, PairLoss] = {
    **{function.__name__: PairLoss(function) for function in WITH_REFERENCE},
    "ipo": PairLoss(ipo, per_token=True),
    "orpo": PairLoss(orpo, needs_reference=False, per_token=True),
    "simpo": PairLoss(simpo, needs_reference=False, per_token=True),
    "cpo": PairLoss(cpo, needs_reference=False),
}


def _log_sigmoid(values: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def _smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * _log_sigmoid(logits) - label_smoothing * _log_sigmoid(-logits)


def _log_1_minus_exp(values: Tensor) -> Tensor:
    """log(1 - e^x) of numbers below 0, which is precise near it."""
    import torch

    return (-torch.expm1(values.clamp(max=-torch.finfo(values.dtype).eps))).log()
