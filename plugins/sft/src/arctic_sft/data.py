"""Data of supervised fine-tuning: chats become rows of ids and labels, rows become packs, packs become micro-batches.

Shapes: B rows of a micro-batch, L tokens of the longest, padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from arctic_sft.chat import ChatEncoder
from arctic_sft.encoding import encode_rows
from arctic_sft.rows import POSITIONS, TokenRows
from arctic_training.config import key
from arctic_training.data import DataConfig, DataFactory, Rows
from arctic_training.errors import DataError
from arctic_training.loss import IGNORE_INDEX
from arctic_training.packing import Piece, fill_packs, plan_packs, repeat_to_fill

if TYPE_CHECKING:
    import torch


class SFTDataConfig(DataConfig):
    mask_inputs: bool = key(True, doc="Train only what the assistant says; false trains the whole chat.")
    ignore_empty_think: bool = key(
        False, doc="Leave an empty `<think>` block at the start of an assistant turn out of training."
    )
    filter_samples: bool = key(
        True,
        doc="Drop rows longer than max_length. Otherwise they are an error when packing, go on in the next pack with "
        "always_max_length, and lose their end when not packing. What is dropped or cut is counted and reported.",
    )
    pad_to: Literal["div_length", "max_length"] = key(
        "div_length", doc="Pad each micro-batch to a multiple of div_length, or always to max_length."
    )
    div_length: int = key(
        256, ge=1, doc="Micro-batches are padded to a multiple of this number of tokens, and never past max_length."
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
        if self.pad_to == "max_length" and "div_length" in self.given and (self.max_length or 0) % self.div_length:
            yield "div_length", f"contradicts pad_to: max_length, since it does not divide {self.max_length}"


class SFTDataFactory(DataFactory):
    """Chats with a ``messages`` column to rows, or packs of rows, with labels on what the assistant said."""

    name = "sft"
    config: SFTDataConfig
    default_source = "huggingface_instruct"

    def __init__(self, config: SFTDataConfig, run: Any) -> None:
        super().__init__(config, run)
        self._for_training = True

    def prepare(self, datasets: Sequence[Rows], split: str) -> Rows:
        """Tokenise, filter and pack the rows of all sources; evaluation sees every row that fits exactly once."""
        self._for_training = split == "train"
        return super().prepare(datasets, split)

    def process(self, dataset: Rows) -> Rows:
        """Tokenise the chats of one source.

        Args:
            dataset: rows with ``messages``, a list of ``{role, content}``, and perhaps ``tools``; what else they hold
                is left behind.

        Raises:
            DataError: the column is missing, or a chat cannot be rendered or masked; names its row, from 0.
        """
        if not len(dataset):
            return dataset
        columns = list(getattr(dataset, "column_names", None) or dataset[0])
        if "messages" not in columns:
            raise DataError(
                f"chats need a column `messages`; found {', '.join(sorted(columns))}",
                remedy="use the source huggingface_instruct with a role_mapping from roles to these columns",
            )
        encode = ChatEncoder(
            self.tokenizer,
            mask_inputs=self.config.mask_inputs,
            ignore_empty_think=self.config.ignore_empty_think,
        )
        return encode_rows(dataset, encode, self.config.num_proc)

    def finish(self, dataset: Rows) -> Rows:
        """Drop or cut over-long rows, then pack.

        Raises:
            DataError: a row has no trained token, or is over-long where that can be neither dropped nor cut.
        """
        rows = TokenRows.of(dataset)
        rows.unlabel_first_tokens()
        untrained = (rows.trained() == 0).nonzero()[0]
        if len(untrained):
            raise DataError(
                f"row {untrained[0]}: no token to train on; so it is with {len(untrained)} of {len(rows)} rows"
            )
        rows = self._without_over_long(rows)
        return self._packed(rows) if self.config.pack_samples and len(rows) else rows

    def collate(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``labels`` and for packs ``position_ids``, each int64 of shape (B, L), padded on the right.

        There is no attention mask: padding is behind what is trained, has no labels, and in packs counts positions from
        0 again, which makes it a document of its own.
        """
        import numpy as np
        import torch

        length = self._padded_length(max(len(row["input_ids"]) for row in rows))
        fill = {"input_ids": self._pad_id(), "labels": IGNORE_INDEX}
        batch: dict[str, Any] = {name: np.full((len(rows), length), value, np.int64) for name, value in fill.items()}
        if POSITIONS in rows[0]:
            batch[POSITIONS] = np.empty((len(rows), length), np.int64)
        for number, row in enumerate(rows):
            end = len(row["input_ids"])
            for name, values_BL in batch.items():
                values_BL[number, :end] = row[name]
            if POSITIONS in batch:
                batch[POSITIONS][number, end:] = np.arange(length - end)
        return {name: torch.from_numpy(values_BL) for name, values_BL in batch.items()}

    def _without_over_long(self, rows: TokenRows) -> TokenRows:
        fits = rows.lengths <= self.max_length
        over_long = len(rows) - int(fits.sum())
        if not over_long:
            return rows
        if self.config.filter_samples:
            self.count("rows dropped, longer than max_length", over_long)
            return rows.select(fits.nonzero()[0])
        if not self.config.pack_samples:
            self.count("rows cut to max_length", over_long)
            rows = rows.cut(self.max_length)
            return self._drop_untrained(rows, "rows dropped, nothing to train on before max_length")
        if self.config.always_max_length:
            return rows
        first = int((~fits).nonzero()[0][0])
        raise DataError(
            f"row {first} has {rows.lengths[first]} tokens and a pack holds {self.max_length} (data.max_length); "
            f"{over_long} rows are too long",
            remedy="raise max_length, drop them with filter_samples: true, or cut them with always_max_length: true",
        )

    def _packed(self, rows: TokenRows) -> TokenRows:
        if POSITIONS in rows.columns:
            raise DataError(
                "the rows hold position_ids, so they are packs already",
                remedy="set pack_samples: false, or leave position_ids out",
            )
        lengths = rows.lengths.tolist()
        if self.config.repeat_to_pack_max_length and self._for_training:
            numbers = repeat_to_fill(lengths, self.max_length)
            self.count("rows repeated to fill a pack", len(numbers) - len(lengths))
            rows = rows.select(numbers)
            lengths = rows.lengths.tolist()
        if self.config.always_max_length:
            packs = fill_packs(lengths, self.max_length)
        else:
            plan = plan_packs(lengths, self.max_length)
            packs = [[Piece(row, 0, lengths[row]) for row in pack] for pack in plan]
        packed = rows.pack(packs, self._fused(len(packs)))
        if self.config.drop_last and self._for_training:
            packed = self._drop_emptiest(packed)
        return self._drop_untrained(packed, "packs dropped, nothing to train on in them")

    def _fused(self, num_packs: int) -> Any:
        import numpy as np

        if not self.config.fuse_positions_prob or not self._for_training:
            return None
        draws = np.random.Generator(np.random.Philox(self.config.seed)).random(num_packs)
        return draws < self.config.fuse_positions_prob

    def _drop_emptiest(self, packs: TokenRows) -> TokenRows:
        emptiest = len(packs) - 1 - int(packs.lengths[::-1].argmin())
        if packs.lengths[emptiest] == self.max_length:
            return packs
        self.count("packs dropped, not full (drop_last)", 1)
        return packs.select(number for number in range(len(packs)) if number != emptiest)

    def _drop_untrained(self, rows: TokenRows, reason: str) -> TokenRows:
        trained = rows.trained() > 0
        if trained.all():
            return rows
        self.count(reason, int((~trained).sum()))
        return rows.select(trained.nonzero()[0])

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
