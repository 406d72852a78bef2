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
from arctic_training.dataloader import DataLoader, Loader
from arctic_training.errors import DataError
from arctic_training.loss import IGNORE_INDEX
from arctic_training.mixture import Share, draw
from arctic_training.preparation import Preparation
from arctic_training.shorthand import default_split, is_split, source_from_shorthand
from arctic_training.stream import LoadedStream, RowStream

if TYPE_CHECKING:
    import numpy as np
    import torch


EVAL = "eval"
"""The set of evaluation data that goes without a name."""


STREAM_BUFFER = 10_000


def _available_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Rows(Protocol):
    """A sequence of rows, such as a ``datasets.Dataset`` or a list of dicts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class SourceConfig(ComponentConfig):
    kind: ClassVar[str] = "data_source"

    name: str | None = key(
        None,
        affects_rows=False,
        doc="What metrics call its rows; evaluation sources of one name are one set, evaluated by itself.",
    )
    split: str = key(
        "", doc="Split to load, with an optional slice as in `train[:10%]`; train, or eval under eval_sources."
    )
    sample_ratio: float | None = key(None, gt=0, le=1, doc="Fraction of the rows to draw, without replacement.")
    sample_count: int | None = key(None, ge=1, doc="Number of rows to draw, without replacement.")
    sample_seed: int = key(42, ge=0, doc="Seed of the draw.")
    process: bool = key(True, doc="false for rows that already hold input_ids and labels.")
    weight: float | None = key(
        None,
        gt=0,
        doc="Its part of a training epoch in proportion to the weights of the other sources, by data.weight_by.",
    )
    passes: float = key(1.0, gt=0, doc="How often each of its rows is used in a training epoch; with weights, at most.")
    max_trained_tokens: int | None = key(None, ge=1, doc="Trained tokens that it gives to a training epoch at most.")

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

    @property
    def without_effect(self) -> set[str]:
        """Keys that change nothing with the others as they are."""
        return set() if self.sample_ratio or self.sample_count else {"sample_seed"}

    @property
    def share(self) -> Share:
        """How much of it an epoch holds."""
        return Share(self.weight, self.passes, self.max_trained_tokens)


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
        affects_rows=False,
        doc="Processes that prepare data; the cores there are by default.",
    )
    dl_num_workers: int = key(
        2, ge=0, affects_rows=False, doc="Processes of each rank that put micro-batches together; 0 for none."
    )
    seed: int = key(42, ge=0, doc="Seed of the order of rows and of every draw in preparation.")
    weight_by: Literal["rows", "trained_tokens"] = key(
        "trained_tokens", doc="What the weights of sources are proportions of."
    )
    on_bad_row: Literal["error", "skip"] = key(
        "error", doc="A row that cannot be used ends the run, or is left out, counted and reported."
    )
    max_bad_fraction: float = key(
        0.05, ge=0, le=1, doc="Rows that may be skipped, of all rows that are read; more end the run."
    )
    streaming: bool = key(
        False,
        affects_rows=False,
        doc="Read, tokenise and pack training rows while training, and keep none of them; for sources larger than the "
        "disk. Evaluation data is prepared as ever.",
    )
    stream_buffer: int = key(
        STREAM_BUFFER,
        ge=1,
        affects_rows=False,
        doc="Rows of a stream that are packed together, and their packs shuffled.",
    )
    use_data_cache: bool | None = key(None, affects_rows=False, deprecated="remove it: prepared data is always cached")
    cache_processed_data: bool | None = key(
        None, affects_rows=False, deprecated="remove it: prepared data is always cached"
    )
    cache_dir: str | None = key(
        None,
        affects_rows=False,
        doc="Where prepared data is kept; ARCTIC_HOME or the user's cache directory by default.",
    )
    cache_fs_type: Literal["auto", "local", "shared"] = key(
        "auto",
        affects_rows=False,
        doc="How processes that prepare the same rows keep out of each other's way: shared by a lock file that all "
        "nodes see, local by a lock of the operating system, auto by the latter where the file system has it.",
    )
    fail_on_missing_cache: bool = key(
        False, affects_rows=False, doc="End with an error instead of preparing data that is not cached."
    )

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
        if any(source.name == "train" for source in self.eval_sources):
            yield "eval_sources", "`train` is what reports call the training rows: give the set another name"
        yield from self._check_streaming()
        weighted = sum(source.weight is not None for source in self.sources)
        if 0 < weighted < len(self.sources):
            yield "sources", f"{weighted} of {len(self.sources)} sources have a weight: give one to all or to none"
        if any(source.share.asks_for_something for source in self.eval_sources):
            yield (
                "eval_sources",
                "evaluation sees every row once: weight, passes and max_trained_tokens are for training",
            )

    def _check_streaming(self) -> Iterator[tuple[str, str]]:
        if not self.streaming:
            if self.stream_buffer != STREAM_BUFFER:
                yield "stream_buffer", "has no effect without streaming: true"
            return
        if self.train_eval_split[1]:
            yield "train_eval_split", "cannot divide a stream: give eval_sources"
        if not all(source.process for source in self.sources):
            yield "sources", "a stream makes tokens of its rows: process: false needs streaming: false"
        for source in self.sources:
            if source.sample_ratio or source.sample_count or source.passes != 1 or source.max_trained_tokens:
                yield "sources", "of a stream nobody knows the size: sampling, passes and caps need streaming: false"
                return
        if any(source.weight for source in self.sources) and self.weight_by != "rows":
            yield "weight_by", "a stream is weighed by rows: set weight_by: rows"

    @property
    def without_effect(self) -> set[str]:
        """Keys that change nothing with the others as they are."""
        weighted = any(source.weight is not None for source in self.sources)
        return {
            name for name, has in (("weight_by", weighted), ("max_bad_fraction", self.on_bad_row == "skip")) if not has
        }

    @property
    def mixes(self) -> bool:
        """Whether an epoch holds anything but each training row once."""
        return any(source.share.asks_for_something for source in self.sources)

    def sources_of(self, split: str, name: str = EVAL) -> list[SourceConfig]:
        """The sources of a split, of evaluation data those of the set ``name``."""
        if split == "train" or not self.eval_sources:
            return self.sources
        return [source for source in self.eval_sources if (source.name or EVAL) == name]

    def source_names(self, split: str, name: str = EVAL) -> list[str]:
        """What reports and metrics call the sources of a split: their names, else what they load, each only once."""
        names: list[str] = []
        for source in self.sources_of(split, name):
            given = source.name or str(getattr(source, "name_or_path", "") or source.type)
            number = sum(other == given or other.startswith(f"{given} (") for other in names)
            names.append(f"{given} ({number + 1})" if number else given)
        return names

    @property
    def eval_sets(self) -> list[str]:
        """The names of the sets to evaluate on, in the order of the recipe; ``eval`` where a source gives none."""
        if self.eval_sources:
            return list(dict.fromkeys(source.name or EVAL for source in self.eval_sources))
        return [EVAL] if self.evaluates else []

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
        if not len(rows):
            raise DataError(
                f"no {split} rows are left after preparation",
                remedy="; ".join(f"{number:,} {name}" for name, number in self.counts.items())
                or "the sources are empty",
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
