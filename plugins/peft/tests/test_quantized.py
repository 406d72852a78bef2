"""QLoRA: a base in 4 bits, where bitsandbytes is installed."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from arctic_huggingface.export import command
from arctic_training.errors import RecipeError
from arctic_training.hookspecs import hookimpl
from arctic_training.testing import TrainerContract

IDS = [[7, 30, 12, 99, 200, 3, 40, 41]]
installed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture
def recipe(lora_recipe):
    lora_recipe["model"]["quantization"] = "4bit"
    return lora_recipe


def test_it_needs_an_adapter_and_weights(run_recipe, recipe):
    with pytest.raises(RecipeError, match=r"model\.quantization: weights in 4 bits cannot be trained"):
        run_recipe(recipe | {"model": recipe["model"] | {"peft_config": None}})


def test_where_it_cannot_run_is_said(run_recipe, recipe, monkeypatch):
    from arctic_huggingface import quantization

    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"model\.quantization: needs bitsandbytes.*; pip install bitsandbytes"):
        run_recipe(recipe)


@installed
@pytest.mark.slow
class TestTrainerWithFourBits(TrainerContract):
    @pytest.fixture
    def recipe(self, recipe):
        return recipe


@installed
@pytest.mark.slow
def test_the_base_has_four_bits_its_checkpoints_do_not_hold_it_and_merged_it_is_what_was_trained(
    run_recipe, recipe, plugin_manager, arctic_home
):
    import torch
    from transformers import AutoModelForCausalLM

    class Logits:
        @hookimpl
        def arctic_train_end(self, trainer, error):
            model = trainer.model_unwrapped.eval()
            kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("base_layer")}
            assert kinds == {"Linear4bit"}
            with torch.no_grad():
                self.logits = model(input_ids=torch.tensor(IDS)).logits

    plugin_manager.register(logits := Logits(), "logits")
    run_recipe(recipe | {"train_iters": 6, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}})
    state = torch.load(arctic_home / "kept/global_step_6/engine.pt", weights_only=True)
    assert all("lora_" in name for name in state["model"])
    result = CliRunner().invoke(command, ["kept", "merged", "--merge"], obj=SimpleNamespace(block=(), trust=False))
    assert result.exception is None, result.exception
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype="float32").eval()
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    with torch.no_grad():
        assert (merged(input_ids=torch.tensor(IDS)).logits - logits.logits).abs().max() < 1e-4
