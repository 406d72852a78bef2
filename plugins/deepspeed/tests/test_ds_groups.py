"""Groups of parameters and frozen ones under every ZeRO stage: the torch engine's training, and resumed everywhere."""

from __future__ import annotations

import pytest

from arctic_training.testing.contracts.common import KeepsWeights, differing, figures, last_weights

pytestmark = pytest.mark.slow

STAGES = [0, 1, 2, 3]


@pytest.fixture(autouse=True)
def keeps_weights(arctic_home, plugin_manager):
    plugin_manager.register(KeepsWeights(), "keeps weights")


@pytest.fixture
def recipe(tiny_recipe):
    groups = [
        {"match": "output.*", "learning_rate": 3e-3},
        {"match": "hidden.weight", "learning_rate_scale": 0.5, "weight_decay": 0.0},
    ]
    optimizer = {"type": "fused_adam", "learning_rate": 1e-2, "groups": groups}
    return tiny_recipe | {
        "optimizer": optimizer,
        "train_iters": 6,
        "model": {"dtype": "fp32", "freeze": ["embedding.*"]},
    }


def on(recipe, stage, **keys):
    if stage == "torch":
        return recipe | {"engine": {"type": "torch"}, "deepspeed": {}} | keys
    return recipe | {"engine": {"type": "deepspeed"}, "deepspeed": {"zero_optimization": {"stage": stage}}} | keys


def kept(**keys):
    return {"checkpoint": {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 3}, **keys}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_as_torch_does_and_goes_on_exactly(run_recipe, recipe, stage):
    theirs, whole = run_recipe(on(recipe, "torch")), run_recipe(on(recipe, stage))
    for figure in ("loss", "grad_norm", "learning_rate"):
        assert figures(whole, figure) == pytest.approx(figures(theirs, figure), rel=1e-5)
    run_recipe(on(recipe, stage, **kept(exit_iteration_this_run=3)))
    second = run_recipe(on(recipe, stage, **kept()))
    assert figures(second, "loss")[-3:] == figures(whole, "loss")[3:]
    assert not differing(last_weights(second), last_weights(whole))


@pytest.mark.parametrize(("before", "after"), [("torch", 2), (2, "torch"), (0, 3), (3, 1), (1, 0)])
def test_frozen_parameters_and_groups_go_on_in_another_engine_or_stage(run_recipe, recipe, before, after):
    whole = run_recipe(on(recipe, "torch"))
    run_recipe(on(recipe, before, **kept(exit_iteration_this_run=3)))
    recipe["seed"] = 7  # another random model, whose frozen weights the checkpoint's replace
    moved = run_recipe(on(recipe, after, **kept()))
    assert moved.first_step == 3
    for name, tensor in last_weights(whole).items():
        assert last_weights(moved)[name].sub(tensor).abs().max() < 1e-5, name


@pytest.mark.parametrize("stage", STAGES)
def test_groups_may_be_others_after_a_resume(run_recipe, recipe, stage):
    whole = run_recipe(on(recipe, stage))
    run_recipe(on(recipe, stage, **kept(exit_iteration_this_run=3)))
    first, second = recipe["optimizer"]["groups"]
    recipe["optimizer"]["groups"] = [first | {"match": "output.weight"}, first, second]
    moved = run_recipe(on(recipe, stage, **kept()))
    assert moved.first_step == 3
    assert figures(moved, "loss")[-3:] == pytest.approx(figures(whole, "loss")[3:], rel=1e-5)
