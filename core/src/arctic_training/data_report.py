"""What prepared rows are, in figures: for the run's header and record, and for ``arctic data``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training.loss import IGNORE_INDEX
from arctic_training.token_rows import PlannedRows

if TYPE_CHECKING:
    import numpy as np

    from arctic_training.prepared import PreparedRows

QUANTILES = {"shortest": 0.0, "median": 0.5, "95 %": 0.95, "longest": 1.0}


def figures(rows: PreparedRows, max_length: int | None = None, source_names: list[str] | None = None) -> dict[str, Any]:
    """Rows, tokens, trained tokens, lengths, fill of the packs, and what became of the rows that were read.

    Args:
        rows: prepared rows.
        max_length: tokens that a pack may hold.
        source_names: what the sources are called.

    Returns:
        JSON-able figures. ``rows`` counts what is trained on (packs, where there are packs), ``documents`` the rows
        that stand in them; ``lengths`` those of documents.
    """
    planned = rows.rows
    if not isinstance(planned, PlannedRows):
        return _of_columns(rows)
    lengths = planned.packs.stops - planned.packs.starts
    found: dict[str, Any] = {
        "rows": len(rows),
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "trained_tokens": int(planned.trained_in_pieces.sum()),
        "lengths": distribution(lengths),
    }
    if planned.packed and max_length:
        found["fill"] = found["tokens"] / (len(rows) * max_length)
    if len(planned.base.parts) > 1:
        found["sources"] = _by_source(planned, lengths, source_names or [])
    return found | rows.facts


def distribution(lengths: np.ndarray) -> dict[str, Any]:
    """Quantiles of lengths, and how many are at most 1, 2, 4, 8, ... tokens and longer than half of that."""
    import numpy as np

    if not len(lengths):
        return {"quantiles": {}, "histogram": {}}
    bits = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    buckets, numbers = np.unique(bits, return_counts=True)
    values = np.quantile(lengths, list(QUANTILES.values()), method="nearest")
    return {
        "quantiles": {name: int(value) for name, value in zip(QUANTILES, values, strict=True)},
        "histogram": {str(2 ** int(bucket)): int(number) for bucket, number in zip(buckets, numbers, strict=True)},
    }


def _by_source(planned: PlannedRows, lengths: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    import numpy as np

    sources, count = planned.source_of_pieces(), len(planned.base.parts)
    documents = np.bincount(sources, minlength=count)
    tokens, trained = (
        np.bincount(sources, weights=weights, minlength=count) for weights in (lengths, planned.trained_in_pieces)
    )
    return [
        {
            "name": names[number] if number < len(names) else f"source {number}",
            "documents": int(documents[number]),
            "tokens": int(tokens[number]),
            "trained_tokens": int(trained[number]),
        }
        for number in range(count)
    ]


def _of_columns(rows: PreparedRows) -> dict[str, Any]:
    """Figures of rows that a plugin prepared with columns of its own."""
    lengths = rows.lengths()
    columns = getattr(rows.rows, "columns", {})
    has_tokens = "input_ids" in columns
    found: dict[str, Any] = {
        "rows": len(rows),
        "documents": len(rows),
        "tokens": int(lengths.sum()) if has_tokens else 0,
    }
    if has_tokens:
        found["lengths"] = distribution(lengths)
    values, offsets = columns.get("labels", (None, None))
    if values is not None and offsets is not None:
        firsts = offsets[:-1][lengths > 0]
        found["trained_tokens"] = int((values != IGNORE_INDEX).sum() - (values[firsts] != IGNORE_INDEX).sum())
    return found | rows.facts
