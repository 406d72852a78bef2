"""A clock that is set while a run trains changes nothing: what is measured is measured by one that only goes on."""

from __future__ import annotations

import time

from arctic_training.hookspecs import hookimpl
from arctic_training.testing.contracts.common import figures

DAY = 86400.0


class SetsTheClock:
    """Sets the clock back by a day, and then forth by ten years."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.real = time.time

    @hookimpl
    def arctic_step_start(self, step, batch, trainer):
        by = {2: -DAY, 4: 3650 * DAY}
        if step in by:
            self.monkeypatch.setattr(time, "time", lambda: self.real() + by[step])


def test_a_clock_that_jumps_back_and_forth_has_no_effect(
    run_recipe, tiny_recipe, plugin_manager, monkeypatch, arctic_home
):
    recipe = tiny_recipe | {
        "train_iters": 6,
        "step_timeout": 60,
        "checkpoint": {"output_dir": "kept", "save_every_n_minutes": 5, "save_end_of_training": True, "keep_last": 1},
    }
    expected = run_recipe(recipe | {"checkpoint": []})
    plugin_manager.register(SetsTheClock(monkeypatch), "sets the clock")
    before = time.time()
    run = run_recipe(recipe)
    assert time.time() - before > 3000 * DAY
    assert figures(run, "loss") == figures(expected, "loss")
    assert all(0 < seconds < 60 for seconds in figures(run, "step_seconds"))
    assert all(0 <= seconds < 60 for seconds in figures(run, "data_seconds"))
    assert [path.name for path in (arctic_home / "kept").iterdir()] == ["global_step_6"]
