"""Data of learning from preferences: pairs, as the huggingface plugin makes them for every objective on pairs."""

from __future__ import annotations

from arctic_huggingface.chat.pairs import PairDataConfig, PairDataFactory


class DPODataFactory(PairDataFactory):
    """Rows with ``chosen`` and ``rejected`` to rows, or packs of rows, that hold pairs of answers."""

    name = "dpo"
    config: PairDataConfig

    def draws(self) -> bool:  # said once more here, since a class speaks for itself alone
        return super().draws()
