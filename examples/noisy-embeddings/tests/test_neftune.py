"""The plugin through whole runs of the tiny components, which need neither network nor transformers.

Run with the plugin installed: pip install -e '.[test]' && pytest
"""

from pathlib import Path

import pytest

from arctic_neftune.noise import noisy
from arctic_training.errors import RecipeError

pytestmark = pytest.mark.usefixtures("arctic_home")

RECIPE = Path(__file__).parents[1] / "recipe.yaml"


def losses(run, kind="train"):
    return [record["loss"] for record in run.metrics if record["kind"] == kind]


@pytest.fixture
def recipe(tiny_recipe):
    tiny_recipe["data"]["eval_sources"] = [{"type": "tiny"}]
    return tiny_recipe | {"train_iters": 4, "eval_interval": 4, "evaluate_at_start": True}


@pytest.mark.parametrize(("length", "width"), [(10, 16), (40, 16), (10, 64)])
def test_the_noise_is_uniform_with_the_magnitude_of_the_paper(length, width):
    import torch

    torch.manual_seed(0)
    noise = noisy(torch.zeros(50, length, width), alpha=5.0)
    bound = 5.0 / (length * width) ** 0.5
    assert 0.99 * bound < noise.abs().max().item() <= bound
    assert noise.mean().abs().item() < 0.02 * bound
    assert noise.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_training_has_the_noise_and_evaluation_does_not(run_recipe, recipe):
    plain, noise = run_recipe(recipe), run_recipe(recipe | {"neftune": {"alpha": 5}})
    assert losses(noise)[0] != losses(plain)[0]
    assert losses(noise, "eval")[0] == losses(plain, "eval")[0]  # of the fresh model


def test_without_alpha_nothing_changes(run_recipe, recipe, plugin_manager):
    ours = run_recipe(recipe)
    plugin_manager.load_recipe_plugins({"block": ["neftune"]})
    assert losses(ours) == losses(run_recipe(recipe))


def test_the_noise_is_seeded(run_recipe, recipe):
    recipe |= {"neftune": {"alpha": 5}}
    assert losses(run_recipe(recipe)) == losses(run_recipe(recipe))


def test_a_resumed_run_draws_the_noise_that_the_whole_one_drew(run_recipe, recipe):
    recipe |= {"neftune": {"alpha": 5}}
    keep = {"checkpoint": {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 2}}
    whole = run_recipe(recipe)
    first = run_recipe(recipe | keep | {"exit_iteration_this_run": 2})
    second = run_recipe(recipe | keep)
    assert losses(first) + losses(second) == losses(whole)


def test_a_misspelt_key_is_refused(run_recipe, recipe):
    with pytest.raises(RecipeError, match=r"neftune\.alfa: unknown key; did you mean 'alpha'"):
        run_recipe(recipe | {"neftune": {"alfa": 5}})


def test_the_recipe_of_this_folder_trains_a_model_of_transformers(run_recipe):
    pytest.importorskip("arctic_sft")
    run = run_recipe(RECIPE, "train_iters=4", "eval_interval=4", "plugins.require=[]", "checkpoint=[]")
    assert losses(run)[3] < losses(run)[0]
