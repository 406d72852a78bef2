"""The recipe's ``data`` section and the sources in it: their keys, and what contradicts what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from arctic_training.config import ComponentConfig, Place, key
from arctic_training.mixture import Share
from arctic_training.shorthand import default_split, is_split, source_from_shorthand

EVAL = "eval"
"""The set of evaluation data that goes without a name."""


STREAM_BUFFER = 10_000


def _available_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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
