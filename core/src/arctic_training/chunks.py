"""Losses over logits that are computed a chunk of tokens at a time, so that memory does not grow with the vocabulary.

Shapes: N tokens, V words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NUMBERS_AT_A_TIME = 1 << 25
"""Logits that are computed with together: 128 MiB in fp32, of which a loss needs a few copies at once."""


def in_chunks(
    terms: Callable[..., torch.Tensor], logits_NV: torch.Tensor, *others: torch.Tensor | None
) -> torch.Tensor:
    """The sum of what ``terms`` gives for all tokens, computed for a chunk of them at a time.

    What it makes of a chunk's logits is given up again and made anew in backward, so that beside the logits and their
    gradient no array of their size is kept.

    Args:
        terms: from a chunk of each tensor to a tensor of sums; draws no random numbers.
        logits_NV: what may have a gradient.
        others: tensors of N entries, or None, which is handed on.
    """
    from torch.utils.checkpoint import checkpoint

    size = max(1, NUMBERS_AT_A_TIME // logits_NV.shape[-1])
    if len(logits_NV) <= size:
        return terms(logits_NV, *others)
    number = -(-len(logits_NV) // size)
    chunks = [[None] * number if other is None else other.split(size) for other in others]
    sums = [
        checkpoint(terms, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(logits_NV.split(size), *chunks, strict=True)
    ]
    total: torch.Tensor = sum(sums[1:], sums[0])
    return total
