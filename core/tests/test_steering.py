"""Signals and requests: what is asked of a run from outside is done between two steps."""

from __future__ import annotations

import json
import os
import signal

import pytest

from arctic_training.errors import Interrupted, TrainingStopped
from arctic_training.hookspecs import hookimpl
from arctic_training.manifest import verify
from arctic_training.reporting import MetricsFile
from arctic_training.status import read_status
from arctic_training.testing.contracts.common import figures

KEPT = {"output_dir": "kept", "auto_resume": True}


class After:
    """Does something within one step, as somebody outside would."""

    def __init__(self, step, deed):
        self.step, self.deed = step, deed

    @hookimpl
    def arctic_step_start(self, step, batch, trainer):
        if step == self.step:
            self.deed(trainer.run)


def send(*numbers):
    def deed(run):
        for number in numbers:
            os.kill(os.getpid(), number)

    return deed


def ask(name):
    def deed(run):
        folder = run.run_dir / "control"
        folder.mkdir(exist_ok=True)
        (folder / name).touch()

    return deed


@pytest.fixture
def recipe(tiny_recipe):
    return tiny_recipe | {"train_iters": 4, "run_dir": "run", "checkpoint": KEPT}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint_to_go_on_from(
    run_recipe, plugin_manager, recipe, arctic_home, number
):
    whole = run_recipe(recipe | {"checkpoint": [], "run_dir": "whole"})
    outside = After(2, send(number))
    plugin_manager.register(outside, "outside")
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 2") as caught:
        run_recipe(recipe)
    assert caught.value.exit_code == 128 + number
    assert "global_step_2" in caught.value.remedy
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
    assert verify(arctic_home / "kept/global_step_2") is None
    plugin_manager.unregister(outside)
    again = run_recipe(recipe)
    assert again.first_step == 2
    assert figures(again, "loss")[-2:] == figures(whole, "loss")[2:]


def test_a_run_without_a_checkpoint_says_that_nothing_was_saved(run_recipe, plugin_manager, recipe):
    plugin_manager.register(After(2, send(signal.SIGTERM)), "outside")
    with pytest.raises(Interrupted) as caught:
        run_recipe(recipe | {"checkpoint": []})
    assert "nothing was saved" in caught.value.remedy


def test_a_second_interrupt_ends_the_run_at_once(run_recipe, plugin_manager, recipe, arctic_home):
    plugin_manager.register(After(2, send(signal.SIGINT, signal.SIGINT)), "outside")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe)
    assert not list((arctic_home / "kept").glob("*"))


def test_a_signal_before_training_ends_the_run_at_once(run_recipe, plugin_manager, recipe, arctic_home):
    class Outside:
        @hookimpl(tryfirst=True)
        def arctic_build_tokenizer(self, config, run):
            os.kill(os.getpid(), signal.SIGTERM)

    plugin_manager.register(Outside(), "outside")
    with pytest.raises(Interrupted, match="before the first step"):
        run_recipe(recipe)
    assert not list((arctic_home / "kept").glob("*"))


@pytest.mark.parametrize("swallowed", [True, False])
def test_a_signal_before_training_is_told_whatever_a_library_makes_of_it(run_recipe, plugin_manager, recipe, swallowed):
    class Outside:
        @hookimpl(tryfirst=True)
        def arctic_build_tokenizer(self, config, run):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Interrupted as error:  # as code does that looks for modules
                if not swallowed:
                    raise ImportError("could not import a module") from error

    plugin_manager.register(Outside(), "outside")
    with pytest.raises(Interrupted, match="stopped by SIGTERM before the first step"):
        run_recipe(recipe)


def test_sigusr1_saves_and_training_goes_on(run_recipe, plugin_manager, recipe, arctic_home):
    plugin_manager.register(After(2, send(signal.SIGUSR1)), "outside")
    run = run_recipe(recipe)
    assert len(figures(run, "loss")) == 4
    assert [path.name for path in (arctic_home / "kept").iterdir()] == ["global_step_2"]


def test_a_request_for_a_checkpoint_is_met_once_and_answered(run_recipe, plugin_manager, recipe, arctic_home):
    plugin_manager.register(After(3, ask("save")), "outside")
    run_recipe(recipe)
    assert [path.name for path in (arctic_home / "kept").iterdir()] == ["global_step_3"]
    answer = json.loads((arctic_home / "run/control/save.done").read_text())
    assert answer == {"step": 3, "saved": [str(arctic_home / "kept/global_step_3")], "losses": {}}


def test_a_request_to_stop_saves_first(run_recipe, plugin_manager, recipe, arctic_home):
    plugin_manager.register(After(1, ask("stop")), "outside")
    with pytest.raises(TrainingStopped, match="after step 1, as was asked"):
        run_recipe(recipe)
    assert verify(arctic_home / "kept/global_step_1") is None
    assert read_status(arctic_home / "run")["state"] == "stopped"


def test_a_request_for_an_evaluation_is_met(run_recipe, plugin_manager, recipe):
    plugin_manager.register(After(2, ask("evaluate")), "outside")
    data = recipe["data"] | {"eval_sources": recipe["data"]["sources"]}
    run = run_recipe(recipe | {"data": data, "eval_interval": 3})
    losses = {line["step"]: line["loss"] for line in run.metrics if line["kind"] == "eval"}
    assert list(losses) == [2, 3, 4]
    assert json.loads((run.run_dir / "control/evaluate.done").read_text())["losses"] == {"eval": losses[2]}


def test_what_was_asked_of_an_earlier_run_in_the_same_directory_is_forgotten(run_recipe, recipe, arctic_home):
    (arctic_home / "run/control").mkdir(parents=True)
    (arctic_home / "run/control/stop").touch()
    assert len(figures(run_recipe(recipe), "loss")) == 4


def test_the_status_tells_step_loss_speed_time_left_and_the_last_checkpoint(run_recipe, plugin_manager, recipe):
    seen = []

    def look(run):
        run.status.written = 0.0  # as if a second had gone by
        seen.append(read_status(run.run_dir))

    for step in (2, 3, 4):
        plugin_manager.register(After(step, look), f"outside {step}")
    run = run_recipe(recipe | {"checkpoint": KEPT | {"save_every_n_steps": 2}})
    losses = figures(run, "loss")
    last = seen[-1]
    assert (last["state"], last["step"], last["last_step"], last["loss"]) == ("training", 3, 4, losses[2])
    assert last["checkpoint"]["path"].endswith("global_step_2")
    assert last["seconds_left"] > 0
    assert last["tokens_per_second"] > 0
    assert last["pid"] == os.getpid()
    assert read_status(run.run_dir)["state"] == "finished"


def test_a_run_whose_process_is_gone_is_told_from_one_that_works(run_recipe, recipe, arctic_home):
    run_recipe(recipe)
    path = arctic_home / "run/status.json"
    status = json.loads(path.read_text()) | {"state": "training"}
    path.write_text(json.dumps(status))
    assert read_status(path.parent)["state"] == "training"
    path.write_text(json.dumps(status | {"process_started": 1}))
    assert read_status(path.parent)["state"] == "gone"
    assert read_status(arctic_home) is None


def test_a_line_of_metrics_that_a_kill_tore_apart_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        file = MetricsFile([path])
        file.arctic_log_metrics({"kind": "train", "step": 1}, 1, None)
        file.arctic_unconfigure(None)
        path.write_text(path.read_text() + '{"kind": "tra')
    assert path.read_text() == ('{"kind": "train", "step": 1}\n{"kind": "tra\n' * 2)[:-1]
