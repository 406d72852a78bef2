"""``arctic ctl``: a run in a process of its own is looked at and asked for things."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

CODE = """
import time
from arctic_training import hookimpl, register
from arctic_training.testing import TinyDataFactory, TinyModelFactory, TinySource, TinyTokenizerFactory, TinyTrainer

for each in (TinyDataFactory, TinyModelFactory, TinySource, TinyTokenizerFactory, TinyTrainer):
    register(each)


@hookimpl
def arctic_step_end(step, metrics, trainer):
    time.sleep(0.05)
"""


def arctic(*words, cwd):
    environment = os.environ | {"ARCTIC_HOME": str(cwd / "home")}
    command = [sys.executable, "-m", "arctic_cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def running(tmp_path):
    """A training that would last for minutes, in ``run``."""
    (tmp_path / "train.py").write_text(CODE)
    recipe = {
        "type": "tiny",
        "run_dir": "run",
        "model": {"type": "tiny", "dtype": "fp32"},
        "tokenizer": {"type": "tiny"},
        "data": {"type": "tiny", "sources": [{"type": "tiny"}], "dl_num_workers": 0, "num_proc": 1},
        "optimizer": {"type": "adamw"},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "checkpoint": {"output_dir": "kept"},
        "train_iters": 5000,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = os.environ | {"ARCTIC_HOME": str(tmp_path / "home")}
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "arctic_cli", "run", "recipe.yaml"],
            cwd=tmp_path, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
    end = time.monotonic() + 60
    while not (tmp_path / "run/metrics.jsonl").is_file() or not (tmp_path / "run/metrics.jsonl").stat().st_size:
        assert process.poll() is None, (tmp_path / "output").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def test_a_run_is_looked_at_asked_to_save_and_asked_to_stop(running, tmp_path):
    shown = arctic("ctl", "run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for part in ("training, as of", "of 5000", "loss", "tokens/s", "time left", f"{running.pid} on"):
        assert part in shown.stdout
    saved = arctic("ctl", "run", "save", cwd=tmp_path)
    assert "saved after step" in saved.stdout + saved.stderr
    status = json.loads(arctic("ctl", "run", "status", "--json", cwd=tmp_path).stdout)
    assert status["checkpoint"]["path"].startswith(str(tmp_path / "kept/global_step_"))
    asked = arctic("ctl", "run", "stop", "--no-wait", cwd=tmp_path)
    assert "asked the run to stop" in asked.stdout + asked.stderr
    assert running.wait(60) == 6
    shown = arctic("ctl", "run", cwd=tmp_path)
    assert shown.stdout.startswith("stopped, as of")
    assert "time left" not in shown.stdout
    refused = arctic("ctl", "run", "save", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the run is over" in refused.stderr
    again = arctic("run", "recipe.yaml", "--resume", "kept", "exit_iteration_this_run=1", "run_dir=again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"resumed from kept/global_step_{read_step(tmp_path)}" in again.stderr


def read_step(directory):
    return max(int(path.name.rpartition("_")[2]) for path in (directory / "kept").glob("global_step_*"))


def test_a_run_that_was_killed_is_said_to_be_gone(running, tmp_path):
    running.kill()
    running.wait()
    shown = arctic("ctl", "run", cwd=tmp_path)
    assert "ended without a word" in shown.stdout
    refused = arctic("ctl", "run", "evaluate", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the run is over" in refused.stderr


def test_a_folder_that_no_run_has_written_is_refused(tmp_path):
    refused = arctic("ctl", ".", cwd=tmp_path)
    assert refused.returncode == 2
    assert "there is no status.json" in refused.stderr


def test_a_file_and_what_is_not_there_are_refused_with_what_to_name(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    for given, said in (("recipe.yaml", "there is no such directory, but a file"), ("x", "there is no such directory")):
        refused = arctic("ctl", given, cwd=tmp_path)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {given}: {said}\n  name the directory of a run")
