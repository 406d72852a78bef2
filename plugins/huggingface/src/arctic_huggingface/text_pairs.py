"""Rows for learning which texts belong together: a query, a text that answers it, and perhaps texts that do not.

An encoded row holds one after the other, each with what the tokenizer puts around a text; its column ``texts`` numbers
them from 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arctic_huggingface.chats import CORRECT, text_of, with_columns
from arctic_huggingface.faults import (
    EQUAL_TEXTS,
    INVALID_TEXT,
    MISSING_COLUMN,
    MISSING_TEXT,
    NOTHING_TO_TRAIN_ON,
    TOO_LONG,
    Fault,
)
from arctic_huggingface.texts import InvalidText, TextTokeniser
from arctic_training.encoding import EncodedRows
from arctic_training.errors import BadRow
from arctic_training.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = "texts"
PAIR_COLUMNS = ("query", "positive", "negatives")
NO_TOKEN = "the tokenizer makes no token of a text"
NO_LABEL = "its texts have one token each, and the first of a text has no label: nothing is left to train on"
REMEDY = "name the columns in column_mapping, such as {query: COLUMN, positive: COLUMN, negatives: COLUMN}"


class PairsReader:
    """Makes ``{"query": ..., "positive": ..., "negatives": [...]}`` of a row.

    Args:
        column_mapping: query, positive or negatives -> the column that holds it. Negatives are a text or a list.
    """

    def __init__(self, column_mapping: Mapping[str, str] | None = None) -> None:
        self.columns = {name: name for name in PAIR_COLUMNS} | dict(column_mapping or {})
        self.wants_negatives = "negatives" in (column_mapping or {})

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The texts of a row.

        Raises:
            Fault: the query or the positive text is missing or empty, or a negative one is empty or the positive one.
        """
        try:
            query, positive = (self._text(row, name) for name in ("query", "positive"))
            if self.wants_negatives and self.columns["negatives"] not in row:
                raise Fault(f"has no column {self.columns['negatives']!r}", MISSING_COLUMN)
            given = row.get(self.columns["negatives"])
            place = f"{self.columns['negatives']!r}"
            negatives = [_filled(text, place) for text in (given if isinstance(given, list) else [given]) if given]
            if positive in negatives:
                raise Fault(f"holds the positive text in {place} too", EQUAL_TEXTS, CORRECT)
        except Fault as fault:
            raise with_columns(fault, row, REMEDY) from None
        return {"query": query, "positive": positive, "negatives": negatives}

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        column = self.columns[name]
        if column not in row:
            raise Fault(f"has no column {column!r}", MISSING_COLUMN)
        return _filled(row[column], f"{column!r}")


class PairEncoder:
    """Encodes the texts of rows. It may be sent to worker processes.

    Args:
        tokenizer: the tokenizer.
        max_length: most tokens of a text, with those that the tokenizer puts around it.
        refuses_longer: refuse a row with a longer text, instead of cutting and counting that.
        prefixes: what stands before queries, and before other texts.
        arguments: of the tokenizer's calls (``tokenizer.tokenize_kwargs`` in a recipe).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        refuses_longer: bool,
        prefixes: tuple[str, str] = ("", ""),
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenise = TextTokeniser(tokenizer, {"add_special_tokens": True, **(arguments or {})})
        self.read = PairsReader()
        self.max_length, self.refuses_longer, self.prefixes = max_length, refuses_longer, prefixes
        whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
        begin = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        self.kept_at_end = len(whole) - begin - len(bare)

    def __call__(self, rows: Sequence[Any], places: Sequence[str]) -> EncodedRows:
        """``input_ids``, ``labels`` and ``texts`` of rows; a label is the token itself, or -100 where a text begins."""
        import numpy as np

        read = [self._read(row, place) for row, place in zip(rows, places, strict=True)]
        encoded = iter(self.tokenise([text for row in read if isinstance(row, list) for text in row]))
        made: list[list[list[int]]] = []
        refused, cut = [], 0
        for row, place in zip(read, places, strict=True):
            texts = row if isinstance(row, BadRow) else self._checked([next(encoded) for _ in row], place)
            if isinstance(texts, BadRow):
                refused.append(texts)
                continue
            cut += sum(len(ids) > self.max_length for ids in texts)
            made.append([self._fitted(ids) for ids in texts])
        sizes = np.array([len(ids) for texts in made for ids in texts], np.int64)
        flat = np.fromiter((token for texts in made for ids in texts for token in ids), np.int32, int(sizes.sum()))
        labels = flat.copy()
        labels[np.cumsum(sizes) - sizes] = IGNORE_INDEX
        numbers = np.array([number for texts in made for number in range(1, len(texts) + 1)], np.int32)
        columns = {"input_ids": flat, "labels": labels, TEXTS: np.repeat(numbers, sizes)}
        lengths = np.array([sum(map(len, texts)) for texts in made], np.int32)
        return EncodedRows(columns, lengths, refused, {"texts cut to max_length": cut} if cut else {})

    def _read(self, row: Any, place: str) -> list[str] | BadRow:
        try:
            texts = self.read(row)
        except Fault as fault:
            return fault.at(place)
        query, document = self.prefixes
        return [query + texts["query"], *(document + text for text in [texts["positive"], *texts["negatives"]])]

    def _checked(self, texts: Sequence[Any], place: str) -> list[list[int]] | BadRow:
        """The ids of a row's texts, or why they cannot be used."""
        for text in texts:
            if isinstance(text, InvalidText):
                return BadRow(text.reason, category=INVALID_TEXT, where=place, remedy=CORRECT)
            if self.refuses_longer and len(text.ids) > self.max_length:
                reason = f"a text has {len(text.ids)} tokens, and max_length is {self.max_length}"
                return BadRow(reason, category=TOO_LONG, where=place, remedy=f"{CORRECT}, or raise data.max_length")
        lengths = [len(text.ids) for text in texts]
        if min(lengths) == 0 or max(lengths) == 1:
            reason = NO_TOKEN if min(lengths) == 0 else NO_LABEL
            return BadRow(reason, category=NOTHING_TO_TRAIN_ON, where=place, remedy=CORRECT)
        return [list(text.ids) for text in texts]

    def _fitted(self, ids: list[int]) -> list[int]:
        """At most ``max_length`` tokens; what the tokenizer puts behind a text stays there."""
        if len(ids) <= self.max_length:
            return ids
        return ids[: self.max_length - self.kept_at_end] + ids[len(ids) - self.kept_at_end :]


def texts_of(row: Mapping[str, Any]) -> Iterator[tuple[int, Any, Any, int]]:
    """Number, ids and labels of each text of an encoded row, and a key of 64 bits that tells equal texts."""
    import hashlib

    import numpy as np

    begins = np.flatnonzero(np.diff(row[TEXTS], prepend=0))
    for begin, end in zip(begins, [*begins[1:], len(row[TEXTS])], strict=True):
        ids = row["input_ids"][begin:end]
        digest = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
        yield int(row[TEXTS][begin]), ids, row["labels"][begin:end], int.from_bytes(digest, "little", signed=True)


def _filled(value: Any, place: str) -> str:
    text = text_of(value, place)
    if not text.strip():
        raise Fault(f"holds an empty text in {place}", MISSING_TEXT, CORRECT)
    return text
