"""Data of contrastive training: a row holds the texts that belong together, a micro-batch one text a line.

So order, mixing, ranks and resuming are those of rows.

Shapes: T texts of a micro-batch, L tokens of the longest, padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from arctic_huggingface.text_pairs import TEXTS, PairEncoder, texts_of
from arctic_training.config import key
from arctic_training.encoding import Encoder
from arctic_training.loss import IGNORE_INDEX
from arctic_training.token_data import TokenDataConfig, TokenDataFactory
from arctic_training.token_rows import OTHER_COLUMNS

KEYS = "keys"


class EmbedDataConfig(TokenDataConfig):
    max_length: int | None = key(
        None, ge=1, doc="Longest text in tokens; the model's max_position_embeddings when not given."
    )
    over_long: Literal["truncate_right", "error"] = key(
        "truncate_right", doc="What becomes of a text longer than max_length: it loses its end, or is an error."
    )
    div_length: int = key(
        8, ge=1, affects_rows=False, doc="Texts are padded to a multiple of so many tokens, never past max_length."
    )
    query_prefix: str = key("", doc="What stands before each query, such as an instruction.")
    document_prefix: str = key("", doc="What stands before each positive and negative text.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if self.pack_samples:
            yield "pack_samples", "an encoder would see the other texts of a pack: leave it out"
        if "filter_samples" in self.given:
            yield "filter_samples", "is about rows, and here texts are too long: say it with over_long"
        if not all(source.process for source in [*self.sources, *self.eval_sources]):
            yield "sources", "rows of tokens do not tell where a text ends: leave out process: false"

    over_long_policy = None  # no row is too long: its texts are


class EmbedDataFactory(TokenDataFactory):
    """Rows with ``query``, ``positive`` and ``negatives`` to tokens, and those to one text a line."""

    name = "embed"
    config: EmbedDataConfig
    default_source = "huggingface_pairs"

    def encoder(self) -> Encoder:
        config, arguments = self.config, self.run.config.tokenizer.tokenize_kwargs
        prefixes = (config.query_prefix, config.document_prefix)
        return PairEncoder(self.tokenizer, self.max_length, config.over_long == "error", prefixes, arguments)

    def collate(self, rows: list[Any]) -> dict[str, Any]:
        """``input_ids``, ``labels`` and ``attention_mask``, int64 of shape (T, L): the texts row after row.

        For the loss there are ``texts``, 1 for a query, 2 for a positive and more for a negative text, and ``keys``,
        the same for the same tokens; int64 of shape (T,).
        """
        import torch

        texts = [text for row in rows for text in texts_of(row)]
        numbers, keys = ([text[place] for text in texts] for place in (0, 3))
        length = self._padded_length(max(len(ids) for _, ids, *_ in texts))
        fill = {"input_ids": self._pad_id(), "labels": IGNORE_INDEX, "attention_mask": 0}
        batch: dict[str, Any] = {name: torch.full((len(texts), length), value) for name, value in fill.items()}
        for line, (_, ids, labels, _) in enumerate(texts):
            batch["input_ids"][line, : len(ids)] = torch.from_numpy(ids)
            batch["labels"][line, : len(ids)] = torch.from_numpy(labels)
            batch["attention_mask"][line, : len(ids)] = 1
        return {**batch, OTHER_COLUMNS: {TEXTS: torch.tensor(numbers), KEYS: torch.tensor(keys)}}
