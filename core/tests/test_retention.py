"""Which checkpoints stay, when they are written, and that there is space for them."""

from __future__ import annotations

import json

import pytest

from arctic_training.checkpoint import CheckpointConfig
from arctic_training.errors import CheckpointError, RecipeError
from arctic_training.hookspecs import hookimpl
from arctic_training.manifest import verify
from arctic_training.retention import metric_of, steps_to_keep

VALUES = {1: 5.0, 2: 3.0, 3: None, 4: 4.0, 5: 6.0, 6: 3.5}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {1, 2, 3, 4, 5, 6}),
        ({"keep_last": 2}, {5, 6}),
        ({"keep_best": 1}, {2, 6}),
        ({"keep_best": 2, "keep_last": 2}, {2, 5, 6}),
        ({"keep_best": 1, "best_is": "highest"}, {5, 6}),
        ({"keep_every": 2, "keep_last": 1}, {2, 4, 6}),
        ({"keep_every": 3}, {3, 6}),
        ({"keep_best": 9}, {1, 2, 4, 5, 6}),
    ],
)
def test_the_newest_the_best_and_those_of_every_nth_step_stay(keys, expected):
    assert steps_to_keep(VALUES, CheckpointConfig(output_dir="out", **keys)) == expected


@pytest.fixture
def recipe(tiny_recipe):
    data = tiny_recipe["data"] | {"eval_sources": tiny_recipe["data"]["sources"]}
    checkpoint = {"output_dir": "kept", "save_every_n_steps": 1}
    return tiny_recipe | {"train_iters": 5, "data": data, "eval_interval": 2, "checkpoint": checkpoint}


def test_the_best_by_evaluation_stays_with_the_newest(run_recipe, recipe, arctic_home):
    recipe["checkpoint"] |= {"keep_best": 1}
    rising = recipe | {"optimizer": {"type": "adamw", "learning_rate": 1.0}}  # so that the first is the best
    run = run_recipe(rising)
    losses = {line["step"]: line["loss"] for line in run.metrics if line["kind"] == "eval"}
    assert set(losses) == {1, 2, 3, 4, 5}  # before each save, beside eval_interval
    best = min(losses, key=losses.get)
    assert {path.name for path in (arctic_home / "kept").iterdir()} == {f"global_step_{best}", "global_step_5"}
    assert metric_of(arctic_home / f"kept/global_step_{best}", "loss") == losses[best]
    assert metric_of(arctic_home / f"kept/global_step_{best}", "eval/loss") == losses[best]
    assert metric_of(arctic_home / f"kept/global_step_{best}", "other/loss") is None


@pytest.mark.parametrize("metric", ["rewards/accuracy", "eval/rewards/accuracy"])
def test_a_figure_whose_name_has_a_slash_decides(run_recipe, plugin_manager, recipe, arctic_home, metric):
    class Measures:
        @hookimpl(wrapper=True)
        def arctic_compute_loss(self, batch, trainer):
            loss = yield
            return loss.with_figures({"rewards/accuracy": (trainer.state.step == 2, 1)})

    plugin_manager.register(Measures(), "measures")
    recipe["checkpoint"] |= {"keep_best": 1, "best_metric": metric, "best_is": "highest"}
    run_recipe(recipe)
    assert {path.name for path in (arctic_home / "kept").iterdir()} == {"global_step_2", "global_step_5"}


def test_a_figure_that_nothing_measures_is_refused_by_the_first_evaluation(run_recipe, recipe, arctic_home):
    recipe["checkpoint"] |= {"keep_best": 1, "best_metric": "los"}
    with pytest.raises(RecipeError, match=r"best_metric: no evaluation measures 'los'; did you mean 'loss'"):
        run_recipe(recipe)
    assert not [path.name for path in (arctic_home / "kept").glob("global_step_*")]


def test_of_several_sets_a_figure_is_named_with_its_set(run_recipe, recipe, arctic_home):
    [source] = recipe["data"]["eval_sources"]
    recipe["data"]["eval_sources"] = [source | {"name": "a"}, source | {"name": "b"}]
    recipe["checkpoint"] |= {"keep_best": 1}
    with pytest.raises(RecipeError, match=r"no evaluation measures 'loss'; did you mean '[ab]/loss'"):
        run_recipe(recipe)
    recipe["checkpoint"] |= {"best_metric": "b/loss"}
    run = run_recipe(recipe)
    losses = {line["step"]: line["loss"] for line in run.metrics if line["kind"] == "eval" and line["name"] == "b"}
    best = min(losses, key=losses.get)
    assert {path.name for path in (arctic_home / "kept").iterdir()} == {f"global_step_{best}", "global_step_5"}


@pytest.mark.parametrize("text", ["[]", "{", '"manifest"'])
def test_a_manifest_that_is_none_tells_no_figure(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert metric_of(tmp_path, "loss") is None


def test_keeping_the_best_needs_something_to_evaluate_on(run_recipe, tiny_recipe):
    with pytest.raises(Exception, match=r"checkpoint\.0\.keep_best.*needs evaluation data"):
        run_recipe(tiny_recipe | {"checkpoint": [{"output_dir": "kept", "keep_best": 1}]})


def test_an_old_checkpoint_stays_when_the_new_one_cannot_be_read_back(run_recipe, plugin_manager, recipe, arctic_home):
    class Spoils:
        @hookimpl
        def arctic_after_save(self, path, step, trainer):
            if step == 2:
                file = arctic_home / "kept/global_step_2/engine.pt"
                file.write_bytes(file.read_bytes()[:-1])

    plugin_manager.register(Spoils(), "spoils")
    recipe["checkpoint"] |= {"keep_last": 1}
    with pytest.raises(CheckpointError, match=r"just written is damaged: engine\.pt has"):
        run_recipe(recipe)
    assert verify(arctic_home / "kept/global_step_1") is None


def test_a_checkpoint_that_was_being_removed_when_a_process_ended_goes_with_the_next(run_recipe, recipe, arctic_home):
    left = arctic_home / "kept/global_step_9.removed"
    left.mkdir(parents=True)
    (left / "engine.pt").touch()
    recipe["checkpoint"] |= {"keep_last": 1}
    run_recipe(recipe)
    assert [path.name for path in (arctic_home / "kept").iterdir()] == ["global_step_5"]


def test_a_checkpoint_is_written_when_its_minutes_are_over(run_recipe, plugin_manager, recipe, arctic_home):
    class Clock:
        @hookimpl
        def arctic_step_start(self, step, batch, trainer):
            if step == 3:  # as if it had been longer ago
                saved_at = trainer.run.saved_at
                for engine in saved_at:
                    saved_at[engine] -= 120

    plugin_manager.register(Clock(), "clock")
    recipe["checkpoint"] = {"output_dir": "kept", "save_every_n_minutes": 2}
    run_recipe(recipe)
    assert [path.name for path in (arctic_home / "kept").iterdir()] == ["global_step_3"]


def test_a_disk_without_space_for_the_weights_is_told_before_the_first_step(
    run_recipe, recipe, arctic_home, monkeypatch
):
    import shutil

    usage = shutil.disk_usage(arctic_home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"takes about 144\.\d kB, and 1\.0 kB are free"):
        run_recipe(recipe)
    assert not list((arctic_home / "kept").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    run = run_recipe(recipe)
    assert "and 100.0 kB are free" in (run.run_dir / "logs/rank-0.log").read_text()
    assert json.loads((arctic_home / "kept/global_step_5/manifest.json").read_text())["step"] == 5
