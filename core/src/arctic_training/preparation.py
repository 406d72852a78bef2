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


SIGNS = {"rows read": 1, "rows refused": -1, "rows made": 1, "rows repeated": 1, "rows dropped": -1, "rows kept": -1}
"""How counts whose names begin so add up: to 0 when preparation is over."""


@attrs.define(eq=False)
class Preparation:
    """What a data factory prepares at the moment, and its account of the rows.

    Nothing is lost without a count, and the counts add up. Of the names in ``counts``,

    - ``rows read`` = the sum of ``rows refused, WHY`` + the rows used,
    - the rows used + ``rows made from several turns`` + ``rows made by splitting`` + ``rows repeated by the mixture`` +
      ``rows repeated to fill a pack`` = the sum of ``rows dropped, WHY`` + ``rows kept``.

    Names that begin otherwise tell more and add nothing: ``rows cut to max_length`` and ``rows split, WHY`` are of rows
    that are used, ``packs dropped, WHY`` of packs that rows kept were put into. A count that a data factory adds takes
    part by beginning with ``rows made``, ``rows repeated`` or ``rows dropped``.

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
        """Add to a count of the report, in which only ``rows read`` and ``rows kept`` may be 0."""
        if number or name in ("rows read", "rows kept"):
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

    @property
    def num_open(self) -> int:
        """Rows that were read or made and that no count says anything more about."""
        return sum(
            sign * number
            for name, number in self.counts.items()
            for beginning, sign in SIGNS.items()
            if name.startswith(beginning)
        )

    def settle(self, number: int, step: str) -> None:
        """Count what a step made or left out, if ``number`` rows are there after it and no count tells why."""
        difference = number - self.num_open
        if difference > 0:
            self.count(f"rows made by {step}", difference)
        elif difference < 0:
            self.count(f"rows dropped, left out by {step}", -difference)

    def next_directory(self) -> Path | None:
        """A directory for the rows of the next source."""
        self.num_sources_begun += 1
        return None if self.directory is None else self.directory / f"source-{self.num_sources_begun}"

    def facts(self) -> dict[str, Any]:
        """What is kept beside the prepared rows."""
        return {"counts": dict(self.counts), "refused": list(self.refused)}
