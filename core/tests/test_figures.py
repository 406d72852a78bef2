"""What an objective measures besides its loss: per unit over all micro-batches, in training and in evaluation."""

from __future__ import annotations

import pytest
import torch

from arctic_training import hookimpl
from arctic_training.loss import Figures, LossSum


class Measures:
    """Adds the mean id of the rows to each loss as a figure."""

    @hookimpl(wrapper=True)
    def arctic_compute_loss(self, batch, trainer):
        loss = yield
        ids = batch["input_ids"]
        return loss.with_figures({"ids/mean": (ids.sum(), ids.numel() if batch.rows else 0)})


def figures_of(run, kind):
    return [line["ids/mean"] for line in run.metrics if line["kind"] == kind]


def test_figures_are_logged_per_unit_whatever_the_split_into_micro_batches(run_recipe, plugin_manager, tiny_recipe):
    plugin_manager.register(Measures(), "measures")
    recipe = tiny_recipe | {"data": tiny_recipe["data"] | {"train_eval_split": [0.5, 0.5]}, "eval_interval": 2}
    run = run_recipe(recipe)
    assert figures_of(run, "train")
    assert figures_of(run, "eval")
    assert all(0 < value <= 257 for value in [*figures_of(run, "train"), *figures_of(run, "eval")])


def test_a_micro_batch_that_does_not_count_brings_its_names_alone():
    figures = Figures()
    loss = LossSum(torch.tensor(1.0), 1.0).with_figures({"margin": (torch.tensor(6.0), 2)})
    figures.add(loss, counts=False)
    assert figures.metrics(torch.device("cpu")) == {}
    figures.add(loss)
    figures.add(loss)
    assert figures.metrics(torch.device("cpu")) == {"margin": pytest.approx(3.0)}


def test_arithmetic_on_a_loss_keeps_its_figures():
    loss = LossSum(torch.tensor(1.0), 1.0).with_figures({"one": (1.0, 1)})
    other = LossSum(torch.tensor(1.0), 1.0).with_figures({"two": (2.0, 1)})
    assert set((2 * loss / 3 + 1.0 + other).figures) == {"one", "two"}
