"""One preparation of data: what is prepared, where it may put files, and what became of every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from arctic_training.errors import BadRow, DataError

if TYPE_CHECKING:
    from arctic_training.data import DataConfig, SourceConfig

SHOWN = 20
"""Refused rows that are kept with their place and reason."""


@attrs.define(eq=False)
class Preparation:
    """What a data factory prepares at the moment, and its account of the rows.

    Every row that is read is refused or used; every row that is made of those is dropped or kept. ``counts`` says how
    many and why, under names that begin with ``rows read``, ``rows refused``, ``rows made``, ``rows dropped`` and
    ``rows kept``.

    Attributes:
        split: ``train`` or ``eval``.
        sources: the entries of the recipe that are prepared.
        config: the recipe's ``data`` section.
        directory: where rows may be put in files on the way; None keeps them in memory.
        tell: is called with rows done and rows there are.
        num_rows: rows of all sources together.
    """

    split: str
    sources: Sequence[SourceConfig]
    config: DataConfig
    directory: Path | None = None
    tell: Callable[[int, int], None] = lambda done, rows: None
    counts: dict[str, int] = attrs.field(factory=dict)
    refused: list[dict[str, str]] = attrs.field(factory=list)
    num_rows: int = 0
    num_sources_begun: int = 0

    @property
    def for_training(self) -> bool:
        """Whether the rows are trained on; evaluation sees every row once."""
        return self.split == "train"

    def count(self, name: str, number: int) -> None:
        """Add to a count of the report."""
        self.counts[name] = self.counts.get(name, 0) + int(number)

    def read(self, number: int, refused: Sequence[BadRow] = ()) -> None:
        """Take note of rows that were read, and of those among them that cannot be used.

        Raises:
            BadRow: the first of them, where the recipe does not let bad rows be skipped.
            DataError: more are refused than the recipe allows.
        """
        if refused and self.config.on_bad_row == "error":
            raise refused[0]
        self.count("rows read", number)
        self.tell(self.counts["rows read"], self.num_rows)
        for row in refused:
            self.count(f"rows refused, {row.category}", 1)
            if len(self.refused) < SHOWN:
                self.refused.append({"where": row.where or "", "category": row.category, "reason": row.message})
        if self.num_refused > self.config.max_bad_fraction * self.num_rows:
            examples = "".join(f"\n  {row['where']}: {row['reason']}" for row in self.refused[:5])
            raise DataError(
                f"{self.num_refused:,} of the first {self.counts['rows read']:,} rows cannot be used, more than "
                f"data.max_bad_fraction ({self.config.max_bad_fraction:g}) of {self.num_rows:,}:{examples}",
                remedy="correct the rows or the source's format, or raise data.max_bad_fraction",
            )

    @property
    def num_refused(self) -> int:
        """Rows refused so far."""
        return sum(number for name, number in self.counts.items() if name.startswith("rows refused"))

    def next_directory(self) -> Path | None:
        """A directory for the rows of the next source."""
        self.num_sources_begun += 1
        return None if self.directory is None else self.directory / f"source-{self.num_sources_begun}"

    def facts(self) -> dict[str, Any]:
        """What is kept beside the prepared rows."""
        return {"counts": dict(self.counts), "refused": list(self.refused)}
