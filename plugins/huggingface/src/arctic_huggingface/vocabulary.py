"""Holds the tokenizer against the model before the first step: an id without an embedding fails far from its cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_huggingface.hub import refusal

if TYPE_CHECKING:
    from arctic_training.trainer import Trainer


def check_vocabulary(trainer: Trainer) -> None:
    """Refuse rows that hold ids for which the model has no embedding.

    Raises:
        RecipeError: names the largest id and the size of the model's vocabulary.
    """
    words = getattr(getattr(trainer.model_unwrapped, "config", None), "vocab_size", None)
    for split, rows in trainer.run.all_rows.items():
        largest = rows.largest_id
        if words is not None and largest is not None and largest >= words:
            raise refusal(trainer.run, "tokenizer.name_or_path")(
                f"the {split} rows hold the id {largest}, and the model has embeddings for {words} words",
                "name the model's own tokenizer, or a model whose vocab_size holds it",
            )
