"""The DeepSpeed engine and its checkpoints keep what Arctic asks of every engine and every checkpoint."""

import pytest

from arctic_training.testing import CheckpointEngineContract, EngineContract

pytestmark = pytest.mark.slow


class TestDeepSpeedEngine(EngineContract):
    @pytest.fixture
    def recipe(self, tiny_recipe):
        return tiny_recipe | {"engine": {"type": "deepspeed"}}


class TestDeepSpeedCheckpoint(CheckpointEngineContract):
    @pytest.fixture
    def recipe(self, tiny_recipe):
        return tiny_recipe | {"engine": {"type": "deepspeed"}, "checkpoint": {"output_dir": "checkpoints"}}
