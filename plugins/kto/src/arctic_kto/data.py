"""Data of Kahneman-Tversky optimisation: labelled answers become rows; packs and micro-batches are the core's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_huggingface.chat.answers import AnswersDataConfig, AnswersDataFactory
from arctic_huggingface.chat.labelled import DESIRABLE, KIND, LabelledEncoder
from arctic_training.config import key
from arctic_training.data import Rows
from arctic_training.encoding import Encoder
from arctic_training.errors import DataError
from arctic_training.token_tables import columns_of

if TYPE_CHECKING:
    from arctic_training.token_rows import PlannedRows, TokenRows


class KTODataConfig(AnswersDataConfig):
    max_length: int | None = key(
        None,
        ge=2,
        doc="Longest prompt with its answer in tokens; the model's max_position_embeddings when not given. A row holds "
        "the prompt twice, with its own answer and with one of another row, and so much a pack may hold.",
    )


class KTODataFactory(AnswersDataFactory):
    """Chats with a ``label`` to rows, or packs of rows, with labels on the last answer of each chat."""

    name = "kto"
    config: KTODataConfig
    default_source = "huggingface_labelled"

    def draws(self) -> bool:  # said once more here, since a class speaks for itself alone
        return super().draws()

    def encoder(self) -> Encoder:
        self.warn_of_plain_arguments()
        drop = self.config.over_long_policy == "drop"
        return LabelledEncoder(self.tokenizer, max_length=self.max_document_length, drop_over_long=drop)

    def check_shape(self, dataset: Rows) -> None:
        """Refuse a source none of whose first rows has a chat and a label.

        Raises:
            DataError: a column is missing; names those that there are.
        """
        if (columns := columns_of(dataset)) and not {"messages", "label"} <= set(columns):
            raise DataError(
                f"labelled answers need columns `messages` and `label`; found {', '.join(sorted(columns))}",
                remedy="use the source huggingface_labelled, whose label_column names the column of the label",
            )

    def plan(self, base: TokenRows, *, mix: bool = False) -> PlannedRows:
        """The rows to train on; of prepared training rows some are desirable and some are not.

        Raises:
            DataError: the labels of all training rows are equal.
        """
        planned = super().plan(base, mix=mix)
        if not self.preparation.for_training or not len(planned):
            return planned
        if KIND not in base.columns:
            raise unlabelled()
        good = (base.columns[KIND][base.offsets[:-1]] == DESIRABLE)[planned.packs.rows]
        desirable, undesirable = int(good.sum()), int((~good).sum())
        if desirable and undesirable:
            return planned
        message = f"the labels of all answers are equal: {desirable:,} are desirable and {undesirable:,} undesirable"
        if not self.config.streaming:
            raise DataError(message, remedy="kto learns from the difference: add answers of the other kind")
        self.run.log.warning("a block of the stream: %s", message)  # the next may hold others
        return planned


def unlabelled() -> DataError:
    """The error for rows that another data factory made tokens of."""
    return DataError(
        "the rows do not say which answers are desirable",
        remedy="let the data factory kto make tokens of the rows: remove `process: false`",
    )
