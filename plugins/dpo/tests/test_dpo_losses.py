"""Each loss against its formula as the paper has it, in float64: value and gradient."""

from __future__ import annotations

import math
import typing

import pytest
import torch

from arctic_dpo.config import LossName
from arctic_dpo.losses import LOSSES

BETA, SMOOTHING, GAMMA, ALPHA, LAMBDA, TAU, MEAN = 0.3, 0.1, 0.7, 0.6, 0.4, 0.5, 0.25
CHOSEN = [-1.5, -0.2, -3.0, -0.9]
REJECTED = [-0.7, -0.9, -8.0, -0.9]
CHOSEN_MEAN = [-0.5, -0.1, -0.3, -0.09]
KEYS = {
    "beta": BETA,
    "label_smoothing": SMOOTHING,
    "simpo_gamma": GAMMA,
    "cpo_alpha": ALPHA,
    "orpo_lambda": LAMBDA,
    "discopop_tau": TAU,
    "mean_reward": MEAN,
}


def s(x):
    return 1 / (1 + math.exp(-x))


def log_odds(x):
    return math.log(math.exp(x) / (1 - math.exp(x)))


def both_ways(x):
    return -(1 - SMOOTHING) * math.log(s(x)) - SMOOTHING * math.log(s(-x))


def kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


FORMULAS = {
    "sigmoid": lambda c, r, _: both_ways(BETA * (c - r)),  # arXiv:2305.18290, with exchanged labels
    "hinge": lambda c, r, _: max(0.0, 1 - BETA * (c - r)),  # arXiv:2305.10425, 2309.06657
    "ipo": lambda c, r, _: (c - r - 1 / (2 * BETA)) ** 2,  # arXiv:2310.12036
    "robust": lambda c, r, _: (
        (-(1 - SMOOTHING) * math.log(s(BETA * (c - r))) + SMOOTHING * math.log(s(BETA * (r - c)))) / (1 - 2 * SMOOTHING)
    ),  # arXiv:2403.00409
    "bco_pair": lambda c, r, _: -math.log(s(BETA * c - MEAN)) - math.log(s(-(BETA * r - MEAN))),  # arXiv:2404.04656
    "apo_zero": lambda c, r, _: (1 - s(BETA * c)) + s(BETA * r),  # arXiv:2408.06266
    "apo_down": lambda c, r, _: s(BETA * c) + (1 - s(BETA * (c - r))),  # arXiv:2408.06266
    "sppo_hard": lambda c, r, _: (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,  # arXiv:2405.00675
    "exo_pair": lambda c, r, _: kl(s(BETA * (c - r)), 1 - SMOOTHING),  # arXiv:2402.00856
    "discopop": lambda c, r, _: (
        -math.log(s(BETA * (c - r))) * (1 - s(BETA * (c - r) / TAU))
        + math.exp(-BETA * (c - r)) * s(BETA * (c - r) / TAU)
    ),  # arXiv:2406.08414
    "orpo": lambda c, r, _: -c - LAMBDA * math.log(s(log_odds(c) - log_odds(r))),  # arXiv:2403.07691
    "simpo": lambda c, r, _: both_ways(BETA * c - BETA * r - GAMMA),  # arXiv:2405.14734
    "cpo": lambda c, r, m: both_ways(BETA * (c - r)) - ALPHA * m,  # arXiv:2401.08417
}


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_are_those_of_the_formula(name):
    chosen, rejected, mean = (
        torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (CHOSEN, REJECTED, CHOSEN_MEAN)
    )
    loss = LOSSES[name]
    keys = {key: mean if key == "chosen_mean" else KEYS[key] for key in loss.takes}
    found = loss.function(chosen, rejected, **keys)
    found.sum().backward()
    formula, step = FORMULAS[name], 1e-6
    for pair, values in enumerate(zip(CHOSEN, REJECTED, CHOSEN_MEAN, strict=True)):
        assert found[pair].item() == pytest.approx(formula(*values), rel=1e-6, abs=1e-9)
        for number, tensor in enumerate((chosen, rejected, mean)):
            more, less = ([value + sign * step * (number == n) for n, value in enumerate(values)] for sign in (1, -1))
            slope = (formula(*more) - formula(*less)) / (2 * step)
            gradient = 0.0 if tensor.grad is None else tensor.grad[pair].item()
            assert gradient == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_every_loss_that_a_recipe_may_name_is_there_and_has_a_formula_here():
    assert set(typing.get_args(LossName)) == set(LOSSES) == set(FORMULAS)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"exo_pair"}))
def test_answers_that_nobody_can_tell_apart_or_that_are_far_apart_give_finite_gradients(name):
    chosen = torch.tensor([0.0, -1e-12, -400.0, -1e-3], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, -1e-12, -1e-3, -400.0], dtype=torch.float64, requires_grad=True)
    keys = {key: chosen if key == "chosen_mean" else KEYS[key] for key in LOSSES[name].takes}
    loss = LOSSES[name].function(chosen, rejected, **keys)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()
