"""The data source ``huggingface_causal``: one column of a data set as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arctic_huggingface.chats import text_of, with_columns
from arctic_huggingface.faults import MISSING_COLUMN, MISSING_TEXT, Fault
from arctic_huggingface.rows import Reader
from arctic_huggingface.source import HFDataSource, HFSourceConfig
from arctic_training.config import key


class HFCausalSourceConfig(HFSourceConfig):
    column: str = key("text", doc="Column that holds the text; where a row has one column only, that is taken.")


class HFCausalDataSource(HFDataSource):
    """Plain text: rows with ``text``."""

    name = "huggingface_causal"
    config: HFCausalSourceConfig

    def reader(self, *, columnar: bool) -> Reader:
        return TextReader(self.config.column)


class TextReader:
    """Makes ``{"text": ...}`` of a row.

    Args:
        column: the column that holds the text, unless it is the only one.
    """

    def __init__(self, column: str = "text") -> None:
        self.column = column

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The text of a row.

        Raises:
            Fault: it holds none.
        """
        column = self.column if self.column in row or len(row) != 1 else next(iter(row))
        try:
            if column not in row:
                raise Fault(f"has no column {column!r}", MISSING_COLUMN)
            text = text_of(row[column], repr(column))
            if not text:
                raise Fault(f"holds an empty text in {column!r}", MISSING_TEXT, "correct the row")
        except Fault as fault:
            raise with_columns(fault, row, "name the column that holds the text, as in `column: text`") from None
        return {"text": text}
