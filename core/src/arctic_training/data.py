"""The data stage: what sources and data factories are, and how their rows become prepared rows.

Preparation runs on one rank of each file system, before any process group, under a lock; the others wait for it and
map what it wrote (``data_cache``).
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from arctic_training._exports import lazy_attribute
from arctic_training.component import Component
from arctic_training.config import ComponentConfig, Place, key
from arctic_training.dataloader import DataLoader
from arctic_training.errors import DataError
from arctic_training.shorthand import default_split, is_split, source_from_shorthand
from arctic_training.stream import LoadedStream, RowStream

if TYPE_CHECKING:
    import torch


def _available_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Rows(Protocol):
    """A sequence of rows, such as a ``datasets.Dataset`` or a list of dicts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class SourceConfig(ComponentConfig):
    kind: ClassVar[str] = "data_source"

    split: str = key(
        "", doc="Split to load, with an optional slice as in `train[:10%]`; train, or eval under eval_sources."
    )
    sample_ratio: float | None = key(None, gt=0, le=1, doc="Fraction of the rows to draw, without replacement.")
    sample_count: int | None = key(None, ge=1, doc="Number of rows to draw, without replacement.")
    sample_seed: int = key(42, ge=0, doc="Seed of the draw.")
    process: bool = key(True, doc="false for rows that already hold input_ids and labels.")

    def check(self) -> Iterator[tuple[str, str]]:
        if self.sample_ratio is not None and self.sample_count is not None:
            yield "sample_count", "contradicts sample_ratio: give one of them"
        if not is_split(self.split):
            yield "split", f"expected a split such as 'train' or 'train[:10%]', found {self.split!r}"

    @classmethod
    def from_shorthand(cls, value: Any, place: Place) -> Mapping[str, Any]:
        """``name:split[slice]``; the name of a registered source, or what the default source loads."""
        return source_from_shorthand(value, place)

    @classmethod
    def defaults_at(cls, place: Place) -> Mapping[str, Any]:
        return {"split": default_split(place)}


class DataConfig(ComponentConfig):
    kind: ClassVar[str] = "data"

    sources: list[SourceConfig] = key(doc="What to train on: a list of names, files or mappings.")
    eval_sources: list[SourceConfig] = key(factory=list, doc="What to evaluate on.")
    train_eval_split: tuple[float, float] = key(
        (1.0, 0.0), ge=0, le=1, doc="Fractions of the training rows to train and to evaluate on; they add up to 1."
    )
    max_length: int | None = key(
        None, ge=1, doc="Longest row in tokens; the model's max_position_embeddings when not given."
    )
    num_proc: int = key(
        factory=_available_cores,
        ge=1,
        doc="Processes that prepare data; the cores there are by default.",
    )
    dl_num_workers: int = key(2, ge=0, doc="Processes of each rank that put micro-batches together; 0 for none.")
    seed: int = key(42, ge=0, doc="Seed of the order of rows and of every draw in preparation.")
    use_data_cache: bool | None = key(None, deprecated="remove it: prepared data is always cached")
    cache_processed_data: bool | None = key(None, deprecated="remove it: prepared data is always cached")
    cache_dir: str | None = key(
        None, doc="Where prepared data is kept; the user's cache directory (or ARCTIC_HOME) by default."
    )
    cache_fs_type: Literal["auto", "local", "shared"] = key(
        "auto",
        doc="How processes that prepare the same rows keep out of each other's way: shared by a lock file that all "
        "nodes see, local by a lock of the operating system, auto by the latter where the file system has it.",
    )
    fail_on_missing_cache: bool = key(False, doc="End with an error instead of preparing data that is not cached.")

    def check(self) -> Iterator[tuple[str, str]]:
        if abs(sum(self.train_eval_split) - 1) > 1e-6:
            yield "train_eval_split", f"the two fractions must add up to 1, not {sum(self.train_eval_split):g}"
        elif self.train_eval_split[1] and self.eval_sources:
            yield (
                "eval_sources",
                "contradicts train_eval_split, which keeps training rows for evaluation: give one of them",
            )
        if not self.sources:
            yield "sources", "names nothing to train on"

    @property
    def evaluates(self) -> bool:
        """Whether the recipe names anything to evaluate on."""
        return bool(self.eval_sources) or self.train_eval_split[1] > 0


class DataSource(Component):
    """Loads the rows of one entry of ``data.sources``."""

    kind = "data_source"
    config: SourceConfig

    @abstractmethod
    def load(self, config: SourceConfig, split: str) -> Rows:
        """The rows.

        Args:
            config: the entry; the same as ``self.config``.
            split: the split to load, as the recipe has it (``train[:10%]``).
        """

    def stream(self, config: SourceConfig, split: str) -> RowStream:
        """The rows that ``load`` gives, one after the other; a source that need not load them first overrides it."""
        return LoadedStream(self.load(config, split))

    def fingerprint(self) -> str | None:
        """Text that changes whenever ``load`` would give other rows; None when that cannot be known without loading."""
        return None


