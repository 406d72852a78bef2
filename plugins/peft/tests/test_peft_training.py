"""An adapter as a run meets it: what is trained, what is kept, how it goes on, with the contracts of trainers."""

from __future__ import annotations

import shutil

import pytest

from arctic_training.errors import CheckpointError
from arctic_training.testing import CheckpointEngineContract, TrainerContract


def losses(run):
    return [line["loss"] for line in run.metrics if line["kind"] == "train"]


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class TestTrainerWithLora(TrainerContract):
    @pytest.fixture
    def recipe(self, lora_recipe):
        return lora_recipe


class TestTrainerWithModulesToSave(TrainerContract):
    """PiSSA changes its base when it begins, and a module is trained whole: both have to come again after a resume."""

    @pytest.fixture
    def recipe(self, with_adapter):
        return with_adapter(peft_type="pissa", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])


class TestCheckpointOfLora(CheckpointEngineContract):
    @pytest.fixture
    def recipe(self, lora_recipe):
        return lora_recipe | {"checkpoint": {"output_dir": "checkpoints"}}


@pytest.mark.parametrize("disabled", [True, False], ids=["activations kept", "activations recomputed"])
def test_only_the_adapter_is_trained(build_run, run_recipe, lora_recipe, disabled):
    lora_recipe["model"] |= {"disable_activation_checkpoint": disabled}
    with build_run(lora_recipe) as run:
        model = run.trainer.model_unwrapped
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained
        assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
        batch = next(run.trainer.train_dataloader.epoch(0))[0].to(run.device)
        run.trainer.loss(batch).sum.backward()
        assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    run = run_recipe(lora_recipe, "train_iters=30")
    assert losses(run)[-1] < losses(run)[0] - 0.15


def test_a_checkpoint_holds_what_is_trained_and_not_the_base(run_recipe, lora_recipe, arctic_home):
    keep = {"output_dir": "kept", "save_end_of_training": True}
    from arctic_training.testing.tiny_llama import make_tiny_llama

    lora_recipe["model"] |= {"name_or_path": str(make_tiny_llama(arctic_home / "wide", hidden_size=128, layers=4))}
    run_recipe(lora_recipe | {"train_iters": 1, "checkpoint": keep})
    lora_recipe["model"].pop("peft_config")
    run_recipe(lora_recipe | {"train_iters": 1, "checkpoint": keep | {"output_dir": "whole"}})
    import torch

    weights = size_of(arctic_home / "wide")
    state = torch.load(arctic_home / "kept/global_step_1/engine.pt", weights_only=True)
    assert state["model"]
    assert all("lora_" in name for name in state["model"])
    assert (arctic_home / "kept/global_step_1/engine.pt").stat().st_size < 0.15 * weights
    assert (arctic_home / "whole/global_step_1/engine.pt").stat().st_size > weights


def test_a_checkpoint_is_continued_beside_its_own_base_alone(run_recipe, lora_recipe, tiny_model, arctic_home):
    from arctic_training.testing.tiny_llama import make_tiny_llama

    recipe = lora_recipe | {"train_iters": 2, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}}
    run_recipe(recipe)
    again = recipe | {"train_iters": 3, "resume": "kept", "checkpoint": []}
    moved = shutil.copytree(tiny_model, arctic_home / "moved")
    here = again | {"model": recipe["model"] | {"name_or_path": str(moved)}}
    assert run_recipe(here).first_step == 2
    other = again | {"model": recipe["model"] | {"name_or_path": str(make_tiny_llama(arctic_home / "other", seed=1))}}
    with pytest.raises(CheckpointError, match=r"the weights of .*other' are others"):
        run_recipe(other)
    whole = again | {"model": {name: value for name, value in recipe["model"].items() if name != "peft_config"}}
    with pytest.raises(CheckpointError, match="the checkpoint trains an adapter, and this run does not"):
        run_recipe(whole)


def test_another_scale_after_a_resume_is_told(run_recipe, lora_recipe, with_adapter):
    recipe = lora_recipe | {"train_iters": 2, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}}
    run_recipe(recipe)
    other = recipe["model"]["peft_config"] | {"lora_alpha": 16}
    run = run_recipe(with_adapter(**other) | {"train_iters": 3, "resume": "kept"})
    assert "the adapter is not the one that was saved: lora_alpha is 16, and was 8 in" in (run.log_path).read_text()


def test_another_rank_after_a_resume_is_refused_with_both(run_recipe, lora_recipe, with_adapter):
    recipe = lora_recipe | {"train_iters": 2, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}}
    run_recipe(recipe)
    other = recipe["model"]["peft_config"] | {"r": 5}
    with pytest.raises(CheckpointError, match=r"not the one that was saved: r is 5, and was \d"):
        run_recipe(with_adapter(**other) | {"train_iters": 3, "resume": "kept"})


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_adapters_have_the_precision_of_the_model_over_master_weights(build_run, lora_recipe, dtype):
    lora_recipe["model"] |= {"dtype": dtype}
    with build_run(lora_recipe) as run:
        engine = run.trainer.engine
        assert len({parameter.dtype for parameter in run.trainer.model_unwrapped.parameters()}) == 1
        assert len(engine.master_of) == len(engine.parameter_names) > 0
