"""Going on from a checkpoint that is named."""

from __future__ import annotations

import json

import pytest
import torch

from arctic_training.errors import CheckpointError, RecipeError
from arctic_training.hookspecs import hookimpl
from arctic_training.optimizer import AdamWFactory, OptimizerFactory
from arctic_training.testing import TinyTrainer
from arctic_training.testing.contracts.common import figures


@pytest.fixture
def recipe(tiny_recipe):
    checkpoint = {"output_dir": "first", "save_every_n_steps": 2}
    return tiny_recipe | {"train_iters": 6, "checkpoint": checkpoint}


@pytest.mark.parametrize(("given", "step"), [("first/global_step_2", 2), ("first", 4)])
def test_training_goes_on_from_the_checkpoint_that_is_named(run_recipe, recipe, arctic_home, given, step):
    whole = run_recipe(recipe | {"checkpoint": []})
    run_recipe(recipe | {"exit_iteration_this_run": 5})
    for path in (str(arctic_home / given), given):
        run = run_recipe(recipe | {"checkpoint": [], "resume": path})
        assert run.first_step == step
        assert figures(run, "loss")[-(6 - step) :] == figures(whole, "loss")[step:]


def test_a_checkpoint_of_its_own_that_is_newer_is_taken_where_the_recipe_says_auto_resume(run_recipe, recipe):
    run_recipe(recipe | {"exit_iteration_this_run": 2})
    own = {"output_dir": "second", "save_every_n_steps": 3, "auto_resume": True}
    again = recipe | {"checkpoint": own, "resume": "first", "exit_iteration_this_run": 2}
    assert run_recipe(again).first_step == 2
    assert run_recipe(again).first_step == 4


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("nowhere", "there is no such directory"),
        ("arctic-home", "there is no checkpoint in it that training can go on from"),
        ("first/global_step_9", "there is no such directory"),
        ("first/global_step_4", "it has no manifest"),
        ("first/global_step_2", "engine.pt is missing"),
    ],
)
def test_a_checkpoint_that_is_not_there_or_not_whole_is_refused(run_recipe, recipe, arctic_home, given, problem):
    run_recipe(recipe | {"exit_iteration_this_run": 2})
    (arctic_home / "first/global_step_2/engine.pt").unlink()
    (arctic_home / "first/global_step_4").mkdir()
    with pytest.raises(CheckpointError, match=problem):
        run_recipe(recipe | {"resume": given})


def test_what_is_not_there_is_refused_before_data_is_prepared(run_recipe, recipe, capsys):
    with pytest.raises(CheckpointError, match="there is no such directory"):
        run_recipe(recipe | {"resume": "nowhere"})
    assert "data: " not in capsys.readouterr().err


def test_a_name_of_nothing_is_refused(run_recipe, recipe):
    with pytest.raises(RecipeError, match=r"resume.*names nothing"):
        run_recipe(recipe | {"resume": ""})


@pytest.mark.parametrize(("given", "times"), [("first/global_step_2", 0), ("first", 1)])
def test_a_checkpoint_that_auto_resume_meets_too_is_told_once(run_recipe, recipe, arctic_home, capsys, given, times):
    run_recipe(recipe | {"exit_iteration_this_run": 2})
    (arctic_home / "first/global_step_2/engine.pt").unlink()
    with pytest.raises(CheckpointError):
        run_recipe(recipe | {"resume": given, "checkpoint": recipe["checkpoint"] | {"auto_resume": True}})
    assert capsys.readouterr().err.count("engine.pt is missing") == times


def test_other_rows_than_the_checkpoint_was_written_with_are_told(run_recipe, recipe, capsys):
    run_recipe(recipe | {"exit_iteration_this_run": 2})
    recipe["data"] |= {"max_length": 20}
    run_recipe(recipe | {"resume": "first"})
    assert "the training rows are not those that" in capsys.readouterr().err


def test_keys_that_have_changed_since_are_told_with_both_values(run_recipe, recipe, capsys):
    run_recipe(recipe | {"exit_iteration_this_run": 2})
    again = recipe | {"resume": "first/global_step_2", "checkpoint": []}
    run_recipe(again | {"train_iters": 4})
    assert ": train_iters 6 -> 4\n" in capsys.readouterr().err
    run_recipe(again | {"optimizer": recipe["optimizer"] | {"betas": [0.8, 0.9]}})
    assert "optimizer.betas [0.9, 0.999] -> [0.8, 0.9]\n" in capsys.readouterr().err
    run_recipe(again | {"run_dir": "elsewhere"})
    assert "has changed" not in capsys.readouterr().err


def test_another_trainer_is_warned_of(run_recipe, plugin_manager, recipe, capsys):
    class OtherPlugin:
        @hookimpl
        def arctic_register_components(self, components):
            components.trainer("other", type("OtherTrainer", (TinyTrainer,), {"name": "other"}))

    plugin_manager.register(OtherPlugin(), "other")
    run_recipe(recipe | {"exit_iteration_this_run": 2})
    run_recipe(recipe | {"resume": "first", "type": "other"})
    said = capsys.readouterr().err
    assert "warning: checkpoint: the recipe has changed since" in said
    assert "type tiny -> other" in said


def test_the_state_of_another_optimizer_is_refused(run_recipe, plugin_manager, recipe):
    class Momentum(OptimizerFactory):
        name = "momentum"

        def create_optimizer(self, model):
            return torch.optim.SGD(self.parameter_groups(model), lr=self.config.learning_rate, momentum=0.9)

    class OptimizerPlugin:
        @hookimpl
        def arctic_register_components(self, components):
            components.optimizer("momentum", Momentum)
            components.optimizer("same", type("SameFactory", (AdamWFactory,), {"name": "same"}))

    plugin_manager.register(OptimizerPlugin(), "momentum")
    run_recipe(recipe | {"exit_iteration_this_run": 2})
    with pytest.raises(CheckpointError, match="holds the state of the optimizer adamw, and this run has momentum"):
        run_recipe(recipe | {"resume": "first", "optimizer": {"type": "momentum"}})
    assert run_recipe(recipe | {"resume": "first", "optimizer": {"type": "same"}}).first_step == 2


def test_the_manifest_tells_recipe_data_and_versions(run_recipe, recipe, arctic_home):
    run = run_recipe(recipe | {"exit_iteration_this_run": 2})
    manifest = json.loads((arctic_home / "first/global_step_2/manifest.json").read_text())
    assert manifest["data"] == {"train": run.data_facts["train"]["cache"]}
    assert "torch" in manifest["versions"]
    assert len(manifest["recipe"]) == 64
