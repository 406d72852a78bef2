"""The scheduler factory: closed forms in optimizer steps, and arguments checked before a run."""

from __future__ import annotations

import inspect
import math
from typing import get_args

import pytest

from arctic_huggingface.scheduler import SPECIFIC_KWARGS, HFSchedulerConfig, HFSchedulerFactory, Name, share_of_steps


def rates(make, run, steps, **keys):
    """The learning rate of each step, with a peak of 1."""
    import torch

    run.trainer.training_horizon = steps
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(HFSchedulerFactory, **keys).create_scheduler(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_linear_rises_over_the_warmup_and_falls_to_zero(make, run):
    expected = [step / 4 if step < 4 else (40 - step) / 36 for step in range(40)]
    assert rates(make, run, 40) == pytest.approx(expected)


def test_cosine_is_the_closed_form(make, run):
    expected = [step / 5 if step < 5 else (1 + math.cos(math.pi * (step - 5) / 15)) / 2 for step in range(20)]
    assert rates(make, run, 20, name="cosine", warmup_ratio=0.25) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["wsd", "wds", "warmup_stable_decay"])
def test_warmup_stable_decay_goes_by_three_names_and_decays_over_the_last_tenth(make, run, name):
    found = rates(make, run, 100, name=name, scheduler_specific_kwargs={"decay_type": "linear"})
    assert found[:10] == pytest.approx([step / 10 for step in range(10)])
    assert set(found[10:90]) == {1.0}
    assert found[90:] == pytest.approx([1 - step / 10 for step in range(10)])


def test_specific_arguments_reach_the_schedule(make, run):
    found = rates(make, run, 50, name="cosine_with_min_lr", scheduler_specific_kwargs={"min_lr_rate": 0.5})
    assert min(found[5:]) >= 0.5


@pytest.mark.parametrize(
    ("ratio", "steps", "expected"), [(0.1, 30, 3), (0.1, 31, 4), (0.0, 9, 0), (1.0, 9, 9), (0.07, 100, 7)]
)
def test_a_share_of_steps_is_exact_and_rounded_up(ratio, steps, expected):
    assert share_of_steps(ratio, steps) == expected


def test_every_schedule_of_transformers_that_needs_no_metric_is_offered_with_its_arguments():
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    functions = {kind.value: function for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    assert set(functions) - {"reduce_lr_on_plateau", "greedy"} == set(SPECIFIC_KWARGS)
    assert set(get_args(Name)) == {*SPECIFIC_KWARGS, "wsd", "wds"}
    ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for name, arguments in SPECIFIC_KWARGS.items():
        assert set(arguments) == set(inspect.signature(functions[name]).parameters) - ours, name


@pytest.mark.parametrize("name", sorted(get_args(Name)))
def test_every_schedule_runs(make, run, name):
    specific = {"min_lr_rate": 0.1} if name.endswith("min_lr") else {}
    assert len(rates(make, run, 10, name=name, scheduler_specific_kwargs=specific)) == 10


def test_an_argument_that_the_schedule_does_not_have_is_told_with_the_nearest():
    config = HFSchedulerConfig(name="cosine", scheduler_specific_kwargs={"num_cycle": 2})
    assert list(config.check()) == [
        (
            "scheduler_specific_kwargs",
            "the schedule 'cosine' has no argument 'num_cycle'; did you mean 'num_cycles'?",
        )
    ]


def test_a_floor_that_is_missing_is_told():
    assert "needs min_lr" in dict(HFSchedulerConfig(name="cosine_with_min_lr").check())["scheduler_specific_kwargs"]


def warmed(shape, warmup):
    """A closed form from the end of the warm-up on, with a rise from 0 before it."""
    return [step / warmup if step < warmup else shape(step) for step in range(60)]


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("linear", {}, lambda step: (60 - step) / 50),
        ("cosine", {}, lambda step: (1 + math.cos(math.pi * (step - 10) / 50)) / 2),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2}, lambda k: 0.2 + 0.8 * (1 + math.cos(math.pi * (k - 10) / 50)) / 2),
        ("polynomial", {"lr_end": 0.1, "power": 2}, lambda step: 0.1 + 0.9 * (1 - (step - 10) / 50) ** 2),
        ("constant_with_warmup", {}, lambda step: 1.0),
        ("inverse_sqrt", {"timescale": 10}, lambda step: 1 / math.sqrt(step / 10)),
        ("wsd", {"num_decay_steps": 20, "decay_type": "linear"}, lambda k: 1.0 if k < 40 else (60 - k) / 20),
    ],
)
def test_each_schedule_is_its_closed_form_in_every_step_after_a_warmup_in_steps(make, run, name, arguments, shape):
    found = rates(make, run, 60, name=name, warmup_steps=10, scheduler_specific_kwargs=arguments)
    assert found == pytest.approx(warmed(shape, 10), rel=1e-12, abs=1e-12)


def test_a_warmup_in_steps_and_one_in_a_ratio_contradict_each_other():
    from arctic_training.config import annotate

    config = HFSchedulerConfig(warmup_steps=3, warmup_ratio=0.2)
    annotate(config, given=frozenset({"warmup_steps", "warmup_ratio"}))
    assert dict(config.check())["warmup_steps"].startswith("contradicts warmup_ratio")


def test_a_warmup_that_does_not_fit_is_told_and_one_step_is_left(make, run):
    from types import SimpleNamespace

    said = []
    run = SimpleNamespace(trainer=run.trainer, config=run.config, warn=said.append)
    run.trainer.training_horizon = 3
    factory = HFSchedulerFactory(HFSchedulerConfig(warmup_steps=10), run)
    import torch

    factory.create_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    assert said == ["scheduler: a warm-up of 10 steps does not fit into 3: it takes 2"]


@pytest.mark.parametrize(
    ("name", "specific", "message"),
    [
        ("polynomial", {"lr_end": 2.0}, "must be smaller than initial lr"),
        ("wsd", {"decay_type": "cubic"}, "Unknown decay type: cubic"),
        ("cosine_with_min_lr", {"min_lr": 1e-5, "min_lr_rate": 0.1}, "Only one of min_lr or min_lr_rate"),
    ],
)
def test_arguments_that_transformers_refuses_are_a_fault_of_the_recipe(make, run, name, specific, message):
    from arctic_training.errors import RecipeError
    from arctic_training.recipe import load_recipe

    run.config.recipe = load_recipe({"scheduler": {"scheduler_specific_kwargs": specific}})
    with pytest.raises(RecipeError, match=rf"scheduler\.scheduler_specific_kwargs: .*{message}"):
        rates(make, run, 10, name=name, scheduler_specific_kwargs=specific)
