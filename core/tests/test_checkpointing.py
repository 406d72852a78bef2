"""Checkpoints of the core's own kind: complete or not there, and training goes on from them exactly."""

import json
from pathlib import Path

import pytest

from arctic_training import hookimpl
from arctic_training.checkpoint import CheckpointEngine, EngineCheckpoint
from arctic_training.errors import CheckpointError
from arctic_training.manifest import newest_checkpoint, verify

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


def test_a_process_that_ends_early_saves_what_the_next_one_goes_on_from(run_recipe, recipe):
    seldom = recipe | {"checkpoint": {"output_dir": "out", "auto_resume": True, "save_every_n_steps": 100}}
    runs = [run_recipe(seldom | {"exit_iteration_this_run": 4}) for _ in range(2)]
    assert [run.first_step for run in runs] == [0, 4]
    assert losses(*runs) == {
        step: loss for step, loss in losses(run_recipe(recipe | {"checkpoint": []})).items() if step <= 8
    }


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


def test_a_checkpoint_behind_the_end_of_the_recipe_is_told(run_recipe, recipe, capsys):
    run_recipe(recipe | {"train_iters": 6})
    run_recipe(recipe | {"train_iters": 6})
    behind = "warning: checkpoint: it was written after step 6, and the recipe ends after step 4"
    assert "warning: checkpoint" not in capsys.readouterr().err
    run_recipe(recipe | {"train_iters": 4})
    assert behind in capsys.readouterr().err


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


def test_training_that_starts_anew_because_no_checkpoint_is_whole_says_so(run_recipe, recipe, arctic_home, capsys):
    run_recipe(recipe | {"exit_iteration_this_run": 6})
    assert "starts anew" not in capsys.readouterr().err
    for file in (arctic_home / "out").glob("*/engine.pt"):
        file.write_bytes(b"short")
    assert run_recipe(recipe | {"exit_iteration_this_run": 1}).first_step == 0
    said = capsys.readouterr().err
    assert said.count("passed over") == 2
    assert f"warning: checkpoint: of 2 checkpoints in {arctic_home / 'out'} none is whole" in said
    assert "training starts anew" in said


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "engine.pt").unlink(), "engine.pt is missing"),
        (lambda path: (path / "engine.pt").write_bytes(b"short"), "its manifest says"),
        (lambda path: (path / "manifest.json").unlink(), "it has no manifest"),
        (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text("[]"), "json is no manifest: it should be an object"),
        (lambda path: (path / "manifest.json").write_text('{"format": 1}'), "json is no manifest: it names no files"),
        (
            lambda path: (path / "manifest.json").write_text('{"format": 1, "files": []}'),
            "json is no manifest: files should be an object",
        ),
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
    with pytest.raises(CheckpointError, match="8 rows in a step, and this run has 16"):
        run_recipe(recipe | {"micro_batch_size": 8})


def test_the_manifest_names_every_file(run_recipe, recipe, arctic_home):
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    path = arctic_home / "out/global_step_3"
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {file.name for file in path.iterdir()} - {"manifest.json"}
    assert (manifest["step"], manifest["world_size"]) == (3, 1)


class Export(CheckpointEngine):
    """Holds the model alone, and cannot be written while ``disk_is_full``."""

    name = "export"
    disk_is_full = False

    def save(self, model):
        if self.disk_is_full:
            raise OSError(28, "No space left on device")
        (self.checkpoint_dir / "model").write_text("weights")

    def load(self, model):
        raise CheckpointError("this holds the model alone")


def test_entries_that_share_a_directory_leave_each_other_alone(run_recipe, recipe, arctic_home, plugin_manager):
    plugin_manager.register_classes([Export], "test")
    export = {"type": "export", "output_dir": "out", "save_every_n_steps": 3}
    for number, entries in enumerate(([recipe["checkpoint"], export], [export, recipe["checkpoint"]])):
        entries = [entry | {"output_dir": f"out-{number}"} for entry in entries]
        run_recipe(recipe | {"checkpoint": entries, "exit_iteration_this_run": 3})
        assert run_recipe(recipe | {"checkpoint": entries, "exit_iteration_this_run": 1}).first_step == 3
        assert len(list((arctic_home / f"out-{number}").rglob("global_step_3"))) == 2


