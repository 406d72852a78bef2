"""A teacher's likeliest words, stored with prepared rows: a column for each place, and one for all other words.

Shapes: B rows, L tokens, N trained tokens, V words, K words that are stored, O = K + 1 outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from arctic_distill.divergence import coarsened, tempered
from arctic_huggingface.companions import fitting_architecture, num_words
from arctic_huggingface.hub import refusal
from arctic_training.asked_rows import with_asked_columns

if TYPE_CHECKING:
    import torch

    from arctic_distill.trainer import DistillTrainerConfig
    from arctic_training.token_data import TokenDataFactory
    from arctic_training.token_rows import TokenRows

ID = "teacher_id_{}"
LOG_P = "teacher_log_p_{}"


def stored_of(
    columns: Mapping[str, torch.Tensor], k: int, trained_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The words (N, K) that were stored for the trained tokens of a micro-batch, likeliest first, and their
    log-probabilities, the last of them that of all other words together (N, O)."""
    import torch

    ids = [columns[ID.format(place)][trained_BL] for place in range(k)]
    log_p = [columns[LOG_P.format(place)][trained_BL] for place in range(k + 1)]
    return torch.stack(ids, -1).long(), torch.stack(log_p, -1)


def with_top_k(rows: TokenRows, factory: TokenDataFactory) -> TokenRows:
    """Rows with the columns that ``stored_of`` reads, at the temperature of the recipe.

    Raises:
        RecipeError: the student cannot learn from this teacher, or it has no more words than shall be stored.
    """
    run, recipe = factory.run, cast("DistillTrainerConfig", factory.run.config)
    teacher, temperature, k = recipe.teacher, recipe.temperature, recipe.top_k
    known = [num_words(sizes) for sizes in (fitting_architecture(run, teacher), run.model_config)]
    words = min((number for number in known if number is not None), default=None)
    if words is not None and k >= words:
        raise refusal(run, "data.teacher_top_k")(f"is {k}, and there are {words} words", "store fewer of them")
    model = run.frozen_model(teacher)
    run.say(f"data: the teacher is asked for its {k} likeliest words of each trained token")

    def ask(ids_BL: torch.Tensor, places_BL: torch.Tensor) -> dict[str, torch.Tensor]:
        logits_NV = model(input_ids=ids_BL, use_cache=False).logits[places_BL][:, :words]
        log_p_NV = tempered(logits_NV, temperature)
        ids_NK = log_p_NV.topk(k, dim=-1).indices
        log_p_NO = coarsened(log_p_NV, ids_NK)
        stored = {ID.format(place): ids_N for place, ids_N in enumerate(ids_NK.int().unbind(-1))}
        return stored | {LOG_P.format(place): log_p_N for place, log_p_N in enumerate(log_p_NO.unbind(-1))}

    return with_asked_columns(rows, factory, ask)
