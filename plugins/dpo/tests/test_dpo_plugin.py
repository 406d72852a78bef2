"""The plugin as a run meets it: its components, its lightness, its contracts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from arctic_training.testing import DataFactoryContract, TrainerContract

HEAVY = ("torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers")


class TestDPOTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, dpo_recipe):
        return dpo_recipe


class TestTrainerWithAMeanReward(TrainerContract):
    @pytest.fixture
    def recipe(self, dpo_recipe):
        return dpo_recipe | {"loss_type": ["bco_pair", "simpo"], "loss_weights": [1.0, 0.5]}


class TestPackedPrecomputedTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, dpo_recipe):
        data = dpo_recipe["data"] | {"pack_samples": True, "max_length": 96}
        return dpo_recipe | {"data": data, "precompute_reference": True}


class TestDPOData(DataFactoryContract):
    @pytest.fixture
    def recipe(self, dpo_recipe):
        return dpo_recipe

    def test_no_row_is_longer_than_max_length(self, build_run, recipe):
        """max_length bounds a prompt with one answer, and a row holds two."""
        with build_run(recipe) as run:
            limit = 2 * run.component("data").max_length
            assert all(len(row["input_ids"]) <= limit for row in run.rows["train"])


@pytest.mark.parametrize("module", ["", ".plugin", ".data", ".trainer", ".config", ".losses"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, arctic_dpo{module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_plugin_offers_its_trainer_and_its_data_factory(plugin_manager):
    import arctic_dpo

    registry = plugin_manager.registry
    assert registry.get("trainer", "dpo") is arctic_dpo.DPOTrainer
    assert registry.get("data", "dpo") is arctic_dpo.DPODataFactory
    assert set(arctic_dpo.__all__) <= set(dir(arctic_dpo))
    with pytest.raises(AttributeError, match="no attribute 'DPOTrainr'"):
        arctic_dpo.DPOTrainr  # noqa: B018
