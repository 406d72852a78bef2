"""The plugin offers what it says, costs nothing until it is used, and refuses what it cannot run, in words."""

import subprocess
import sys

import pytest

from arctic_training.errors import RecipeError, UsageError

OFFERS = [
    ("engine", "deepspeed"),
    ("checkpoint", "deepspeed"),
    ("optimizer", "fused_adam"),
    ("optimizer", "cpu_adam"),
    ("launcher", "deepspeed"),
]


@pytest.mark.parametrize(("kind", "name"), OFFERS)
def test_each_component_is_found_by_its_name(plugin_manager, kind, name):
    found = plugin_manager.registry.get(kind, name)
    assert found.kind == kind
    assert found.name == name
    assert plugin_manager.registry.provider(kind, name).distribution == "arctic-plugin-deepspeed"


def test_loading_the_plugin_imports_nothing_heavy():
    code = (
        "import sys; import arctic_deepspeed.plugin, arctic_deepspeed.engine, arctic_deepspeed.optimizer,"
        " arctic_deepspeed.checkpoint, arctic_deepspeed.launcher, arctic_deepspeed.partitioned;"
        "print({'torch', 'deepspeed', 'transformers', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def deepspeed_recipe(tiny_recipe, section, **keys):
    return tiny_recipe | {"engine": {"type": "deepspeed"}, "deepspeed": section, **keys}


def test_a_contradiction_with_the_recipe_is_told_with_its_line(run_recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "type: tiny\nmodel: {dtype: fp32}\ndata: {sources: [{type: tiny}]}\noptimizer: {type: adamw}\n"
        "scheduler: {type: constant}\nengine: {type: deepspeed}\nmicro_batch_size: 4\n"
        "deepspeed:\n  zero_optimization: {stage: 1}\n  train_batch_size: 5\n"
    )
    with pytest.raises(RecipeError, match=r"recipe.yaml:10:3: deepspeed.train_batch_size: is 5, and .* is 4"):
        run_recipe(path)


def test_what_deepspeed_refuses_is_said_in_one_error(run_recipe, tiny_recipe):
    section = {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}, "fp16": {"loss_scale": -1}}
    with pytest.raises(UsageError, match="DeepSpeed refuses this configuration"):
        run_recipe(deepspeed_recipe(tiny_recipe, section))


def test_a_deepspeed_checkpoint_needs_the_deepspeed_engine(run_recipe, tiny_recipe):
    keep = {"type": "deepspeed", "output_dir": "kept", "save_end_of_training": True}
    with pytest.raises(Exception, match="holds the state of the deepspeed engine, and this run has the torch engine"):
        run_recipe(tiny_recipe | {"train_iters": 1, "checkpoint": keep})
