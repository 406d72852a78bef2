"""A checkpoint of any engine and stage is continued by any other: the weights are those of a run that never changed."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest

from arctic_training import hookimpl
from arctic_training.errors import CheckpointError, RecipeError, UsageError
from arctic_training.manifest import verify
from arctic_training.optimizer import OptimizerConfig, OptimizerFactory
from arctic_training.testing.contracts.common import KeepsWeights, figures, last_weights

ENGINES = ["torch", 0, 1, 2, 3]
LONG = (pytest.mark.slow, pytest.mark.long)


@pytest.fixture(autouse=True)
def keeps_weights(arctic_home, plugin_manager):
    plugin_manager.register(KeepsWeights(), "keeps weights")


def pairs():
    """Each engine before and each after once; every pair of them where time does not matter."""
    rest = itertools.product(ENGINES, ENGINES)
    ring = list(zip(ENGINES, [*ENGINES[2:], *ENGINES[:2]], strict=True))
    return [*ring, *(pytest.param(*pair, marks=LONG) for pair in rest if pair not in ring)]


def on(recipe, engine, **keys):
    """The recipe on an engine: torch, or DeepSpeed with a ZeRO stage."""
    if engine == "torch":
        return recipe | {"engine": {"type": "torch"}, "deepspeed": {}} | keys
    return recipe | {"engine": {"type": "deepspeed"}, "deepspeed": {"zero_optimization": {"stage": engine}}} | keys


@pytest.fixture
def recipe(tiny_recipe):
    checkpoint = {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 3}
    return tiny_recipe | {"train_iters": 6, "checkpoint": checkpoint}


@pytest.mark.parametrize(("before", "after"), pairs())
def test_training_goes_on_in_another_engine_or_stage(run_recipe, recipe, before, after):
    whole = run_recipe(on(recipe, "torch", checkpoint=[]))
    run_recipe(on(recipe, before, exit_iteration_this_run=3))
    moved = run_recipe(on(recipe, after))
    assert moved.first_step == 3
    for figure in ("loss", "grad_norm", "learning_rate"):
        assert figures(moved, figure)[-3:] == pytest.approx(figures(whole, figure)[3:], rel=1e-5)
    for name, tensor in last_weights(whole).items():
        assert last_weights(moved)[name].sub(tensor).abs().max() < 1e-5, name


@pytest.mark.parametrize(("before", "after"), [("torch", 2), (2, "torch"), (0, 3), (3, 0), (1, 0)])
def test_master_weights_of_a_16_bit_model_are_taken_over(run_recipe, recipe, before, after):
    recipe["model"] = {"dtype": "bf16"}
    whole = run_recipe(on(recipe, after, checkpoint=[]))
    run_recipe(on(recipe, before, exit_iteration_this_run=3))
    moved = run_recipe(on(recipe, after))
    assert figures(moved, "loss")[-3:] == pytest.approx(figures(whole, "loss")[3:], rel=1e-2)


def test_a_model_may_go_on_in_another_precision(run_recipe, recipe):
    run_recipe(on(recipe, "torch", exit_iteration_this_run=3))
    moved = run_recipe(on(recipe, 2, model={"dtype": "bf16"}))
    assert moved.first_step == 3
    assert "precision fp32 -> bf16" in (moved.run_dir / "logs/rank-0.log").read_text()


def test_another_number_of_rows_in_a_step_has_to_be_asked_for(run_recipe, recipe):
    run_recipe(on(recipe, 2, exit_iteration_this_run=3))
    with pytest.raises(CheckpointError, match="written with 4 rows in a step, and this run has 8"):
        run_recipe(on(recipe, 2, micro_batch_size=8))
    recipe["checkpoint"] |= {"allow_other_batch": True}
    assert run_recipe(on(recipe, 2, micro_batch_size=8)).first_step == 3


def test_a_checkpoint_from_before_parameters_had_names_is_refused(run_recipe, recipe, arctic_home):
    import torch

    run_recipe(on(recipe, "torch", exit_iteration_this_run=3))
    path = arctic_home / "kept/global_step_3"
    state = torch.load(path / "engine.pt", weights_only=True)
    del state["parameter_names"]
    torch.save(state, path / "engine.pt")
    content = (path / "engine.pt").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["engine.pt"] = [len(content), hashlib.sha256(content).hexdigest()]
    del manifest["sha256"]
    manifest["format"] = 1
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert verify(path) is None
    with pytest.raises(CheckpointError, match="cannot be read for another engine"):
        run_recipe(on(recipe, 2))


def test_a_kind_of_checkpoint_that_another_engine_writes_is_refused_before_anything_is_built(run_recipe, recipe):
    recipe["checkpoint"] = {"type": "deepspeed", "output_dir": "kept", "save_every_n_steps": 2}
    with pytest.raises(RecipeError, match=r"checkpoint\.0\.type: deepspeed holds the state of the deepspeed engine"):
        run_recipe(on(recipe, "torch"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_parameters_in_groups_and_frozen_ones_train_as_on_the_torch_engine_and_go_on_exactly(run_recipe, recipe, stage):
    names = list(last_weights(run_recipe(on(recipe, "torch", checkpoint=[]), "train_iters=1")))
    recipe |= {
        "model": {**recipe["model"], "freeze": [names[0]]},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2, "groups": [{"match": [names[1]], "learning_rate": 1e-3}]},
    }
    whole = run_recipe(on(recipe, "torch", checkpoint=[]))
    other = run_recipe(on(recipe, stage, checkpoint=[]))
    assert figures(other, "loss") == pytest.approx(figures(whole, "loss"), rel=1e-5)
    run_recipe(on(recipe, stage, exit_iteration_this_run=3))
    resumed = run_recipe(on(recipe, stage))
    assert resumed.first_step == 3
    assert figures(resumed, "loss") == figures(other, "loss")[3:]
    for name, tensor in last_weights(whole).items():
        assert last_weights(resumed)[name].sub(tensor).abs().max() < 1e-5, name


class WholeMatrices(OptimizerFactory):
    """An optimizer whose steps look at the shapes of matrices."""

    name = "whole"
    config: OptimizerConfig
    needs_whole_parameters = True

    def create_optimizer(self, model):
        import torch

        return torch.optim.SGD(self.parameter_groups(model), lr=self.config.learning_rate)


def test_an_optimizer_of_whole_matrices_is_refused_where_they_are_divided(run_recipe, plugin_manager, recipe):
    class Plugin:
        @hookimpl
        def arctic_register_components(self, components):
            components.optimizer("whole", f"{__name__}:WholeMatrices")

    plugin_manager.register(Plugin(), "whole")
    recipe |= {"optimizer": {"type": "whole", "learning_rate": 1e-2}, "checkpoint": []}
    run_recipe(on(recipe, 0), "train_iters=1")
    with pytest.raises(UsageError, match="'whole' steps whole matrices, which ZeRO stage 2"):
        run_recipe(on(recipe, 2), "train_iters=1")