def test_an_export_is_passed_over_for_a_checkpoint_that_resumes(run_recipe, recipe, plugin_manager, capsys):
    plugin_manager.register_classes([Export], "test")
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    export = {"type": "export", "output_dir": "out", "save_every_n_steps": 4}
    run_recipe(recipe | {"checkpoint": export, "exit_iteration_this_run": 4})
    assert run_recipe(recipe | {"exit_iteration_this_run": 1}).first_step == 3
    assert "global_step_4: it holds the model alone" in capsys.readouterr().err


def test_a_last_checkpoint_that_failed_is_written_by_the_next_run(run_recipe, recipe, arctic_home, plugin_manager):
    plugin_manager.register_classes([Export], "test")
    entries = [recipe["checkpoint"], {"type": "export", "output_dir": "model", "save_end_of_training": True}]
    Export.disk_is_full = True
    try:
        with pytest.raises(CheckpointError, match="No space left"):
            run_recipe(recipe | {"checkpoint": entries})
    finally:
        Export.disk_is_full = False
    run = run_recipe(recipe | {"checkpoint": entries})
    assert run.first_step == run.trainer.global_step == 16
    assert verify(arctic_home / "model/global_step_16") is None


def test_whatever_a_rank_raises_while_it_saves_is_a_vote(run_recipe, recipe, arctic_home, plugin_manager):
    class Unspeakable:
        @hookimpl
        def arctic_checkpoint_state(self, trainer):
            return {"thing": object()}

    plugin_manager.register(Unspeakable(), "unspeakable")
    with pytest.raises(CheckpointError, match="rank 0 could not write the checkpoint: TypeError: Object of type"):
        run_recipe(recipe)
    assert list((arctic_home / "out").iterdir()) == []


def test_fewer_rows_than_the_position_go_on_with_the_next_epoch(run_recipe, recipe, capsys):
    run_recipe(recipe | {"exit_iteration_this_run": 6})
    recipe["data"]["sources"] = [{"type": "tiny", "texts": ["abc def"] * 24}]
    run = run_recipe(recipe | {"train_iters": 9})
    assert (run.first_step, run.trainer.global_step) == (6, 9)
    assert "going on with the next epoch" in capsys.readouterr().err


def test_rubble_of_a_replaced_checkpoint_does_not_stop_the_next_save(run_recipe, recipe, arctic_home):
    recipe["checkpoint"]["auto_resume"] = False
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    rubble = arctic_home / "out/global_step_3.replaced"
    rubble.mkdir()
    (rubble / "engine.pt").write_text("old")
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    assert [path.name for path in (arctic_home / "out").iterdir()] == ["global_step_3"]


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_training(
    run_recipe, recipe, arctic_home, monkeypatch, capsys
):
    import shutil

    remove = shutil.rmtree

    def refuse(path, *arguments, ignore_errors=False, **options):
        if path.name.startswith("global_step_3"):
            if ignore_errors:
                return
            raise OSError(16, "Device or resource busy")
        remove(path, *arguments, ignore_errors=ignore_errors, **options)

    monkeypatch.setattr("arctic_training.retention.shutil.rmtree", refuse)
    recipe["checkpoint"]["keep_last"] = 1
    run = run_recipe(recipe)
    assert run.trainer.global_step == 16
    assert {path.name for path in (arctic_home / "out").iterdir()} == {"global_step_3.removed", "global_step_16"}
    assert "could not be removed" in capsys.readouterr().err


def test_a_plugin_that_saves_leaves_out_what_is_not_enabled(run_recipe, recipe, plugin_manager, arctic_home):
    class AtTheEnd:
        @hookimpl
        def arctic_epoch_end(self, epoch, trainer):
            trainer.checkpoint()

    plugin_manager.register(AtTheEnd(), "at the end")
    run_recipe(recipe | {"checkpoint": {"output_dir": "out", "enabled": False}})
    assert not (arctic_home / "out").exists()


