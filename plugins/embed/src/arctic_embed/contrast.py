"""InfoNCE over all texts of a global batch: each query against every document.

Shapes: T texts, N queries (rows), M documents (positive and negative texts), R rows looked at together, D units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from arctic_embed.trainer import EmbedTrainerConfig

CUTOFFS = (1, 10)


def measured(config: EmbedTrainerConfig, width: int) -> dict[int, tuple[float, str]]:
    """Numbers of leading units, the whole width first: the weight of their loss, and what ends names of figures."""
    weights = dict(zip(config.matryoshka_dims or [width], config.matryoshka_weights or [1.0] * width, strict=False))
    return {width: (weights.pop(width, 0.0), "")} | {dim: (weight, f"/{dim}") for dim, weight in weights.items()}


def figure_names(config: EmbedTrainerConfig, width: int) -> list[str]:
    """What ``contrast`` measures of each row behind its loss."""
    suffixes = [suffix for _, suffix in measured(config, width).values()]
    return ["negatives", *(f"{name}{of}" for of in suffixes for name in (*(f"recall@{k}" for k in CUTOFFS), "mrr"))]


def contrast(
    embeddings_TD: torch.Tensor, numbers_T: torch.Tensor, keys_T: torch.Tensor, rows: range, config: EmbedTrainerConfig
) -> torch.Tensor:
    """Loss and figures of some rows against the texts of all, of shape (R, 1 + figures).

    Args:
        embeddings_TD: of any length.
        numbers_T: 1 where a text is a query, 2 where it is positive, more where it is negative; row after row.
        keys_T: the same for equal texts.
        rows: numbers of rows.
        config: says which loss.

    For a query q, its positive text p, all documents d, cosine similarities s and the temperature t the loss is

        - log( exp(s(q, p) / t) / sum over d of exp(s(q, d) / t) )

    (InfoNCE: van den Oord et al. 2018, arXiv:1807.03748), without documents that are p once more or answer a query that
    is q once more; ``symmetric`` takes its mean with that of p among all queries. Over embeddings cut to their leading
    units it is summed up by weight (Matryoshka: Kusupati et al. 2022, arXiv:2205.13147).
    """
    import torch
    import torch.nn.functional as F

    is_query = numbers_T == 1
    queries_ND, documents_MD = embeddings_TD[is_query], embeddings_TD[~is_query]
    query_keys_N, document_keys_M = keys_T[is_query], keys_T[~is_query]
    is_positive_M = numbers_T[~is_query] == 2
    positives_N = is_positive_M.nonzero()[:, 0]
    row_of_M = is_positive_M.cumsum(0) - 1
    rows_R = torch.arange(rows.start, rows.stop, device=keys_T.device)
    own_R1 = positives_N[rows_R][:, None]
    # What would be a negative and is none: the positive text again, a positive text of the same query.
    same_query_RN = query_keys_N[rows_R][:, None] == query_keys_N
    same_text_RM = document_keys_M[own_R1] == document_keys_M
    equal_RM = (same_text_RM | (same_query_RN[:, row_of_M] & is_positive_M)).scatter(1, own_R1, False)
    equal_RN = (same_query_RN | same_text_RM[:, positives_N]).scatter(1, rows_R[:, None], False)
    losses_R, masks = embeddings_TD.new_zeros(len(rows)), config.mask_equal_texts
    figures = [(~equal_RM).sum(1) - 1]
    for dim, (weight, _) in measured(config, queries_ND.shape[1]).items():
        queries, documents = (F.normalize(values[:, :dim], dim=-1) for values in (queries_ND, documents_MD))
        scores_RM = queries[rows_R] @ documents.T / config.temperature
        own = scores_RM.gather(1, own_R1)
        at_least_RM = ((scores_RM >= own) & ~equal_RM).scatter(1, own_R1, False)
        ranks_R = 1 + at_least_RM.sum(1)  # a tie counts against the model, or one embedding for all would be perfect
        figures += [*((ranks_R <= cutoff) for cutoff in CUTOFFS), 1 / ranks_R]
        terms_R = scores_RM.masked_fill(equal_RM & masks, -torch.inf).logsumexp(1) - own[:, 0]
        if config.symmetric:
            scores_RN = documents[own_R1[:, 0]] @ queries.T / config.temperature
            others_R = scores_RN.masked_fill(equal_RN & masks, -torch.inf).logsumexp(1) - own[:, 0]
            terms_R = (terms_R + others_R) / 2
        losses_R = losses_R + weight * terms_R
    return torch.stack([losses_R, *(figure.to(losses_R.dtype) for figure in figures)], 1)
