"""An adapter as a run meets it: what is trained, what is kept, how it goes on, with the contracts of trainers."""

from __future__ import annotations

import pytest

from arctic_training.errors import CheckpointError
from arctic_training.testing import CheckpointEngineContract, TrainerContract


def losses(run):
    return [line["loss"] for line in run.metrics if line["kind"] == "train"]


class TestTrainerWithLora(TrainerContract):
    @pytest.fixture
    def recipe(self, lora_recipe):
        return lora_recipe


class TestCheckpointOfLora(CheckpointEngineContract):
    @pytest.fixture
    def recipe(self, lora_recipe):
        return lora_recipe | {"checkpoint": {"output_dir": "checkpoints"}}


class TestExportOfLora(CheckpointEngineContract):
    @pytest.fixture
    def recipe(self, lora_recipe):
        return lora_recipe | {"checkpoint": {"type": "huggingface", "output_dir": "checkpoints"}}
