"""A step that takes too long ends the run, and the rank that holds the others up is named with the place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time

import pytest

from arctic_training.watchdog import BETWEEN, LOSS, SAVE, Beat, explain

SCRIPT = """
import json, sys, time

from arctic_training.hookspecs import hookimpl
from arctic_training.plugins import create_plugin_manager
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve
from arctic_training.run import Run
from arctic_training.testing import tiny


class Hangs:
    @hookimpl(wrapper=True)
    def arctic_compute_loss(self, batch, trainer):
        if (where == "loss" and trainer.global_step == 2) or (where == "evaluation" and not trainer.model.training):
            time.sleep(60)  # HERE
        return (yield)

    @hookimpl
    def arctic_before_save(self, path, step, trainer):
        if where == "save":
            while True: pass  # HERE

    @hookimpl
    def arctic_step_end(self, step, metrics, trainer):
        time.sleep(0.5 if where == "nowhere" else 0.0)  # longer than the limit in sum


where = sys.argv[1]
plugins = create_plugin_manager()
plugins.register(tiny, "tiny")
plugins.register(Hangs(), "hangs")
Run(resolve(load_recipe(json.loads(sys.argv[2])), plugins)).execute()
"""


def beat(count, phase=LOSS, **facts):
    return Beat(count, 5, phase, **{"place": f"train.py:{count}, in loss", "waits": False, "reported": True, **facts})


@pytest.mark.parametrize(
    ("beats", "said"),
    [
        ({0: beat(7)}, "step 5 takes longer than 60 s: rank 0 hangs in loss (train.py:7, in loss)"),
        ({0: beat(8, waits=True), 1: beat(7)}, "rank 1 hangs in loss (train.py:7, in loss)"),
        ({0: beat(7, waits=True), 1: beat(7), 2: beat(7, waits=True)}, "rank 1 hangs in loss"),
        ({0: beat(9), 1: beat(7), 2: beat(7)}, "ranks 1, 2 hang in loss"),
        ({0: beat(7, waits=True), 1: beat(7, waits=True)}, "ranks 0, 1 wait for each other in loss"),
        ({0: beat(8), 1: beat(6, reported=False)}, "rank 1 answers no more; rank 1 was seen last in loss at step 5"),
        ({0: beat(8, waits=True), 2: beat(9, waits=True)}, "rank 0 waits for others, which left no word"),
        ({0: beat(7, SAVE)}, "saving the checkpoint at step 5 takes longer than 60 s: rank 0"),
        ({0: beat(7, BETWEEN)}, "what comes between step 5 and the next takes longer"),
    ],
)  # fmt: skip
def test_the_rank_that_got_least_far_or_waits_for_nobody_is_the_culprit(beats, said):
    assert said in explain(beats, max(beats) + 1, 60)


@pytest.fixture
def hang(arctic_home, tiny_recipe):
    """A training in a process of its own, which the watchdog ends."""
    script = arctic_home / "hanging.py"
    script.write_text(textwrap.dedent(SCRIPT))
    data = tiny_recipe["data"] | {"eval_sources": tiny_recipe["data"]["sources"]}
    recipe = tiny_recipe | {
        "train_iters": 4,
        "run_dir": "run",
        "step_timeout": 2,
        "data": data,
        "eval_interval": 3,
        "checkpoint": {"output_dir": "kept", "save_every_n_steps": 4},
    }

    def hang(where, **keys):
        command = [sys.executable, str(script), where, json.dumps(recipe | keys)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)

    return hang


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("loss", "step 3 takes longer than 2 s: rank 0 hangs in loss"),
        pytest.param(
            "evaluation",
            "the evaluation at step 3 takes longer than 2 s: rank 0 hangs",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "save",
            "saving the checkpoint at step 4 takes longer than 2 s: rank 0 hangs",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["loss", "evaluation", "save"],
)
def test_a_process_that_hangs_is_ended_with_its_stacks_and_the_place(hang, arctic_home, where, said):
    started = time.monotonic()
    done = hang(where)
    assert time.monotonic() - started < 120
    assert done.returncode == 6, done.stderr
    assert f"error: {said} ({arctic_home / 'hanging.py'}:" in done.stderr
    line = int(re.search(r"hanging\.py:(\d+)", done.stderr)[1])
    assert "HERE" in SCRIPT.splitlines()[line - 1]
    log = (arctic_home / "run/logs/rank-0.log").read_text()
    assert f'hanging.py", line {line} in arctic_' in log
    assert log.count("Thread 0x") >= 1
    fault = json.loads((arctic_home / "run/logs/fault-rank-0.json").read_text())
    assert fault["exit_code"] == 6
    assert said in fault["message"]
    assert json.loads((arctic_home / "run/status.json").read_text())["state"] == "stopped"


@pytest.mark.slow
def test_many_steps_that_are_each_short_enough_are_left_alone(hang, arctic_home):
    done = hang("nowhere", train_iters=6)
    assert done.returncode == 0, done.stderr
    assert not list((arctic_home / "run/logs").glob("heartbeat*"))
