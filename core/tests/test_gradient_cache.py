"""Losses over what a model makes of all rows of a step: value and gradient are those of one pass over all of them."""

from __future__ import annotations

import pytest
import torch

from arctic_training.dataloader import MicroBatch
from arctic_training.distributed import rows_of_ranks
from arctic_training.gradient_cache import GradientCache
from arctic_training.testing import TrainerContract
from arctic_training.testing.tiny import TinyTrainer


class ApartTrainer(TinyTrainer):
    """Keeps apart what the model predicts at ends of rows: the loss of row i is log sum over j of exp(v_i . v_j)."""

    name = "apart"

    def prepare(self):
        self.cache = GradientCache(self, self.vectors, self.measure, ["self"])

    def vectors(self, batch):
        ends = (batch["input_ids"] != 256).sum(1) - 1
        return self.model(batch["input_ids"]).logits[torch.arange(len(ends)), ends].float()

    def measure(self, vectors, columns, rows):
        own = vectors[rows.start : rows.stop]
        return torch.stack([(own @ vectors.T).logsumexp(1), own.square().sum(1)], 1)

    def before_losses(self, batches):
        self.cache.fill(batches)

    def loss(self, batch):
        return self.cache.loss(batch)

    def loss_weight(self, batch):
        return float(len(batch.rows))


@pytest.fixture
def apart_recipe(tiny_recipe):
    return tiny_recipe | {"type": "apart", "model": tiny_recipe["model"] | {"dtype": "fp32"}}


@pytest.fixture
def with_apart(plugin_manager):
    plugin_manager.register_classes([ApartTrainer], "apart")


class TestApartTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, apart_recipe):
        return apart_recipe

    @pytest.fixture
    def components(self):
        return [ApartTrainer]


def gradients(trainer):
    found = [parameter.grad.clone() for parameter in trainer.model_unwrapped.parameters()]
    trainer.model_unwrapped.zero_grad()
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("rows_at_once", [1024, 3])
def test_value_and_gradient_are_those_of_one_pass_with_the_same_dropout(
    build_run, with_apart, apart_recipe, monkeypatch, dropout, rows_at_once
):
    monkeypatch.setattr("arctic_training.gradient_cache.ROWS_AT_ONCE", rows_at_once)
    recipe = apart_recipe | {"micro_batch_size": 2, "gradient_accumulation_steps": 4}
    recipe["model"] = recipe["model"] | {"dropout": dropout}
    with build_run(recipe) as run:
        trainer = run.trainer
        trainer.model.train()
        batches = next(trainer.train_dataloader.epoch(0))
        torch.manual_seed(1)
        vectors = torch.cat([trainer.vectors(batch) for batch in batches])
        expected = trainer.measure(vectors, {}, range(8))
        expected[:, 0].sum().backward()
        expected_gradients = gradients(trainer)
        torch.manual_seed(1)
        trainer.before_losses(batches)
        losses = [trainer.loss(batch) for batch in batches]
        sum(loss.sum for loss in losses).backward()
    for batch, loss in enumerate(losses):
        own = expected[2 * batch : 2 * batch + 2].detach().sum(0)
        assert loss.sum.item() == pytest.approx(own[0].item(), rel=1e-6)
        assert loss.figures["self"] == (pytest.approx(own[1].item(), rel=1e-6), 2)
    for found, of_one_pass in zip(gradients(trainer), expected_gradients, strict=True):
        torch.testing.assert_close(found, of_one_pass, rtol=1e-4, atol=1e-6)


def test_a_micro_batch_by_itself_is_a_step_of_its_own_and_one_without_rows_is_nothing(
    build_run, with_apart, apart_recipe
):
    with build_run(apart_recipe | {"micro_batch_size": 4}) as run:
        trainer = run.trainer
        batch = next(trainer.train_dataloader.epoch(0))[0]
        alone = trainer.loss(batch)
        expected = trainer.measure(trainer.vectors(batch), {}, range(4))[:, 0].sum()
        assert alone.sum.item() == pytest.approx(expected.item(), rel=1e-6)
        nothing = trainer.loss(MicroBatch(batch, []))
        assert (nothing.sum.item(), nothing.weight, nothing.figures) == (0.0, 0.0, {"self": (0.0, 0.0)})


def test_one_process_has_the_rows_of_all_ranks():
    rows = torch.arange(6).view(3, 2)
    (only,) = rows_of_ranks(rows)
    assert only is rows
