"""Data factories whose rows are tokens: from rows of any kind to packs, the same for every objective.

A subclass brings an encoder; fitting, mixing, packing and padding are done here.

Shapes: B rows of a micro-batch, L tokens of the longest, padded.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from arctic_training.column_files import TokenWriter, copy_rows
from arctic_training.config import key
from arctic_training.data import DataConfig, DataFactory, Rows, concatenate
from arctic_training.dataloader import Loader
from arctic_training.encoding import Encoder, encode_batches
from arctic_training.errors import DataError
from arctic_training.given_tokens import GivenTokens, clean_table
from arctic_training.loss import IGNORE_INDEX
from arctic_training.mixture import draw
from arctic_training.packing import Packs, fill_packs, plan_packs, repeat_to_fill, whole_rows
from arctic_training.pieces import OverLong, Pieces, fit
from arctic_training.token_rows import COLUMNS, OTHER_COLUMNS, POSITIONS, SOURCES, PlannedRows, TokenRows
from arctic_training.token_tables import joined_in_memory, refuse_other_columns, token_rows_of

if TYPE_CHECKING:
    import numpy as np
    import torch


class TokenDataConfig(DataConfig):
    over_long: OverLong | None = key(
        None,
        doc="What becomes of rows longer than max_length: drop, truncate_right (keeps the beginning), truncate_left, "
        "split (into rows of their own) or error. By default what filter_samples says.",
    )
    filter_samples: bool = key(
        True,
        when_given=True,
        doc="Drop rows longer than max_length. Otherwise they are an error when packing, go on in the next pack with "
        "always_max_length, and lose their end when not packing. over_long says it in a word.",
    )
    pad_to: Literal["div_length", "max_length"] = key(
        "div_length",
        affects_rows=False,
        doc="Pad each micro-batch to a multiple of div_length, or always to max_length.",
    )
    div_length: int = key(
        256,
        ge=1,
        affects_rows=False,
        doc="Micro-batches are padded to a multiple of this number of tokens, and never past max_length.",
    )
    pack_samples: bool = key(False, doc="Put several rows into each training sequence of up to max_length tokens.")
    always_max_length: bool = key(
        False,
        doc="Fill every pack to exactly max_length tokens; the row that does not fit goes on in the next pack.",
    )
    drop_last: bool = key(False, doc="Drop the emptiest pack of the training data, unless it is full.")
    fuse_positions_prob: float = key(
        0.0, ge=0, le=1, doc="Share of training packs, drawn with data.seed, that are trained as one long document."
    )
    repeat_to_pack_max_length: bool = key(
        False, doc="Repeat training rows that together are shorter than max_length as often as they fit into one pack."
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if not self.pack_samples:
            for name in ("always_max_length", "drop_last", "fuse_positions_prob", "repeat_to_pack_max_length"):
                if getattr(self, name):
                    yield name, "has no effect without packing: set pack_samples to true"
        for name in ("drop_last", "repeat_to_pack_max_length", "fuse_positions_prob"):
            if self.streaming and getattr(self, name):
                yield name, "looks at all packs at once, which a stream never has: set streaming: false"
        if self.over_long is not None and "filter_samples" in self.given:
            yield "over_long", "says what filter_samples says in another way: leave that out"
        if self.pad_to == "max_length" and "div_length" in self.given and (self.max_length or 0) % self.div_length:
            yield "div_length", f"contradicts pad_to: max_length, since it does not divide {self.max_length}"

    @property
    def over_long_policy(self) -> OverLong | None:
        """What becomes of over-long rows; None where they go on in the next pack."""
        if self.over_long is not None:
            return self.over_long
        if self.filter_samples:
            return "drop"
        if not self.pack_samples:
            return "truncate_right"
        return None if self.always_max_length else "error"


class TokenDataFactory(DataFactory):
    """Rows of tokens, fitted to ``max_length``, mixed, and packed where the recipe says so."""

    config: TokenDataConfig

    @property
    def packs_hold(self) -> int | None:
        return self.max_length if self.config.pack_samples else None

    def draws(self) -> bool:
        return bool(self.config.mixes or self.config.fuse_positions_prob or self.config.train_eval_split[1])

    @abstractmethod
    def encoder(self) -> Encoder:
        """What makes tokens of the rows of a source."""

    def check_shape(self, dataset: Rows) -> None:
        """Refuse a source whose rows are of a shape that the encoder does not know, before any is encoded."""

    def process(self, dataset: Rows) -> Rows:
        """Encode the rows of one source in ``num_proc`` processes; those that cannot be used are refused and counted.

        Raises:
            BadRow: a row cannot be used, and the recipe does not let it be skipped; names its place.
            DataError: too many cannot be used.
        """
        self.check_shape(dataset)
        return self.with_more_columns(self._encoded(dataset, self.encoder()))

    def with_more_columns(self, rows: TokenRows) -> TokenRows:
        """The encoded rows of a source with columns that an encoder cannot know, such as what a model says of them.

        Called once for each source, in the process that prepares; nothing by default. A stream does not go through it:
        who overrides it refuses ``streaming`` where it does anything, and says in ``fingerprint_parts`` what else the
        columns depend on.
        """
        return rows

    def mixed(self, parts: Sequence[Rows]) -> Rows:
        """The rows of all sources, one after the other; ``finish`` mixes what is left of them."""
        return concatenate(parts)

    def finish(self, dataset: Rows) -> Rows:
        """Fit rows to ``max_length``, mix sources, and pack.

        Raises:
            DataError: a row has no trained token, or is over-long where the recipe makes that an error.
        """
        return self.plan(self._token_rows(dataset), mix=self.preparation.for_training and self.config.mixes)

    def plan(self, base: TokenRows, *, mix: bool = False) -> PlannedRows:
        """The rows to train on as pieces of token rows.

        Args:
            base: encoded rows of all sources.
            mix: whether to take as much of each source as the recipe asks for.
        """
        pieces = Pieces.whole(base)
        untrained = (pieces.trained == 0).nonzero()[0]
        if len(untrained):
            raise DataError(
                f"row {untrained[0]}: no token to train on; so it is with {len(untrained)} of {len(base)} rows"
            )
        policy = self.config.over_long_policy
        if policy is not None:
            pieces = fit(pieces, base, self.max_length, policy, self.count)
        if mix:
            pieces = self._mixture(pieces, base)
        if self.config.repeat_to_pack_max_length and self.preparation.for_training:
            numbers = repeat_to_fill(pieces.lengths, self.max_length)
            self.count("rows repeated to fill a pack", len(numbers) - len(pieces))
            pieces = pieces.select(numbers)
        self.count("rows kept", len(pieces))
        if self.config.pack_samples and len(pieces):
            return self._packed(pieces, base)
        return PlannedRows(base, _packs(pieces, whole_rows(pieces.lengths)))

    def create_stream(self) -> Loader:
        for name in ("load", "prepare", "process", "mixed", "finish"):
            if getattr(type(self), name) is not getattr(TokenDataFactory, name):
                raise DataError(
                    f"{type(self).__qualname__} has a {name} of its own, which a stream does not go through",
                    remedy="override encoder() instead, or set streaming: false",
                )
        from arctic_training.streaming import stream_of

        return stream_of(self)

    def collate(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``labels`` and for packs ``position_ids``, each int64 of shape (B, L), padded on the right.

        There is no attention mask: padding is behind what is trained, has no labels, and in packs counts positions from
        0 again, which makes it a document of its own. Other columns of the rows, of numbers of their own type, are
        padded with 0 and go to the loss alone, as ``batch.columns``.
        """
        import numpy as np
        import torch

        length = self._padded_length(max(len(row["input_ids"]) for row in rows))
        fill = {"input_ids": self._pad_id(), "labels": IGNORE_INDEX}
        if SOURCES in rows[0]:
            fill[SOURCES] = 0
        batch: dict[str, Any] = {name: np.full((len(rows), length), value, np.int64) for name, value in fill.items()}
        if POSITIONS in rows[0]:
            batch[POSITIONS] = np.empty((len(rows), length), np.int64)
        for number, row in enumerate(rows):
            end = len(row["input_ids"])
            for name, values_BL in batch.items():
                values_BL[number, :end] = row[name]
            if POSITIONS in batch:
                batch[POSITIONS][number, end:] = np.arange(length - end)
        others: dict[str, Any] = {}
        for name in rows[0].keys() - {*COLUMNS, POSITIONS, SOURCES}:
            others[name] = torch.zeros(len(rows), length, dtype=torch.from_numpy(rows[0][name][:0]).dtype)
            for number, row in enumerate(rows):
                others[name][number, : len(row[name])] = torch.from_numpy(row[name])
        tensors: dict[str, Any] = {name: torch.from_numpy(values_BL) for name, values_BL in batch.items()}
        return tensors | ({OTHER_COLUMNS: others} if others else {})

    def _as_they_are(self, rows: Rows) -> Rows:
        clean = clean_table(rows)
        if clean is None:
            return self._encoded(rows, GivenTokens(rows))
        self.preparation.read(len(rows))
        return clean

    def _encoded(self, dataset: Rows, encoder: Encoder) -> TokenRows:
        directory = self.preparation.next_directory()
        writer = TokenWriter(directory) if directory is not None else None
        made: list[TokenRows] = []
        for number, encoded in encode_batches(dataset, encoder, self.config.num_proc):
            self.preparation.read(number, encoded.refused)
            for name, counted in encoded.counts.items():
                self.count(name, counted)
            used = number - encoded.num_left_out
            if len(encoded.lengths) != used:
                self.count("rows made from several turns", len(encoded.lengths) - used)
            if writer is not None:
                writer.append(encoded.columns, encoded.lengths)
            elif len(encoded.lengths):
                made.append(TokenRows(encoded.columns, encoded.lengths))
        if writer is not None:
            return writer.close()
        rows = joined_in_memory(made)
        rows.parts = [len(rows)]
        return rows

    def _token_rows(self, dataset: Rows) -> TokenRows:
        """The processed rows of all sources as token rows, in files where this preparation has a directory."""
        parts = getattr(dataset, "parts", None) if not isinstance(dataset, TokenRows) else None
        tables = [token_rows_of(part) for part in parts or [dataset]]
        if len(tables) == 1:
            return tables[0]
        refuse_other_columns(tables)
        directory = self.preparation.next_directory()
        if directory is None:
            return joined_in_memory(tables)
        writer = TokenWriter(directory)
        for table in tables:
            copy_rows(table, writer)
        return writer.close([len(table) for table in tables])

    def _mixture(self, pieces: Pieces, base: TokenRows) -> Pieces:
        import numpy as np

        sources = base.sources()[pieces.rows]
        numbers = [(sources == source).nonzero()[0] for source in range(len(base.parts))]
        shares = [source.share for source in self.preparation.sources]
        names = self.config.source_names("train")
        for name, of_source, share in zip(names, numbers, shares, strict=True):
            if not len(of_source) and share.weight is not None:
                raise DataError(
                    f"the source {name} has a weight and no row left to give",
                    remedy="leave it out, or look at its rows",
                )
        trained = [pieces.trained[of_source] for of_source in numbers]
        drawn = draw(shares, trained, self.config.weight_by, self.config.seed)
        for of_source, chosen in zip(numbers, drawn, strict=True):
            self.count_mixed(len(of_source), chosen)
        return pieces.select(np.concatenate([of[chosen] for of, chosen in zip(numbers, drawn, strict=True)]))

    def _packed(self, pieces: Pieces, base: TokenRows) -> PlannedRows:
        if self.config.always_max_length:
            if POSITIONS in base.columns:
                raise DataError(
                    "the rows hold position_ids, so they are packs already, which always_max_length would cut",
                    remedy="set always_max_length: false, or leave position_ids out",
                )
            plan = fill_packs(pieces.lengths, self.max_length)
        else:
            plan = plan_packs(pieces.lengths, self.max_length)
        packs = _packs(pieces, plan)
        rows = PlannedRows(base, packs, packed=True, fused=self._fused(len(packs)))
        if self.config.drop_last and self.preparation.for_training:
            rows = self._drop_emptiest(rows)
        trained = rows.trained() > 0
        if trained.all():
            return rows
        self.count("packs dropped, nothing to train on in them", int((~trained).sum()))
        return rows.select(trained.nonzero()[0])

    def _fused(self, num_packs: int) -> np.ndarray | None:
        import numpy as np

        if not self.config.fuse_positions_prob or not self.preparation.for_training:
            return None
        draws = np.random.Generator(np.random.Philox(self.config.seed)).random(num_packs)
        return draws < self.config.fuse_positions_prob

    def _drop_emptiest(self, rows: PlannedRows) -> PlannedRows:
        lengths = rows.lengths()
        emptiest = len(rows) - 1 - int(lengths[::-1].argmin())
        if lengths[emptiest] == self.max_length:
            return rows
        self.count("packs dropped, not full (drop_last)", 1)
        return rows.select([number for number in range(len(rows)) if number != emptiest])

    def _padded_length(self, longest: int) -> int:
        if self.config.pad_to == "max_length":
            return max(longest, self.max_length)
        rounded = -(-longest // self.config.div_length) * self.config.div_length
        return max(longest, min(rounded, self.max_length))

    def _pad_id(self) -> int:
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        return 0


def _packs(pieces: Pieces, plan: Packs) -> Packs:
    """The plan over pieces as a plan over the rows that they are pieces of."""
    starts = pieces.starts[plan.rows]
    return Packs(pieces.rows[plan.rows], starts + plan.starts, starts + plan.stops, plan.offsets)
