"""The check at the start of training that the documents of a pack do not see each other.

Which attention implementations keep them apart depends on versions of transformers and torch, on the shape of the batch and
on the model, and one that does not gives no warning: so the model that is about to be trained is asked.

Shapes: B rows, L tokens of a row, V words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from arctic_training.errors import ArcticError
from arctic_training.state import random_state, restore_random_state

if TYPE_CHECKING:
    import torch

    from arctic_training.trainer import Trainer

DOCUMENTS = (7, 4, 10)
"""Tokens of each document of the pack that is tried."""
TOLERANCE_FP32 = 1e-4
TOLERANCE_16_BIT = 0.05
"""Largest difference of logits, as a share of the largest logit. A document that sees another differs by far more; rounding
differs by up to a few hundredths in 16 bits, since packs are added up in another order."""


def check_packing(trainer: Trainer) -> None:
    """Refuse a model whose logits of a document in a pack are not those of the document alone.

    Called on every rank, which all do the same forward passes. Does nothing when rows are no packs. The state of random
    numbers is left as it was.

    Raises:
        ArcticError: documents see each other; names the attention implementation.
    """
    if not _trains_on_packs(trainer):
        return
    name = getattr(trainer.model_unwrapped.config, "_attn_implementation", None) or "unknown"
    what = f"attn_implementation {name!r} with {type(trainer.model_unwrapped).__name__}"
    with _as_in_evaluation(trainer.model):
        difference = packing_difference(trainer)
    tolerance = TOLERANCE_FP32 if trainer.config.model.precision == "fp32" else TOLERANCE_16_BIT
    if not difference <= tolerance:
        raise ArcticError(
            f"{what} lets the documents of a pack see each other: their logits differ by {difference:.2g} of the largest "
            f"from those of the documents alone (allowed: {tolerance:g})",
            where="model.attn_implementation",
            remedy=f"use {_others(name)}, or set data.pack_samples: false",
        )


def packing_difference(trainer: Trainer) -> float:
    """Largest difference between logits in a pack and alone, as a share of the largest logit.

    The pack has as many rows as a micro-batch of the run, at most 2, since some implementations keep documents apart in a
    batch of one row only.
    """
    import torch

    rows = min(2, trainer.config.micro_batch_size)
    vocabulary = trainer.model_unwrapped.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    input_ids_BL = torch.randint(vocabulary, (rows, sum(DOCUMENTS)), generator=generator).to(trainer.device)
    # Each row is divided in another place.
    lengths_of = [DOCUMENTS, DOCUMENTS[::-1]][:rows]
    positions = [[position for length in lengths for position in range(length)] for lengths in lengths_of]
    packed_BLV = _logits(trainer, input_ids_BL, torch.tensor(positions, device=trainer.device))
    difference, largest = 0.0, 0.0
    for row, lengths in enumerate(lengths_of):
        start = 0
        for length in lengths:
            document_BL = input_ids_BL[row : row + 1, start : start + length]
            alone_LV = _logits(trainer, document_BL, torch.arange(length, device=trainer.device)[None])[0]
            in_pack_LV = packed_BLV[row, start : start + length]
            difference = max(difference, float((in_pack_LV - alone_LV).abs().max()))
            largest = max(largest, float(alone_LV.abs().max()))
            start += length
    return difference / largest if largest else difference


def _logits(trainer: Trainer, input_ids_BL: torch.Tensor, position_ids_BL: torch.Tensor) -> torch.Tensor:
    output = trainer.model(input_ids=input_ids_BL, position_ids=position_ids_BL, use_cache=False)
    return output.logits.float()


def _trains_on_packs(trainer: Trainer) -> bool:
    rows = getattr(trainer.train_dataloader, "rows", None)
    return rows is not None and len(rows) > 0 and "position_ids" in rows[0]


@contextmanager
def _as_in_evaluation(model: Any) -> Iterator[None]:
    import torch

    training = {module: module.training for module in model.modules()}
    state = random_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was
        restore_random_state(state)


def _others(name: str) -> str:
    return " or ".join(choice for choice in ("sdpa", "eager") if choice != name)
