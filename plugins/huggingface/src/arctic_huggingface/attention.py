"""The check at the start of training that the documents of a pack do not see each other.

Which attention implementations keep them apart depends on versions of transformers and torch, on the shape of the batch
and on the model, and one that does not gives no warning: so the model that is about to be trained is asked.

Shapes: B rows, L tokens of a row, V words.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from arctic_huggingface.hub import refusal
from arctic_training.state import random_state, restore_random_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from arctic_training.trainer import Trainer

DOCUMENTS = (7, 4, 10)
"""Tokens of each document of the pack that is tried."""
TOLERANCE_FP32 = 1e-4
TOLERANCE_16_BIT = 0.1
"""Largest difference of logits, as a share of the largest logit. Measured on random Llamas: 0.7 to 1.5 where documents
see each other; where they do not 2e-7 to 6e-7 in fp32 and up to 0.016 in 16 bits, since sums differ in their order."""


def check_packing(trainer: Trainer) -> None:
    """Refuse a model whose logits of a document in a pack are not those of the document alone.

    Called on every rank, which all do the same forward passes. Does nothing when rows are no packs. The state of random
    numbers is left as it was.

    Raises:
        RecipeError: documents see each other; names the attention implementation.
    """
    if not _trains_on_packs(trainer):
        return
    name = getattr(trainer.model_unwrapped.config, "_attn_implementation", None) or "unknown"
    what = f"attn_implementation {name!r} with {type(trainer.model_unwrapped).__name__}"
    refused = refusal(trainer.run, "model.attn_implementation")
    remedy = f"use {_others(name)}, or set data.pack_samples: false"
    try:
        with _as_in_evaluation(trainer.model):
            difference = packing_difference(trainer)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise refused(f"{what} cannot run packs here: {type(error).__name__}: {reason}", remedy) from error
    tolerance = TOLERANCE_FP32 if trainer.config.model.precision == "fp32" else TOLERANCE_16_BIT
    if not difference <= tolerance:
        raise refused(
            f"{what} lets documents of a pack see each other: their logits differ from those of the documents alone "
            f"by {difference:.2g} of the largest (allowed: {tolerance:g})",
            remedy,
        )


def packing_difference(trainer: Trainer) -> float:
    """Largest difference between logits in a pack and alone, as a share of the largest logit.

    The pack has as many rows as a micro-batch of the run, at most 2, since some implementations keep documents apart in
    a batch of one row only. Every forward pass has the same shape, for those that compile: a document alone is followed
    by tokens that it cannot see, since attention is causal.
    """
    import torch

    rows = min(2, trainer.config.micro_batch_size)
    length = sum(DOCUMENTS)
    vocabulary = trainer.model_unwrapped.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    input_ids_BL = torch.randint(vocabulary, (rows, length), generator=generator)
    lengths_of = [DOCUMENTS, DOCUMENTS[::-1]][:rows]  # each row is divided in other places
    packed_BLV = _logits(trainer, input_ids_BL, [[n for size in sizes for n in range(size)] for sizes in lengths_of])
    difference, largest = 0.0, 0.0
    for number in range(len(DOCUMENTS)):
        begins = [sum(sizes[:number]) for sizes in lengths_of]
        rolled_BL = torch.stack([input_ids_BL[row].roll(-begin) for row, begin in enumerate(begins)])
        alone_BLV = _logits(trainer, rolled_BL, [list(range(length))] * rows)
        for row, begin in enumerate(begins):
            size = lengths_of[row][number]
            alone_LV = alone_BLV[row, :size]
            difference = max(difference, float((packed_BLV[row, begin : begin + size] - alone_LV).abs().max()))
            largest = max(largest, float(alone_LV.abs().max()))
    return difference / largest if largest else difference


def _logits(trainer: Trainer, input_ids_BL: torch.Tensor, positions: list[list[int]]) -> torch.Tensor:
    import torch

    position_ids_BL = torch.tensor(positions, device=trainer.device)
    output = trainer.model(input_ids=input_ids_BL.to(trainer.device), position_ids=position_ids_BL, use_cache=False)
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
