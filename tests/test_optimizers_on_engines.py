"""The optimizers plugin on DeepSpeed: what works there is the torch engine's training, and what cannot is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_training.errors import UsageError
from arctic_training.testing.contracts.common import KeepsWeights, differing, figures, last_weights

pytestmark = pytest.mark.slow

WHOLE = ("adafactor", "muon")
WORKS = [(name, 0) for name in (*WHOLE, "schedule_free")] + [("schedule_free", stage) for stage in (1, 2, 3)]


@pytest.fixture
def recipe(tiny_recipe, plugin_manager):
    plugin_manager.register(KeepsWeights(), "keeps weights")
    return tiny_recipe | {"train_iters": 6}


def on(recipe, name, stage, **keys):
    optimizer = {"type": name, "learning_rate": 1e-2} | ({"adamw": ["output.*"]} if name == "muon" else {})
    if stage == "torch":
        return recipe | {"optimizer": optimizer, "engine": {"type": "torch"}} | keys
    engine = {"engine": {"type": "deepspeed"}, "deepspeed": {"zero_optimization": {"stage": stage}}}
    return recipe | {"optimizer": optimizer} | engine | keys


def kept(**keys):
    return {"checkpoint": {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 3}, **keys}


@pytest.mark.parametrize(("name", "stage"), WORKS)
def test_deepspeed_trains_as_torch_does_and_goes_on_exactly(run_recipe, recipe, name, stage):
    evaluating = {"data": recipe["data"] | {"eval_sources": recipe["data"]["sources"]}, "eval_interval": 2}
    theirs = run_recipe(on(recipe, name, "torch", **evaluating))
    whole = run_recipe(on(recipe, name, stage, **evaluating))
    for figure in ("loss", "grad_norm"):
        assert figures(whole, figure) == pytest.approx(figures(theirs, figure), rel=1e-4)
    ours, others = ([line["loss"] for line in run.metrics if line["kind"] == "eval"] for run in (whole, theirs))
    assert ours == pytest.approx(others, rel=1e-4)
    run_recipe(on(recipe, name, stage, **kept(exit_iteration_this_run=3)))
    second = run_recipe(on(recipe, name, stage, **kept()))
    assert second.first_step == 3
    assert figures(second, "loss")[-3:] == figures(whole, "loss")[3:]
    assert not differing(last_weights(second), last_weights(whole))


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("adafactor", "torch", 0),
        ("muon", 0, "torch"),
        ("schedule_free", "torch", 3),
        ("schedule_free", 3, 2),
        ("schedule_free", 2, "torch"),
    ],
)
def test_training_goes_on_in_another_engine_or_stage(run_recipe, recipe, name, before, after):
    whole = run_recipe(on(recipe, name, "torch"))
    run_recipe(on(recipe, name, before, **kept(exit_iteration_this_run=3)))
    moved = run_recipe(on(recipe, name, after, **kept()))
    assert moved.first_step == 3
    assert figures(moved, "loss")[-3:] == pytest.approx(figures(whole, "loss")[3:], rel=1e-4)
    for weight, tensor in last_weights(whole).items():
        assert last_weights(moved)[weight].sub(tensor).abs().max() < 1e-4, weight


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_whole_matrices_is_refused_where_they_are_divided(run_recipe, recipe, hook_recorder, name, stage):
    with pytest.raises(UsageError, match=f"'{name}' steps whole matrices, which ZeRO stage {stage} divides"):
        run_recipe(on(recipe, name, stage))
    assert "arctic_load_data" not in hook_recorder.names


@pytest.mark.parametrize(("name", "warnings"), [("linear", 1), ("constant_with_warmup", 0), ("constant", 0)])
def test_schedule_free_says_where_its_rate_falls_all_the_same(run_recipe, recipe, name, warnings):
    scheduler = {"type": "huggingface", "name": name}
    run = run_recipe(on(recipe | {"train_iters": 1}, "schedule_free", "torch", scheduler=scheduler))
    assert run.log_path.read_text().count(f"needs no falling rate: name constant_with_warmup, not {name}") == warnings


@pytest.mark.parametrize("stage", [2, 3])
def test_schedule_free_in_16_bits_evaluates_the_average_under_zero_too(run_recipe, recipe, stage):
    recipe |= {"model": {"dtype": "bf16"}, "eval_interval": 2}
    recipe |= {"data": recipe["data"] | {"eval_sources": recipe["data"]["sources"]}}
    ours, theirs = (run_recipe(on(recipe, "schedule_free", engine)) for engine in (stage, "torch"))
    evaluated = [[line["loss"] for line in run.metrics if line["kind"] == "eval"] for run in (ours, theirs)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-2)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_read_out_of_a_schedule_free_checkpoint_is_the_average(run_recipe, recipe, stage, dtype):
    """As ``arctic export`` reads it, which knows nothing of optimizers."""
    read = {}
    for engine in ("torch", stage):
        keep = {"output_dir": f"kept-{engine}", "save_end_of_training": True}
        run = run_recipe(on(recipe | {"model": {"dtype": dtype}}, "schedule_free", engine, checkpoint=keep))
        (checkpoint,) = run.trainer.checkpoint_engines
        path = next(Path(f"kept-{engine}").iterdir())
        read[engine] = {name: tensor.float() for name, tensor in type(checkpoint).read_model(path)}
        assert differing(read[engine], {name: tensor.float() for name, tensor in last_weights(run).items()})
    tolerance = 1e-5 if dtype == "fp32" else 1e-2
    for name, tensor in read["torch"].items():
        assert read[stage][name].sub(tensor).abs().max() < tolerance, name
