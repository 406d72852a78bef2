"""Rows of two documents, such as a prompt with each of two answers: what they have in common for every objective."""

from __future__ import annotations

from collections.abc import Iterator

from arctic_training.config import key
from arctic_training.pieces import OverLong
from arctic_training.token_data import TokenDataConfig, TokenDataFactory


class AnswersDataConfig(TokenDataConfig):
    over_long: OverLong | None = key(
        None,
        doc="What becomes of rows with an answer that leaves no room within max_length: drop or error. By default what "
        "filter_samples says.",
    )
    filter_samples: bool = key(
        True, when_given=True, doc="Drop over-long rows; otherwise they are an error. over_long says it in a word."
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if self.over_long not in (None, "drop", "error"):
            yield "over_long", f"answers are never cut: expected drop or error, found {self.over_long!r}"
        for name in ("always_max_length", "fuse_positions_prob"):
            if getattr(self, name):
                yield name, "would join or part the answers of a row: leave it out"

    @property
    def over_long_policy(self) -> OverLong:
        """What becomes of over-long rows."""
        return self.over_long or ("drop" if self.filter_samples else "error")


class AnswersDataFactory(TokenDataFactory):
    """Rows with chats to rows of tokens, or packs of them, each of two documents."""

    config: AnswersDataConfig

    @property
    def max_length(self) -> int:
        """Longest row in tokens: two documents as long as the recipe's."""
        return 2 * self.max_document_length

    @property
    def max_document_length(self) -> int:
        """Longest prompt with one answer in tokens."""
        return super().max_length

    def warn_of_plain_arguments(self) -> None:
        """Say that arguments of the tokenizer for plain text are not used."""
        if self.run.config.tokenizer.tokenize_kwargs:
            self.run.warn("tokenizer.tokenize_kwargs is for plain text, and says nothing about chats")
