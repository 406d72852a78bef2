"""Data of reward models: preference pairs, each with the margin that its row may have."""

from __future__ import annotations

from typing import ClassVar

from arctic_huggingface.chat.pairs import PairDataConfig, PairDataFactory

MARGIN = "margin"
"""The column of rows, and of the tokens of a pair: minus infinity where a row has no margin."""


class RewardDataConfig(PairDataConfig):
    """Pairs have the keys that they have for every objective."""


class RewardDataFactory(PairDataFactory):
    """Rows with ``chosen``, ``rejected`` and perhaps ``margin`` to rows, or packs of rows, that hold pairs."""

    name = "reward"
    config: RewardDataConfig
    number_columns = (MARGIN,)
    least_numbers: ClassVar[dict[str, float]] = {MARGIN: 0}  # as the recipe's own

    def draws(self) -> bool:  # said once more here, since a class speaks for itself alone
        return super().draws()
