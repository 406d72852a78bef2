"""Saves in the background: what is written is what was there at the step, whatever training does meanwhile."""

from __future__ import annotations

import threading

import pytest

from arctic_training.errors import CheckpointError, TrainingStopped
from arctic_training.hookspecs import hookimpl
from arctic_training.manifest import verify
from arctic_training.testing.contracts.common import KeepsWeights, differing, figures, last_weights
from arctic_training.writing import Writer, on_host


@pytest.fixture
def recipe(tiny_recipe):
    checkpoint = {"output_dir": "kept", "save_every_n_steps": 2, "background": True, "auto_resume": True}
    return tiny_recipe | {"train_iters": 6, "checkpoint": checkpoint}


class SlowDisk:
    """Holds every writer of a checkpoint back until ``release``, or for a number of steps."""

    def __init__(self, monkeypatch, steps):
        self.gate, self.steps, self.waited_since = threading.Event(), steps, None
        finish = Writer._finish

        def wait(writer):
            self.gate.wait(30)
            finish(writer)

        monkeypatch.setattr(Writer, "_finish", wait)

    @hookimpl
    def arctic_step_end(self, step, metrics, trainer):
        pending = trainer.run.pending
        if pending is None:
            return
        if step >= pending.step + self.steps:
            self.gate.set()
            pending.writer.wait()
            self.gate.clear()


def test_the_file_holds_what_a_save_without_background_writes(run_recipe, recipe, arctic_home):
    import torch

    run_recipe(recipe | {"train_iters": 2})
    plain = recipe["checkpoint"] | {"background": False, "output_dir": "plain"}
    run_recipe(recipe | {"train_iters": 2, "checkpoint": plain})
    ours, theirs = (torch.load(arctic_home / f"{name}/global_step_2/engine.pt") for name in ("kept", "plain"))
    assert flat(ours) == flat(theirs)


def flat(value):
    """Nested containers with lists of numbers in place of tensors."""
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [flat(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def test_training_goes_on_while_it_is_written_and_a_resume_is_exact(
    run_recipe, recipe, plugin_manager, arctic_home, monkeypatch
):
    plugin_manager.register(KeepsWeights(), "keeps weights")
    whole = run_recipe(recipe | {"checkpoint": []})
    with monkeypatch.context() as patch:
        disk = SlowDisk(patch, steps=1)
        plugin_manager.register(disk, "slow disk")
        checkpoint = recipe["checkpoint"] | {"auto_resume": False}
        first = run_recipe(recipe | {"checkpoint": checkpoint, "exit_iteration_this_run": 3, "run_dir": "first"})
        plugin_manager.unregister(disk)
    saved = [line for line in first.metrics if line.get("event") == "checkpoint"]
    assert [line["step"] for line in saved] == [2]
    second = run_recipe(recipe | {"run_dir": "second"})
    assert second.first_step == 2
    assert figures(second, "loss") == figures(whole, "loss")[2:]
    assert not differing(last_weights(second), last_weights(whole))
    assert verify(arctic_home / "kept/global_step_6") is None


def test_the_next_save_waits_for_the_one_before(run_recipe, recipe, plugin_manager, arctic_home, monkeypatch):
    class Counts:
        def __init__(self):
            self.most = 0

        @hookimpl
        def arctic_step_end(self, step, metrics, trainer):
            busy = [thread for thread in threading.enumerate() if thread.name == "arctic-checkpoint"]
            self.most = max(self.most, len(busy))

    counts = Counts()
    plugin_manager.register(counts, "counts")
    run_recipe(recipe | {"checkpoint": recipe["checkpoint"] | {"save_every_n_steps": 1}})
    assert counts.most <= 1
    assert len(list((arctic_home / "kept").glob("global_step_?"))) == 6


def test_a_save_that_fails_stops_the_run_with_its_reason(run_recipe, recipe, arctic_home, monkeypatch):
    import torch

    save = torch.save

    def full(state, path, *arguments, **options):
        if "global_step_4" in str(path) and str(path).endswith("engine.pt"):
            raise OSError(28, "No space left on device")
        save(state, path, *arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"global_step_4: rank 0 could not write .*No space left") as caught:
        run_recipe(recipe)
    assert "it takes about" in caught.value.remedy
    assert [path.name for path in (arctic_home / "kept").iterdir()] == ["global_step_2"]


def test_a_run_that_stops_completes_what_it_was_writing(run_recipe, recipe, plugin_manager, arctic_home):
    class Stops:
        @hookimpl
        def arctic_step_start(self, step, batch, trainer):
            if step == 2:
                (trainer.run.run_dir / "kill_switch").touch()

    plugin_manager.register(Stops(), "stops")
    with pytest.raises(TrainingStopped):
        run_recipe(recipe)
    assert verify(arctic_home / "kept/global_step_2") is None


def test_a_copy_shares_memory_where_the_original_does_and_nowhere_else():
    import torch

    whole = torch.arange(6.0)
    state = {"a": whole[:3], "b": [whole[2:].view(2, 2), 3], "c": (whole.clone(), "text")}
    copied = on_host(state)
    whole.zero_()
    assert copied["a"].tolist() == [0, 1, 2]
    assert copied["b"][0].tolist() == [[2, 3], [4, 5]]
    assert copied["a"].untyped_storage().data_ptr() == copied["b"][0].untyped_storage().data_ptr()
    assert copied["c"][0].untyped_storage().data_ptr() != copied["a"].untyped_storage().data_ptr()
    assert copied["b"][1] == 3