class DataFactory(Component):
    """Turns loaded rows into rows that a model trains on, and those into micro-batches."""

    kind = "data"
    config: DataConfig
    default_source: ClassVar[str] = ""
    """Type of a source whose entry names none."""

    def __init__(self, config: DataConfig, run: Any) -> None:
        super().__init__(config, run)
        self.counts: dict[str, int] = {}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the run."""
        return self.trainer.tokenizer

    @property
    def max_length(self) -> int:
        """Longest row in tokens: the recipe's, else the model's.

        Raises:
            DataError: neither names one.
        """
        length = self.config.max_length or self.run.model_max_length
        if not length:
            raise DataError("the model's configuration names no longest sequence", remedy="set data.max_length")
        return length

    def load(self, split: str) -> list[Rows]:
        """The rows of each source of a split, sampled; through ``arctic_load_data``."""
        sources = self.config.eval_sources if split == "eval" and self.config.eval_sources else self.config.sources
        return [self._load_source(source, split) for source in sources]

    @abstractmethod
    def process(self, dataset: Rows) -> Rows:
        """Tokenise the rows of one source: rows with ``input_ids`` and ``labels`` of equal length.

        Raises:
            DataError: a row cannot be used; names it.
        """

    def finish(self, dataset: Rows) -> Rows:
        """Filter and pack the processed rows of all sources of a split."""
        return dataset

    @abstractmethod
    def collate(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        """The tensors of a micro-batch, named as the model's arguments, with ``labels``."""

    def count(self, name: str, number: int) -> None:
        """Add to a count of the report, such as rows dropped; said once when preparation ends."""
        self.counts[name] = self.counts.get(name, 0) + int(number)

    def split_data(self, dataset: Rows) -> tuple[Rows, Rows]:
        """Divide training rows by ``train_eval_split``, at random, the same way in every run with this seed."""
        share = round(len(dataset) * self.config.train_eval_split[1])
        shuffled = _permutation(len(dataset), self.config.seed)
        return select(dataset, sorted(shuffled[share:])), select(dataset, sorted(shuffled[:share]))

    def prepare(self, datasets: Sequence[Rows], split: str) -> Rows:
        """Process the rows of each source, put them together, and finish them."""
        sources = self.config.eval_sources if split == "eval" and self.config.eval_sources else self.config.sources
        processed = [
            self.process(rows) if source.process else rows for source, rows in zip(sources, datasets, strict=True)
        ]
        rows = self.finish(concatenate(processed))
        if not len(rows):
            raise DataError(
                f"no {split} rows are left after preparation",
                remedy="; ".join(f"{number:,} {name}" for name, number in self.counts.items())
                or "the sources are empty",
            )
        return rows

    def create_dataloader(self, dataset: Rows, split: str) -> DataLoader:
        """The loader of prepared rows; training rows are shuffled, evaluation rows are not."""
        config = self.run.config
        return DataLoader(
            dataset,  # type: ignore[arg-type]
            self.collate,
            micro_batch_size=config.micro_batch_size,
            accumulation=config.gradient_accumulation_steps if split == "train" else 1,
            world=self.run.world,
            seed=self.config.seed if split == "train" else None,
            num_workers=self.config.dl_num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _load_source(self, config: SourceConfig, split: str) -> Rows:
        rows = self.run.plugins.ask("arctic_load_data", _looks_like_rows, config=config, split=split, run=self.run)
        if config.sample_count is not None or config.sample_ratio is not None:
            count = config.sample_count or round(len(rows) * (config.sample_ratio or 1))
            if count > len(rows):
                raise DataError(f"sample_count is {count}, and the source has {len(rows)} rows")
            rows = select(rows, sorted(_permutation(len(rows), config.sample_seed)[:count]))
        if self.config.train_eval_split[1] > 0:
            rows = self.split_data(rows)[split == "eval"]
        return rows


def select(rows: Rows, numbers: Sequence[int]) -> Rows:
    """The rows of these numbers, by the rows' own ``select`` where they have one."""
    if hasattr(rows, "select"):
        return rows.select(numbers)
    return [rows[number] for number in numbers]


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, one after the other."""
    return parts[0] if len(parts) == 1 else _Concatenated(parts)


class _Concatenated(Sequence[Mapping[str, Any]]):
    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            yield from (part[number] for number in range(len(part)))


def _looks_like_rows(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _permutation(size: int, seed: int) -> list[int]:
    import numpy as np

    return np.random.Generator(np.random.Philox(seed)).permutation(size).tolist()


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, name)
