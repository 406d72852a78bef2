"""One run at a time writes into a directory of checkpoints, and a run that was killed stands in nobody's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from arctic_training import hookimpl, output_lock
from arctic_training.errors import CheckpointError, UsageError
from arctic_training.output_lock import FILE

HOLDER = """
import os, sys, time
from pathlib import Path
from arctic_training.output_lock import locked
locked(Path(sys.argv[1]), {"pid": os.getpid(), "host": "far", "run_dir": "/runs/other", "since": "long ago"})
if os.fork():  # as a worker that outlives the process it was forked from
    print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path/output``, with a child that it forked."""
    (tmp_path / "output").mkdir()
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "output" / FILE)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    entry = {"output_dir": str(tmp_path / "output"), "save_end_of_training": True, "auto_resume": True}
    return tiny_recipe | {"train_iters": 1, "checkpoint": [entry]}


def test_a_second_run_is_refused_with_who_holds_the_directory(run_recipe, recipe, holder, tmp_path):
    with pytest.raises(CheckpointError, match="another run writes its checkpoints there") as caught:
        run_recipe(recipe)
    assert f"process {holder.pid} on far, since long ago, of the run /runs/other" in caught.value.message
    assert caught.value.where == str(tmp_path / "output")
    assert json.loads((tmp_path / "output" / FILE).read_text())["pid"] == holder.pid


def test_a_second_run_is_refused_the_directory_of_one_that_lives(run_recipe, tiny_recipe, holder, tmp_path):
    with pytest.raises(UsageError, match="another run writes its record there") as caught:
        run_recipe(tiny_recipe | {"run_dir": str(tmp_path / "output")})
    assert f"process {holder.pid} on far" in caught.value.message
    assert os.listdir(tmp_path / "output") == [FILE]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    run_recipe(tiny_recipe | {"run_dir": str(tmp_path / "output")})
    assert FILE not in os.listdir(tmp_path / "output")


def test_checkpoints_may_lie_in_the_directory_of_their_run(run_recipe, recipe, tmp_path):
    run_recipe(recipe | {"run_dir": str(tmp_path / "output")})
    assert {"global_step_1", "metrics.jsonl"} <= set(os.listdir(tmp_path / "output"))
    assert run_recipe(recipe | {"run_dir": str(tmp_path / "output")}).first_step == 1


def test_a_run_that_was_killed_is_gone_on_from_at_once(run_recipe, recipe, holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "output" / FILE).exists()
    assert run_recipe(recipe).trainer.state.step == 1
    assert os.listdir(tmp_path / "output") == ["global_step_1"]
    assert run_recipe(recipe).first_step == 1


def test_a_run_holds_its_directories_from_before_its_first_step_until_its_end(
    run_recipe, recipe, plugin_manager, tmp_path
):
    twice = [*recipe["checkpoint"], {"output_dir": str(tmp_path / "here" / ".." / "output"), "enabled": True}]
    (tmp_path / "here").mkdir()
    idle = {"output_dir": str(tmp_path / "idle"), "enabled": False}
    seen = []

    class Watch:
        @hookimpl
        def arctic_train_start(self, trainer):
            seen.append(json.loads((tmp_path / "output" / FILE).read_text()))

    plugin_manager.register(Watch(), "watch")
    run = run_recipe(recipe | {"checkpoint": [*twice, idle]})
    assert [(each["pid"], each["run_dir"]) for each in seen] == [(os.getpid(), str(run.run_dir))]
    assert not (tmp_path / "output" / FILE).exists()
    assert not (tmp_path / "idle").exists()


def test_a_file_system_without_locks_is_a_warning(run_recipe, recipe, monkeypatch, capsys):
    import fcntl

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert run_recipe(recipe).trainer.state.step == 1
    assert "this file system has no locks (No locks available)" in capsys.readouterr().err


def test_a_lock_whose_file_goes_while_it_is_taken_is_taken_again(tmp_path, monkeypatch):
    import fcntl

    path, lockf, calls = tmp_path / FILE, fcntl.lockf, []

    def remove_first(descriptor, operation):
        if not calls:
            path.unlink()
        calls.append(descriptor)
        lockf(descriptor, operation)

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    os.close(output_lock.locked(path, {"pid": 1}))
    assert len(calls) == 2
    assert path.exists()
