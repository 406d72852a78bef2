"""The data stage: what sources and data factories are, and how their rows become prepared rows.

Preparation runs on one rank of each file system, before any process group, under a lock; the others wait for it and
map what it wrote (``data_cache``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from arctic_training._exports import lazy_attribute
from arctic_training.component import Component
from arctic_training.data_config import EVAL as EVAL
from arctic_training.data_config import DataConfig as DataConfig
from arctic_training.data_config import SourceConfig as SourceConfig
from arctic_training.dataloader import DataLoader, Loader
from arctic_training.errors import DataError
from arctic_training.loss import IGNORE_INDEX
from arctic_training.mixture import draw
from arctic_training.preparation import Preparation
from arctic_training.stream import LoadedStream, RowStream
from arctic_training.wording import counted_by_name

if TYPE_CHECKING:
    import numpy as np
    import torch


class Rows(Protocol):
    """A sequence of rows, such as a ``datasets.Dataset`` or a list of dicts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


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

    def fingerprint_parts(self) -> Mapping[str, str] | None:
        """The same in parts by name, so that one can see what differs; a part may take the place of the key of its
        name. Whoever overrides ``fingerprint`` alone is asked for that alone."""
        content = self.fingerprint()
        return None if content is None else {"content": content}


class DataFactory(Component):
    """Turns loaded rows into rows that a model trains on, and those into micro-batches."""

    kind = "data"
    config: DataConfig
    default_source: ClassVar[str] = ""
    """Type of a source whose entry names none."""

    def __init__(self, config: DataConfig, run: Any) -> None:
        super().__init__(config, run)
        self.preparation = Preparation("train", config.sources, config)

    @property
    def counts(self) -> dict[str, int]:
        """What became of the rows of the split that is prepared, or was last."""
        return self.preparation.counts

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

    @property
    def packs_hold(self) -> int | None:
        """Tokens that a pack may hold; None where rows are not packed."""
        return None

    def draws(self) -> bool:
        """Whether prepared rows depend on ``data.seed``.

        A class that says no speaks for itself alone: of a subclass that does not define this method it is assumed.
        """
        return True

    def fingerprint_parts(self) -> Mapping[str, Any] | None:
        """What prepared rows depend on besides sources, keys of ``data``, tokenizer and code, JSON-able, by name; None
        when that cannot be known beforehand, so that rows are prepared anew for each launch."""
        return {}

    def load(self, split: str) -> list[Rows]:
        """The rows of each source of a split, sampled; through ``arctic_load_data``."""
        return [self._load_source(source, split) for source in self.preparation.sources]

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
        self.preparation.count(name, number)

    def count_mixed(self, number: int, drawn: np.ndarray) -> None:
        """Count what a mixture leaves out and repeats of a source of so many rows, of which these were drawn."""
        import numpy as np

        used = len(np.unique(drawn))
        self.count("rows dropped, left out by the mixture", number - used)
        self.count("rows repeated by the mixture", len(drawn) - used)

    def split_data(self, dataset: Rows) -> tuple[Rows, Rows]:
        """Divide training rows by ``train_eval_split``, at random, the same way in every run with this seed."""
        share = round(len(dataset) * self.config.train_eval_split[1])
        shuffled = _permutation(len(dataset), self.config.seed)
        return select(dataset, _ascending(shuffled[share:])), select(dataset, _ascending(shuffled[:share]))

    def prepare(self, datasets: Sequence[Rows], split: str) -> Rows:
        """Process the rows of each source, put them together, and finish them."""
        if split != self.preparation.split:
            self.preparation = Preparation(split, self.config.sources_of(split), self.config)
        preparation = self.preparation
        preparation.num_rows = sum(len(rows) for rows in datasets)
        processed = [
            self._processed(rows) if source.process else self._as_they_are(rows)
            for source, rows in zip(preparation.sources, datasets, strict=True)
        ]
        rows = self.finish(self.mixed(processed))
        preparation.count("rows kept", preparation.num_open)  # where finish did not say it
        if not preparation.num_rows:
            names = ", ".join(self.config.source_names(split))
            raise DataError(f"there are no rows in {names}", remedy="look at what these are, and at their splits")
        if not len(rows):
            raise DataError(
                f"no {split} rows are left after preparation",
                remedy="; ".join(counted_by_name(number, name) for name, number in self.counts.items()),
            )
        return rows

    def mixed(self, parts: Sequence[Rows]) -> Rows:
        """The rows of all sources, of each as much as an epoch of training shall hold."""
        if not (self.preparation.for_training and self.config.mixes):
            return concatenate(parts)
        trained = [_trained_tokens(rows) for rows in parts]
        drawn = draw(
            [source.share for source in self.preparation.sources], trained, self.config.weight_by, self.config.seed
        )
        for rows, numbers in zip(parts, drawn, strict=True):
            self.count_mixed(len(rows), numbers)
        return concatenate([select(rows, numbers.tolist()) for rows, numbers in zip(parts, drawn, strict=True)])

    def create_stream(self) -> Loader:
        """The loader of training rows that are read while training.

        Raises:
            DataError: this factory prepares all rows before training.
        """
        raise DataError(
            f"the data factory {self.config.type!r} prepares all rows before training", remedy="set streaming: false"
        )

    def _processed(self, rows: Rows) -> Rows:
        """What ``process`` makes of a source; of rows that it does not count itself, all were read."""
        before, others = self.counts.get("rows read", 0), self.preparation.num_open
        processed = self.process(rows)
        if self.counts.get("rows read", 0) == before:
            self.preparation.read(len(rows))
        self.preparation.settle(others + len(processed), "process")
        return processed

    def _as_they_are(self, rows: Rows) -> Rows:
        self.preparation.read(len(rows))
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
            rows = select(rows, _ascending(_permutation(len(rows), config.sample_seed)[:count]))
        if self.config.train_eval_split[1] > 0:
            rows = self.split_data(rows)[split == "eval"]
        return rows


def select(rows: Rows, numbers: Any) -> Rows:
    """The rows of these numbers, by the rows' own ``select`` where they have one."""
    if hasattr(rows, "select"):
        return rows.select(numbers)
    return [rows[int(number)] for number in numbers]


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


def _permutation(size: int, seed: int) -> np.ndarray:
    import numpy as np

    return np.random.Generator(np.random.Philox(seed)).permutation(size)


def _ascending(numbers: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.sort(numbers)


def _trained_tokens(rows: Rows) -> np.ndarray:
    """Trained tokens of each row."""
    import numpy as np

    labels = (np.asarray(rows[number]["labels"]) for number in range(len(rows)))
    return np.array([int((row[1:] != IGNORE_INDEX).sum()) for row in labels], np.int64)


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, name)
