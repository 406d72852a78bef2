"""Contracts of what rows come from and what becomes of them: data sources and data factories."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from arctic_training.loss import IGNORE_INDEX
from arctic_training.testing.contracts.common import Contract, Recipe, with_data

if TYPE_CHECKING:
    from arctic_training.run import Run
    from arctic_training.stream import RowStream

    BuildRun = Callable[..., AbstractContextManager[Run]]


class DataSourceContract(Contract):
    """What every data source keeps. Its recipe's first source is the one under test."""

    def test_it_gives_rows_that_are_mappings_with_the_same_columns(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            rows = _load(run)
            assert len(rows) > 0
            columns = set(rows[0])
            assert all(set(rows[number]) == columns for number in range(len(rows)))

    def test_it_gives_the_same_rows_each_time(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            one, other = _load(run), _load(run)
            assert len(one) == len(other)
            assert all(one[number] == other[number] for number in range(len(one)))

    def test_its_stream_gives_the_rows_of_load_from_any_position(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            rows = _load(run)
            expected = [rows[number] for number in range(len(rows))]
            for number in sorted({0, 1, len(rows) // 2, len(rows)}):
                first, second = _stream(run), _stream(run)
                before = [row for row, _ in first.read(number)]
                second.seek(json.loads(json.dumps(first.position())))
                assert before + [row for row, _ in second.read(len(rows) + 1)] == expected

    def test_its_fingerprint_is_the_same_each_time(self, build_run: BuildRun, recipe: Recipe) -> None:
        fingerprints = []
        for _ in range(2):
            with build_run(recipe) as run:
                fingerprints.append(run.make(run.config.data.sources[0]).fingerprint())
        assert fingerprints[0] == fingerprints[1]


class DataFactoryContract(Contract):
    """What every data factory keeps whose rows are tokens."""

    def test_each_token_has_a_label_and_a_trained_one_is_its_own(self, build_run: BuildRun, recipe: Recipe) -> None:
        for row in _prepared(build_run, recipe):
            assert len(row["labels"]) == len(row["input_ids"])
            assert all(
                label in (IGNORE_INDEX, token) for token, label in zip(row["input_ids"], row["labels"], strict=True)
            )

    def test_each_row_has_something_to_train(self, build_run: BuildRun, recipe: Recipe) -> None:
        for row in _prepared(build_run, recipe):
            assert set(row["labels"]) != {IGNORE_INDEX}

    def test_the_first_token_of_a_document_is_never_trained(self, build_run: BuildRun, recipe: Recipe) -> None:
        for row in _prepared(build_run, recipe):
            positions = row.get("position_ids", range(len(row["labels"])))
            firsts = [label for label, position in zip(row["labels"], positions, strict=True) if position == 0]
            assert firsts
            assert set(firsts) == {IGNORE_INDEX}

    def test_no_row_is_longer_than_max_length(self, build_run: BuildRun, recipe: Recipe) -> None:
        lengths = sorted(len(row["input_ids"]) for row in _prepared(build_run, recipe))
        limit = lengths[len(lengths) // 2]
        for row in _prepared(build_run, with_data(recipe, max_length=limit)):
            assert len(row["input_ids"]) <= limit

    def test_preparing_twice_gives_the_same_rows(self, build_run: BuildRun, recipe: Recipe) -> None:
        one, other = (
            _prepared(build_run, with_data(recipe, cache_dir=directory))
            for directory in ("first-cache", "second-cache")
        )
        assert one == other

    def test_a_micro_batch_trains_exactly_the_tokens_of_its_rows(self, build_run: BuildRun, recipe: Recipe) -> None:
        import torch

        with build_run(recipe | {"micro_batch_size": 3}) as run:
            batch = next(run.trainer.train_dataloader.epoch(0))[0]
            rows = [run.rows["train"][number] for number in batch.rows]
            assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
            assert {tuple(tensor.shape) for tensor in batch.values()} == {tuple(batch["input_ids"].shape)}
            for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
                length = len(row["input_ids"])
                assert ids[:length].tolist() == list(row["input_ids"])
                assert labels[:length].tolist() == list(row["labels"])
                assert set(labels[length:].tolist()) <= {IGNORE_INDEX}

    def test_splitting_loses_no_row_and_doubles_none(self, build_run: BuildRun, recipe: Recipe) -> None:
        data = {"train_eval_split": [0.75, 0.25], "eval_sources": []}
        with build_run(with_data(recipe, **data) | {"eval_interval": 1}) as run:
            train, evaluation = run.component("data").split_data(list(range(100)))
            assert sorted([*train, *evaluation]) == list(range(100))
            assert len(evaluation) == 25


def _load(run: Run) -> Any:
    source = run.config.data.sources[0]
    return run.make(source).load(source, source.split)


def _stream(run: Run) -> RowStream:
    source = run.config.data.sources[0]
    return run.make(source).stream(source, source.split)


def _prepared(build_run: BuildRun, recipe: Recipe) -> list[dict[str, list[int]]]:
    with build_run(recipe) as run:
        rows = run.rows["train"]
        return [{name: values.tolist() for name, values in row.items() if values.ndim} for row in rows]
