"""Checkpoints of the core's own kind: complete or not there, and training goes on from them exactly."""

import json

import pytest

from arctic_training import hookimpl
from arctic_training.checkpointing import newest_checkpoint, verify
from arctic_training.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("arctic_home")


@pytest.fixture
def recipe(tiny_recipe):
    tiny_recipe["model"] = {"dtype": "fp32", "dropout": 0.2}
    return tiny_recipe | {
        "epochs": 2,
        "gradient_accumulation_steps": 2,
        "checkpoint": {"output_dir": "out", "auto_resume": True, "save_every_n_steps": 3, "save_end_of_training": True},
    }


def losses(*runs):
    return {r["step"]: r["loss"] for run in runs for r in run.metrics if r["kind"] == "train"}


def test_training_goes_on_exactly_where_it_stopped(run_recipe, recipe):
    whole = run_recipe(recipe | {"checkpoint": []})
    first = run_recipe(recipe | {"exit_iteration_this_run": 9})
    second = run_recipe(recipe)
    assert second.first_step == 9
    assert losses(first, second) == losses(whole)
    ours, theirs = (run.trainer.model_unwrapped.state_dict() for run in (second, whole))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_bf16_goes_on_exactly_too(run_recipe, recipe):
    recipe["model"] = {"dtype": "bf16", "dropout": 0.2}
    whole = run_recipe(recipe | {"checkpoint": []})
    parts = [run_recipe(recipe | {"exit_iteration_this_run": 6}), run_recipe(recipe)]
    assert losses(*parts) == losses(whole)


def test_a_finished_run_resumed_does_nothing(run_recipe, recipe, arctic_home):
    run_recipe(recipe)
    before = {path: path.stat().st_mtime_ns for path in (arctic_home / "out").rglob("*")}
    run = run_recipe(recipe)
    assert losses(run) == {}
    assert {path: path.stat().st_mtime_ns for path in (arctic_home / "out").rglob("*")} == before


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run_recipe, recipe, arctic_home, capsys):
    run_recipe(recipe | {"exit_iteration_this_run": 6})
    file = arctic_home / "out/global_step_6/engine.pt"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert verify(file.parent) == "engine.pt is not what was written"
    run = run_recipe(recipe)
    assert run.first_step == 3
    assert "passed over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "engine.pt").unlink(), "engine.pt is missing"),
        (lambda path: (path / "engine.pt").write_bytes(b"short"), "its manifest says"),
        (lambda path: (path / "manifest.json").unlink(), "it has no manifest"),
        (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_verification_names_what_is_wrong(run_recipe, recipe, arctic_home, damage, said):
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    path = arctic_home / "out/global_step_3"
    assert verify(path) is None
    damage(path)
    assert said in verify(path)


def test_a_save_that_fails_leaves_earlier_checkpoints_and_no_rubble(run_recipe, recipe, arctic_home, plugin_manager):
    from arctic_training.checkpoint import EngineCheckpoint

    class FailsOnSix(EngineCheckpoint):
        name = "fails_on_six"

        def save(self, model):
            super().save(model)
            if self.trainer.global_step == 6:
                raise OSError(28, "No space left on device")

    plugin_manager.register_classes([FailsOnSix], "test")
    recipe["checkpoint"]["type"] = "fails_on_six"
    with pytest.raises(CheckpointError, match="No space left") as caught:
        run_recipe(recipe)
    assert caught.value.exit_code == 5
    assert [path.name for path in (arctic_home / "out").iterdir()] == ["global_step_3"]
    assert newest_checkpoint(arctic_home / "out")[0].name == "global_step_3"


def test_only_the_last_checkpoints_are_kept(run_recipe, recipe, arctic_home):
    recipe["checkpoint"]["keep_last"] = 2
    run_recipe(recipe)
    assert {path.name for path in (arctic_home / "out").iterdir()} == {"global_step_15", "global_step_16"}


def test_saving_by_epochs_and_at_the_end(run_recipe, recipe, arctic_home):
    recipe["checkpoint"] = [
        {"output_dir": "epochs", "save_every_n_epochs": 1},
        {"output_dir": "end", "save_end_of_training": True},
        {"output_dir": "off", "save_every_n_steps": 1, "enabled": False},
    ]
    run_recipe(recipe)
    assert {path.name for path in (arctic_home / "epochs").iterdir()} == {"global_step_8", "global_step_16"}
    assert {path.name for path in (arctic_home / "end").iterdir()} == {"global_step_16"}
    assert not (arctic_home / "off").exists()


def test_plugins_keep_state_of_their_own(run_recipe, recipe, plugin_manager):
    class Counter:
        seen = None

        @hookimpl
        def arctic_checkpoint_state(self, trainer):
            return {"count": trainer.global_step * 10}

        @hookimpl
        def arctic_after_load(self, path, state, trainer):
            self.seen = state

    counter = Counter()
    plugin_manager.register(counter, "counter")
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    run_recipe(recipe)
    assert counter.seen == {"counter": {"count": 30}}


def test_a_plugin_decides_when_to_save(run_recipe, recipe, plugin_manager, arctic_home):
    class OnlyAtFive:
        @hookimpl
        def arctic_should_checkpoint(self, step, trainer):
            return step == 5

    plugin_manager.register(OnlyAtFive(), "only at five")
    recipe["checkpoint"]["save_end_of_training"] = False
    run_recipe(recipe)
    assert [path.name for path in (arctic_home / "out").iterdir()] == ["global_step_5"]


def test_another_model_is_refused_with_the_place(run_recipe, recipe):
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    recipe["model"]["hidden_size"] = 8
    with pytest.raises(CheckpointError, match="does not fit this model"):
        run_recipe(recipe)


def test_another_number_of_rows_a_step_is_refused(run_recipe, recipe):
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    with pytest.raises(CheckpointError, match="global batch size 8, this run has 16"):
        run_recipe(recipe | {"micro_batch_size": 8})


def test_the_manifest_names_every_file(run_recipe, recipe, arctic_home):
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    path = arctic_home / "out/global_step_3"
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {file.name for file in path.iterdir()} - {"manifest.json"}
    assert (manifest["step"], manifest["world_size"]) == (3, 1)