def test_training_goes_on_without_the_master_weights_it_had(run_recipe, recipe):
    recipe["model"]["dtype"] = "bf16"
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    run = run_recipe(recipe | {"engine": {"type": "torch", "master_weights": False}})
    assert run.first_step == 3
    assert "master weights True -> False" in (run.run_dir / "logs/rank-0.log").read_text()


def rates(run):
    return [record["learning_rate"] for record in run.metrics if record["kind"] == "train"]


def test_a_longer_schedule_and_another_rate_hold_from_the_first_step_of_a_resume(run_recipe, recipe, plugin_manager):
    import torch

    from arctic_training.scheduler import SchedulerFactory

    class Falling(SchedulerFactory):
        name = "falling"

        def create_scheduler(self, optimizer):
            horizon = self.training_horizon
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / horizon)

    plugin_manager.register_classes([Falling], "test")
    recipe["scheduler"] = {"type": "falling"}
    run_recipe(recipe | {"train_iters": 3})
    recipe["optimizer"] = recipe["optimizer"] | {"learning_rate": 2e-2}
    assert rates(run_recipe(recipe | {"train_iters": 6})) == pytest.approx([2e-2 * (1 - k / 6) for k in (3, 4, 5)])


def test_a_directory_that_cannot_be_written_is_told_before_the_first_step(
    run_recipe, recipe, arctic_home, hook_recorder
):
    (arctic_home / "out").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written there"):
        run_recipe(recipe)
    assert "arctic_step_start" not in hook_recorder.names


def test_files_that_a_plugin_writes_into_a_checkpoint_are_vouched_for(run_recipe, recipe, plugin_manager, arctic_home):
    class Writer:
        @hookimpl
        def arctic_write_checkpoint(self, path, engine, trainer):
            assert engine.resumes
            (Path(path) / "notes").mkdir()
            (Path(path) / "notes" / "a.txt").write_text(f"step {trainer.global_step}")

    plugin_manager.register(Writer(), "writer")
    run_recipe(recipe | {"exit_iteration_this_run": 3})
    file = arctic_home / "out/global_step_3/notes/a.txt"
    assert file.read_text() == "step 3"
    file.write_text("step 4")
    assert verify(file.parent.parent) == "notes/a.txt is not what was written"


def test_a_plugin_that_cannot_write_ends_the_save(run_recipe, recipe, plugin_manager, arctic_home):
    class Writer:
        @hookimpl
        def arctic_write_checkpoint(self, path, engine, trainer):
            raise OSError("no space left")

    plugin_manager.register(Writer(), "writer")
    with pytest.raises(CheckpointError, match="no space left"):
        run_recipe(recipe)
    assert list((arctic_home / "out").iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_is_read_out_of_a_checkpoint_without_a_run(run_recipe, recipe, arctic_home, precision):
    recipe["model"] = {"dtype": precision}
    run = run_recipe(recipe | {"exit_iteration_this_run": 3})
    read = dict(EngineCheckpoint.read_model(arctic_home / "out/global_step_3"))
    state = run.trainer.model_unwrapped.state_dict()
    assert list(read) == list(state)
    assert all(tensor.equal(state[name]) and tensor.dtype == state[name].dtype for name, tensor in read.items())


def test_a_kind_whose_model_cannot_be_read_says_so(tmp_path):
    class Secretive(EngineCheckpoint):
        name = "secretive"
        read_model = classmethod(CheckpointEngine.read_model.__func__)

    with pytest.raises(CheckpointError, match="cannot be taken out of a secretive checkpoint"):
        Secretive.read_model(tmp_path)


def test_a_training_whose_end_is_not_saved_is_told_before_the_first_step(run_recipe, tiny_recipe, capsys):
    recipe = tiny_recipe | {"train_iters": 5}
    run_recipe(recipe | {"checkpoint": {"output_dir": "out", "save_every_n_steps": 2}})
    assert "what training ends with is not saved" in capsys.readouterr().err
    run_recipe(recipe | {"checkpoint": {"output_dir": "other", "save_every_n_steps": 5}})
    assert "is not saved" not in capsys.readouterr().err
