"""A checkpoint of the DeepSpeed engine that is written in the background is that of its step."""

from __future__ import annotations

import pytest

from arctic_training.testing.contracts.common import KeepsWeights, differing, figures, last_weights
from arctic_training.writing import Writer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_goes_on_exactly_from_what_was_written_meanwhile(
    run_recipe, tiny_recipe, plugin_manager, monkeypatch, stage, precision
):
    plugin_manager.register(KeepsWeights(), "keeps weights")
    recipe = tiny_recipe | {
        "model": {"dtype": precision},
        "engine": {"type": "deepspeed"},
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "train_iters": 6,
    }
    whole = run_recipe(recipe)
    started = []
    checkpoint = {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 3, "background": True}
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "start", lambda writer: started.append(writer))  # and written when training is over
        patch.setattr(Writer, "wait", lambda writer: writer._finish())
        patch.setattr(Writer, "is_busy", True)
        begun = {"checkpoint": checkpoint | {"auto_resume": False}, "exit_iteration_this_run": 5}
        run_recipe(recipe | begun | {"run_dir": "first"})
    assert len(started) == 1
    second = run_recipe(recipe | {"checkpoint": checkpoint, "run_dir": "second"})
    assert second.first_step == 3
    assert figures(second, "loss") == figures(whole, "loss")[3:]
    assert not differing(last_weights(second), last_weights(whole))
