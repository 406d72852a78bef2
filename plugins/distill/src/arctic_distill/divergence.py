"""How far a student's prediction is from its teacher's: the divergences, token by token.

Shapes: N trained tokens, V words, K words that were stored of a teacher.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
LEAST = -80.0
"""A log-probability that stands for none, of 2e-35: 0 times the logarithm of 0 would not be 0."""


def divergences(teacher: torch.Tensor, student: torch.Tensor, kind: Divergence, teacher_weight: float) -> torch.Tensor:
    """The divergence of two distributions P (teacher) and Q (student) at each token, in nats.

    ``forward_kl`` is KL(P || Q) (Hinton et al. 2015, arXiv:1503.02531), ``reverse_kl`` KL(Q || P) (MiniLLM, Gu et al.
    2023, arXiv:2306.08543), and ``jensen_shannon`` with M = beta P + (1 - beta) Q the generalised divergence
    beta KL(P || M) + (1 - beta) KL(Q || M) (GKD, Agarwal et al. 2023, arXiv:2306.13649).

    Args:
        teacher, student: log-probabilities of shape (N, outcomes).
        kind: which.
        teacher_weight: beta, between 0 and 1; of ``jensen_shannon`` alone.

    Returns:
        Of shape (N,).
    """
    import torch

    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(teacher_weight), student + math.log1p(-teacher_weight))
    return teacher_weight * _kl(teacher, mixture) + (1 - teacher_weight) * _kl(student, mixture)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(logits / temperature) over the words, in fp32."""
    return (logits.float() / temperature).log_softmax(-1)


def coarsened(log_p_NV: torch.Tensor, ids_NK: torch.Tensor) -> torch.Tensor:
    """log-probabilities of K words of each token and, as one outcome more, of all others together: (N, K + 1)."""
    import torch

    others_N1 = log_p_NV.scatter(-1, ids_NK, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p_NV.gather(-1, ids_NK), others_N1], dim=-1).clamp(min=LEAST)
