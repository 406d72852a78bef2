"""The plugin through whole runs of the tiny components, which need neither network nor transformers.

Run with the plugin installed: pip install -e '.[test]' && pytest
"""

import math

import pytest

from arctic_focal.loss import focal_loss_sum
from arctic_training.errors import RecipeError
from arctic_training.testing import LossFactoryContract, SchedulerFactoryContract, TrainerContract

pytestmark = pytest.mark.usefixtures("arctic_home")


@pytest.fixture
def focal_recipe(tiny_recipe):
    """The tiny recipe with this plugin's trainer, which wants to be told which components it works with."""
    tiny_recipe["data"]["type"] = "tiny"
    tiny_recipe["model"]["type"] = "tiny"
    return tiny_recipe | {"type": "focal", "tokenizer": {"type": "tiny"}, "train_iters": 3}


def train_losses(run):
    return [record["loss"] for record in run.metrics if record["kind"] == "train"]


class TestFocalTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, focal_recipe):
        return focal_recipe | {"focal": {"gamma": 1.5, "entropy_weight": 0.1}}


class TestFocalLoss(LossFactoryContract):
    @pytest.fixture
    def recipe(self, tiny_recipe):
        return tiny_recipe | {"loss": {"type": "focal", "gamma": 1.5}}


class TestCosineWithFloor(SchedulerFactoryContract):
    @pytest.fixture
    def recipe(self, focal_recipe):
        return focal_recipe | {"scheduler": {"type": "cosine_with_floor"}, "train_iters": 20}


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_loss_is_the_formula_of_the_paper_token_by_token(gamma):
    import torch

    logits = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.tensor([[-100, 3, -100, 0, 6], [-100, -100, 1, 2, -100]])
    expected = 0.0
    for row, column in (labels != -100).nonzero().tolist():
        scores = [math.exp(score) for score in logits[row, column - 1].tolist()]
        p = scores[labels[row, column]] / sum(scores)
        expected -= (1 - p) ** gamma * math.log(p)
    assert focal_loss_sum(logits, labels, gamma).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_gradient_is_finite_and_right_even_where_the_prediction_is_certain(gamma):
    import torch

    labels = torch.tensor([[-100, 2, 0]])
    certain = torch.tensor([0, 0, 1e4, 0]).expand(1, 3, 4).clone().requires_grad_()
    focal_loss_sum(certain, labels, gamma).backward()
    assert certain.grad.isfinite().all()
    logits = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda scores: focal_loss_sum(scores, labels, gamma), logits)


def test_gamma_zero_trains_as_cross_entropy_does(run_recipe, tiny_recipe, focal_recipe):
    focal = run_recipe(focal_recipe | {"focal": {"gamma": 0}})
    plain = run_recipe(tiny_recipe | {"train_iters": 3})
    assert train_losses(focal) == pytest.approx(train_losses(plain), rel=1e-6)


def test_the_loss_stage_trains_any_trainer_as_the_focal_trainer_trains(run_recipe, tiny_recipe, focal_recipe):
    by_trainer = run_recipe(focal_recipe | {"focal": {"gamma": 1.5}})
    by_stage = run_recipe(tiny_recipe | {"train_iters": 3, "loss": {"type": "focal", "gamma": 1.5}})
    assert train_losses(by_stage) == train_losses(by_trainer)


def test_the_loss_section_has_keys_of_its_own(run_recipe, tiny_recipe):
    with pytest.raises(RecipeError, match=r"loss\.gamma: expected a number of at least 0 and of at most 10"):
        run_recipe(tiny_recipe | {"loss": {"type": "focal", "gamma": 11}})
    with pytest.raises(RecipeError, match=r"loss\.gamma: unknown key"):
        run_recipe(tiny_recipe | {"loss": {"gamma": 1}})


def test_a_higher_gamma_makes_the_same_predictions_cost_less(run_recipe, focal_recipe):
    losses = [train_losses(run_recipe(focal_recipe | {"focal": {"gamma": gamma}}))[0] for gamma in (0, 1, 2)]
    assert losses == sorted(losses, reverse=True)


def test_the_wrapper_subtracts_entropy_from_the_loss_of_any_trainer(run_recipe, tiny_recipe):
    plain, rewarded = (
        train_losses(run_recipe(tiny_recipe | {"train_iters": 1, "focal": {"entropy_weight": weight}}))[0]
        for weight in (0, 0.5)
    )
    entropy = (plain - rewarded) / 0.5
    assert 0.9 * math.log(257) < entropy < math.log(257)  # fresh weights know almost nothing of 257 words


def test_evaluation_shows_the_loss_without_entropy(run_recipe, tiny_recipe):
    tiny_recipe["data"]["eval_sources"] = [{"type": "tiny"}]
    recipe = tiny_recipe | {"train_iters": 1, "eval_interval": 1, "evaluate_at_start": True}
    plain, rewarded = (
        next(record["loss"] for record in run.metrics if record["kind"] == "eval")
        for run in (run_recipe(recipe), run_recipe(recipe | {"focal": {"entropy_weight": 0.5}}))
    )
    assert plain == rewarded


def test_the_plugin_leaves_other_recipes_as_they_are(run_recipe, tiny_recipe, plugin_manager):
    ours = run_recipe(tiny_recipe | {"train_iters": 3})
    plugin_manager.load_recipe_plugins({"block": ["focal"]})
    assert train_losses(ours) == train_losses(run_recipe(tiny_recipe | {"train_iters": 3}))


def test_the_schedule_warms_up_and_ends_at_its_floor(run_recipe, focal_recipe):
    scheduler = {"type": "cosine_with_floor", "warmup_ratio": 0.2, "floor": 0.25}
    run = run_recipe(focal_recipe | {"train_iters": 11, "scheduler": scheduler})
    rates = [record["learning_rate"] / 1e-2 for record in run.metrics if record["kind"] == "train"]
    half_cosine = [0.25 + 0.75 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    assert rates == pytest.approx([1 / 3, 2 / 3, *half_cosine])


def test_each_save_is_noted_with_its_gamma(run_recipe, focal_recipe):
    checkpoint = {"output_dir": "out", "save_every_n_steps": 2}
    run = run_recipe(focal_recipe | {"train_iters": 4, "focal": {"gamma": 3}, "checkpoint": checkpoint})
    notes = [record for record in run.metrics if record.get("event") == "focal_checkpoint"]
    assert [(note["step"], note["gamma"]) for note in notes] == [(2, 3.0), (4, 3.0)]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"gamma": -1}, "focal.gamma: expected a number of at least 0"),
        ({"gama": 2}, "focal.gama: unknown key; did you mean 'gamma'"),
        ({"entropy_weight": True}, "focal.entropy_weight: expected a number"),
    ],
)
def test_the_section_is_checked(run_recipe, focal_recipe, section, said):
    with pytest.raises(RecipeError) as caught:
        run_recipe(focal_recipe | {"focal": section})
    assert said in str(caught.value)
