"""Parameters with rates of their own, and parameters that are not trained, by patterns over their names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from arctic_training.errors import CheckpointError, RecipeError
from arctic_training.optimizer import RATE_SCALE, base_learning_rate
from arctic_training.testing.contracts.common import KeepsWeights, differing, figures, last_weights


@pytest.fixture
def grouped(tiny_recipe):
    def grouped(*groups):
        return tiny_recipe | {
            "optimizer": {"type": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1, "groups": list(groups)}
        }

    return grouped


def settings(run):
    """Rate and decay of each parameter."""
    names = {id(parameter): name for name, parameter in run.trainer.model_unwrapped.named_parameters()}
    return {
        names[id(parameter)]: (group["initial_lr"], group["weight_decay"])
        for group in run.trainer.optimizer.param_groups
        for parameter in group["params"]
    }


def test_the_first_group_that_fits_a_name_gives_its_rate_and_decay(build_run, grouped):
    with build_run(grouped()) as run:
        plain = settings(run)
    names = list(plain)
    first, vector = names[0], next(name for name in names if plain[name][1] == 0)
    groups = (
        {"match": [first], "learning_rate": 0.5},
        {"match": [first, vector], "learning_rate_scale": 0.1, "weight_decay": 0.3},
    )
    with build_run(grouped(*groups)) as run:
        found = settings(run)
        assert run.trainer.engine.learning_rate == 1e-2
    assert found == plain | {first: (0.5, plain[first][1]), vector: (pytest.approx(1e-3), 0.3)}


def test_a_pattern_that_fits_no_parameter_is_refused_with_a_name_that_it_may_have_meant(run_recipe, grouped):
    with pytest.raises(RecipeError, match=r"optimizer.groups.0.match: the pattern 'embeding.wieght' fits no parameter"):
        run_recipe(grouped({"match": ["embeding.wieght"], "weight_decay": 0.0}))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"match": ["*"]}, "changes nothing"),
        ({"match": []}, "names no parameter"),
        ({"match": ["*"], "learning_rate": 1, "learning_rate_scale": 2}, "contradicts learning_rate"),
    ],
)
def test_groups_that_say_nothing_or_two_things_are_refused(run_recipe, grouped, group, message):
    with pytest.raises(RecipeError, match=message):
        run_recipe(grouped(group))


def test_training_with_groups_goes_on_exactly(run_recipe, plugin_manager, grouped):
    plugin_manager.register(KeepsWeights(), "keeps weights")
    recipe = grouped({"match": ["*"], "learning_rate_scale": 0.5}) | {"train_iters": 6}
    whole = run_recipe(recipe)
    saving = recipe | {"checkpoint": {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 3}}
    run_recipe(saving, "exit_iteration_this_run=3")
    for name, tensor in last_weights(run_recipe(saving)).items():
        assert torch.equal(tensor, last_weights(whole)[name]), name


@pytest.mark.parametrize("key", ["freeze", "train_only"])
def test_frozen_parameters_stay_as_they_were_and_the_others_move(build_run, run_recipe, tiny_recipe, key):
    with build_run(tiny_recipe) as run:
        before = {name: tensor.detach().clone() for name, tensor in run.trainer.model_unwrapped.named_parameters()}
    chosen = next(iter(before))
    recipe = tiny_recipe | {"model": {**tiny_recipe.get("model", {}), key: [chosen]}}
    run = run_recipe(recipe, "train_iters=3")
    for name, tensor in run.trainer.model_unwrapped.named_parameters():
        moved = not torch.equal(tensor.detach(), before[name])
        assert moved == ((name == chosen) == (key == "train_only")), name


def test_freezing_everything_or_nothing_is_refused(run_recipe, tiny_recipe):
    with pytest.raises(RecipeError, match=r"model\.freeze: leaves no parameter to train"):
        run_recipe(tiny_recipe | {"model": {"freeze": ["*"]}})
    with pytest.raises(RecipeError, match="fits no parameter"):
        run_recipe(tiny_recipe | {"model": {"freeze": ["no.such.layer"]}})
    with pytest.raises(RecipeError, match="contradicts freeze"):
        run_recipe(tiny_recipe | {"model": {"freeze": ["*"], "train_only": ["*"]}})


KEEP = {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 2}


def test_the_rate_that_is_reported_is_the_recipes(run_recipe, grouped):
    recipe = grouped({"match": "*", "learning_rate": 4e-3}) | {"scheduler": {"type": "constant"}, "train_iters": 2}
    assert figures(run_recipe(recipe), "learning_rate") == pytest.approx([1e-2] * 2, rel=1e-15)


@pytest.mark.parametrize(("scales", "expected"), [((1.0, 3.0), 1e-2), ((3.0,), 1e-2), ((0.0, 2.0), 1e-2), ((0.0,), 0)])
def test_the_base_rate_is_found_whatever_the_groups_have(scales, expected):
    groups = [{"lr": 1e-2 * scale, RATE_SCALE: scale} for scale in scales]
    assert base_learning_rate(SimpleNamespace(param_groups=groups)) == pytest.approx(expected)


def test_a_group_that_groups_before_it_leave_nothing_is_refused(run_recipe, grouped):
    recipe = grouped({"match": "*", "learning_rate": 1}, {"match": ["out*"], "learning_rate": 2})
    with pytest.raises(RecipeError, match=r"groups\.1\.match: fits only parameters that groups before it have"):
        run_recipe(recipe)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_frozen_parameters_and_groups_go_on_exactly(run_recipe, plugin_manager, grouped, dtype):
    plugin_manager.register(KeepsWeights(), "keeps weights")
    recipe = grouped({"match": "hidden.*", "learning_rate_scale": 0.3, "weight_decay": 0.01})
    recipe |= {"model": {"freeze": ["embedding.*"], "dtype": dtype}, "train_iters": 4, "engine": {"type": "torch"}}
    whole = run_recipe(recipe)
    run_recipe(recipe | {"checkpoint": KEEP, "exit_iteration_this_run": 2})
    assert not differing(last_weights(whole), last_weights(run_recipe(recipe | {"checkpoint": KEEP})))


def test_state_finds_its_parameters_when_the_groups_are_others_than_before(run_recipe, plugin_manager, grouped):
    """The same rates and decays, written with other groups: torch numbers parameters, and would mix them up."""
    plugin_manager.register(KeepsWeights(), "keeps weights")
    one = grouped({"match": "*", "weight_decay": 0.0}) | {"engine": {"type": "torch"}, "train_iters": 4}
    two = grouped({"match": "output.*", "weight_decay": 0.0}, {"match": "*", "weight_decay": 0.0})
    whole = run_recipe(one)
    run_recipe(one | {"checkpoint": KEEP, "exit_iteration_this_run": 2})
    second = run_recipe(one | {"optimizer": two["optimizer"], "checkpoint": KEEP})
    assert second.first_step == 2
    assert not differing(last_weights(whole), last_weights(second))


def test_other_frozen_parameters_than_before_are_refused(run_recipe, grouped):
    recipe = grouped() | {"train_iters": 4}
    run_recipe(recipe | {"checkpoint": KEEP, "exit_iteration_this_run": 2})
    with pytest.raises(CheckpointError, match="trains other parameters than this run: output"):
        run_recipe(recipe | {"checkpoint": KEEP, "model": {"freeze": ["output.*"]}})
