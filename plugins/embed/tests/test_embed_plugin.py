"""The plugin as a run meets it: its components, its lightness, its contracts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from arctic_training.loss import IGNORE_INDEX
from arctic_training.testing import DataFactoryContract, DataSourceContract, TrainerContract

HEAVY = ("torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers")


class TestEmbedTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, embed_recipe):
        return embed_recipe


class TestTrainerOfEverything(TrainerContract):
    @pytest.fixture
    def recipe(self, embed_recipe):
        return embed_recipe | {"symmetric": True, "matryoshka_dims": [32, 8], "matryoshka_weights": [1.0, 0.5]}


class TestEmbedData(DataFactoryContract):
    """A micro-batch has a text a line, and a text, not a row, has a longest length."""

    @pytest.fixture
    def recipe(self, embed_recipe):
        return embed_recipe

    def test_a_micro_batch_trains_exactly_the_tokens_of_its_rows(self, build_run, recipe):
        import torch

        with build_run(recipe | {"micro_batch_size": 3}) as run:
            batch = next(run.trainer.train_dataloader.epoch(0))[0]
            rows = [run.rows["train"][number] for number in batch.rows]
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        assert {tuple(tensor.shape) for tensor in batch.values()} == {tuple(batch["input_ids"].shape)}
        is_token = batch["attention_mask"].bool()
        for name in ("input_ids", "labels"):
            assert batch[name][is_token].tolist() == [value for row in rows for value in row[name].tolist()]
        assert set(batch["labels"][~is_token].tolist()) <= {IGNORE_INDEX}
        assert batch.columns["texts"].tolist() == [
            number for row in rows for number in range(1, 1 + max(row["texts"].tolist()))
        ]

    def test_no_row_is_longer_than_max_length(self, build_run, recipe):
        recipe = recipe | {"data": recipe["data"] | {"max_length": 12}}
        with build_run(recipe) as run:
            lengths = [batch["attention_mask"].sum(1) for (batch,) in run.trainer.train_dataloader.epoch(0)]
            assert max(int(of_texts.max()) for of_texts in lengths) == 12
            assert run.rows["train"].facts["counts"]["texts cut to max_length"] > 0
            ends = [int(text[-1]) for row in run.rows["train"] for text in _texts(row)]
        assert set(ends) == {2}  # [SEP] stays at the end


def _texts(row):
    return [row["input_ids"][row["texts"] == number] for number in range(1, 1 + max(row["texts"]))]


class TestPairsSource(DataSourceContract):
    @pytest.fixture
    def recipe(self, embed_recipe):
        return embed_recipe


@pytest.mark.parametrize("module", ["", ".plugin", ".data", ".trainer", ".model", ".contrast", ".export"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, arctic_embed{module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_training_raises_recall(run_recipe, embed_recipe):
    sources = embed_recipe["data"]["sources"]
    recipe = embed_recipe | {"data": embed_recipe["data"] | {"eval_sources": sources}}
    run = run_recipe(recipe | {"epochs": 8, "eval_interval": 48, "evaluate_at_start": True, "micro_batch_size": 12})
    before, after = (record for record in run.metrics if record["kind"] == "eval")
    assert after["recall@1"] > before["recall@1"]
    assert after["mrr"] > before["mrr"]
    assert after["loss"] < before["loss"]
