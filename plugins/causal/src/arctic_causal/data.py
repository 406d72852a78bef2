"""Data of training on plain text: documents become rows of ids; packs and micro-batches are the core's."""

from __future__ import annotations

from arctic_causal.documents import DocumentEncoder
from arctic_training.config import key
from arctic_training.data import Rows
from arctic_training.encoding import Encoder
from arctic_training.errors import DataError
from arctic_training.pieces import OverLong
from arctic_training.token_data import TokenDataConfig, TokenDataFactory
from arctic_training.token_tables import columns_of


class CausalDataConfig(TokenDataConfig):
    pack_samples: bool = key(True, doc="Put several documents into each training sequence of up to max_length tokens.")
    filter_samples: bool = key(
        False,
        when_given=True,
        doc="Drop documents longer than max_length. Otherwise they are cut into pieces of that length and a rest, or "
        "go on in the next pack with always_max_length. over_long says it in a word.",
    )

    @property
    def over_long_policy(self) -> OverLong | None:
        """What becomes of over-long documents; None where they go on in the next pack."""
        if self.over_long is not None:
            return self.over_long
        if self.filter_samples:
            return "drop"
        return None if self.always_max_length else "split"


class CausalDataFactory(TokenDataFactory):
    """Documents with a ``text`` column to rows, or packs of rows, in which all is trained but what begins a piece."""

    name = "causal"
    config: CausalDataConfig
    default_source = "huggingface_causal"

    def draws(self) -> bool:  # said once more here, since a class speaks for itself alone
        return super().draws()

    def encoder(self) -> Encoder:
        return DocumentEncoder(self.tokenizer, self.run.config.tokenizer.tokenize_kwargs)

    def check_shape(self, dataset: Rows) -> None:
        """Refuse a source in which none of the first rows has ``text``.

        Raises:
            DataError: the column is missing; names those that there are.
        """
        if (columns := columns_of(dataset)) and "text" not in columns:
            raise DataError(
                f"documents need a column `text`; found {', '.join(sorted(columns))}",
                remedy="use the source huggingface_causal and name the column that holds the text: column: NAME",
            )
