"""A loss or gradient that is not finite: training stops, or goes on as if the step had not been; nobody's weights take
it."""

from __future__ import annotations

import math

import pytest

from arctic_training.errors import TrainingStopped
from arctic_training.hookspecs import hookimpl
from arctic_training.loss import LossSum
from arctic_training.testing.contracts.common import KeepsWeights, differing, figures, last_weights


class Poison:
    """Makes the loss of some steps NaN; notes the rows of each step."""

    def __init__(self, *steps):
        self.steps = steps
        self.rows = {}

    @hookimpl
    def arctic_step_start(self, step, batch, trainer):
        self.rows[step] = [row for micro_batch in batch for row in micro_batch.rows]

    @hookimpl(wrapper=True)
    def arctic_compute_loss(self, batch, trainer):
        total, weight = yield
        return LossSum(total * (math.nan if trainer.global_step + 1 in self.steps else 1.0), weight)


class LeavesOut:
    """Does not take one step: throws its gradients away."""

    @hookimpl
    def arctic_before_optimizer_step(self, step, trainer):
        if step == 2:
            engine = trainer.engine
            take = engine.step

            def pass_over():
                engine.step = take
                engine.optimizer.zero_grad(set_to_none=True)
                return type("Result", (), {"applied": True, "grad_norm": 0.0})()

            engine.step = pass_over


@pytest.fixture
def recipe(tiny_recipe):
    return tiny_recipe | {"train_iters": 4, "scheduler": {"type": "constant"}}


def test_the_message_names_step_rank_and_rows(run_recipe, plugin_manager, recipe):
    poison = Poison(3)
    plugin_manager.register(poison, "poison")
    with pytest.raises(TrainingStopped) as caught:
        run_recipe(recipe)
    rows = ", ".join(map(str, poison.rows[3]))
    assert caught.value.message == (
        f"the loss is nan at step 3 on rank 0, in rows {rows} of the prepared data; the step was not applied"
    )


def test_a_skipped_step_is_as_if_it_had_not_been(run_recipe, plugin_manager, recipe):
    plugin_manager.register(KeepsWeights(), "weights")
    leaves_out = LeavesOut()
    plugin_manager.register(leaves_out, "leaves one out")
    expected = run_recipe(recipe)
    plugin_manager.unregister(leaves_out)
    poison = Poison(2)
    plugin_manager.register(poison, "poison")
    skipped = run_recipe(recipe | {"on_nonfinite": "skip"})
    assert not differing(last_weights(skipped), last_weights(expected))
    assert figures(skipped, "loss")[2:] == figures(expected, "loss")[2:]
    (event,) = [line for line in skipped.metrics if line.get("event") == "skipped_step"]
    assert (event["step"], event["rank"], event["rows"]) == (2, 0, poison.rows[2])


def test_too_many_skipped_steps_in_a_row_end_training(run_recipe, plugin_manager, recipe):
    plugin_manager.register(Poison(1, 3, 4), "poison")
    run_recipe(recipe | {"on_nonfinite": "skip", "max_skipped_steps": 2})
    with pytest.raises(TrainingStopped, match="2 steps in a row were not finite: the loss is nan at step 4") as caught:
        run_recipe(recipe | {"on_nonfinite": "skip", "max_skipped_steps": 1})
    assert caught.value.remedy.endswith("; a max_skipped_steps above 1 goes on for longer")
