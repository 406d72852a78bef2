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


def warn_of_untrained_tokens(trainer: Trainer) -> None:
    """Say that tokens which the recipe adds stay the mean of the others where an adapter or ``model.freeze`` leaves
    their embeddings as they are."""
    added = getattr(trainer.run.component("tokenizer"), "added", None)
    model = trainer.model_unwrapped
    if not added or not added.new_ids or not hasattr(model, "get_input_embeddings"):
        return
    parts = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    places = [name for name, module in model.named_modules() if any(module is part for part in parts)]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    frozen = [place for place in places if not any(name.startswith(f"{place}.") for name in trained)]
    tied = len({id(part.weight) for part in parts if hasattr(part, "weight")}) == 1
    if frozen and not (tied and len(frozen) < len(places)):
        ends = [place.rpartition(".")[2] for place in frozen]
        trainer.run.warn(
            f"{len(added.new_ids)} added tokens are not learnt: nothing is trained of {' and '.join(frozen)}; take it "
            f"out of model.freeze, or name them to the adapter (modules_to_save: [{', '.join(ends)}])"
        )
