"""Data of objectives on chats: chats become rows of ids and labels; packs and micro-batches are the core's."""

from __future__ import annotations

from typing import Literal

from arctic_huggingface.chat.encoder import ChatEncoder
from arctic_training.config import key
from arctic_training.data import Rows
from arctic_training.encoding import Encoder
from arctic_training.errors import DataError
from arctic_training.token_data import TokenDataConfig, TokenDataFactory
from arctic_training.token_tables import columns_of


class ChatDataConfig(TokenDataConfig):
    mask_inputs: bool = key(True, doc="Train only what the assistant says; false trains the whole chat.")
    ignore_empty_think: bool = key(
        False, doc="Leave an empty `<think>` block at the start of an assistant turn out of training."
    )
    train_turns: Literal["all", "last", "one_row_per_turn"] | None = key(
        None,
        doc="Which assistant turns of a chat are trained: all, the last alone, or each in a row of its own that ends "
        "with it. All by default, and to be chosen where the chat template writes earlier turns differently once more "
        "follow. A message with `train: false` is never trained.",
    )
    mask_reasoning: bool = key(
        False, doc="Leave the `<think>` block at the start of an assistant turn out of training."
    )


class ChatDataFactory(TokenDataFactory):
    """Chats with a ``messages`` column to rows, or packs of rows, with labels on what the assistant said.

    The base of the data factories of objectives; a subclass has a ``name``.
    """

    config: ChatDataConfig
    default_source = "huggingface_instruct"

    def encoder(self) -> Encoder:
        config = self.config
        if self.run.config.tokenizer.tokenize_kwargs:
            self.run.warn("tokenizer.tokenize_kwargs is for plain text, and says nothing about chats")
        return ChatEncoder(
            self.tokenizer,
            mask_inputs=config.mask_inputs,
            ignore_empty_think=config.ignore_empty_think,
            train_turns=config.train_turns,
            mask_reasoning=config.mask_reasoning,
        )

    def check_shape(self, dataset: Rows) -> None:
        """Refuse a source in which none of the first rows has ``messages``.

        Raises:
            DataError: the column is missing; names those that there are.
        """
        if (columns := columns_of(dataset)) and "messages" not in columns:
            raise DataError(
                f"chats need a column `messages`; found {', '.join(sorted(columns))}",
                remedy="use the source huggingface_instruct with a role_mapping from roles to these columns",
            )
