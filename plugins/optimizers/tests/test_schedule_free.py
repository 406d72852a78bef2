"""Schedule-free against its paper's formula, Muon against torch's, and the average in evaluation and saves."""

from __future__ import annotations

import pytest

from arctic_training.errors import PluginError, RecipeError
from arctic_training.hookspecs import hookimpl
from arctic_training.testing import OptimizerFactoryContract
from arctic_training.testing.contracts.common import KeepsWeights, differing, figures, last_weights

RATE, DECAY, STEPS = 0.02, 0.1, 6


@pytest.fixture
def problem():
    """A matrix, a vector, and gradients of both for each step."""
    import torch

    draw = torch.Generator().manual_seed(0)
    shapes = {"matrix": (5, 3), "vector": (4,)}
    weights = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    gradients = [
        {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(STEPS)
    ]
    return weights, gradients


def trained(optimizer_of, problem, rates=None):
    """The weights after each step."""
    import torch

    weights, gradients = problem
    parameters = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
    optimizer = optimizer_of(parameters)
    found = []
    for number, step in enumerate(gradients):
        for name, gradient in step.items():
            parameters[name].grad = gradient.clone()
        for group in optimizer.param_groups if rates else ():
            group["lr"] = rates[number]
        optimizer.step()
        found.append({name: parameter.detach().numpy().copy() for name, parameter in parameters.items()})
    return found, parameters, optimizer


def assert_same(found, expected, tolerance=1e-12):
    import numpy as np

    for ours, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            assert np.abs(ours[name] - value).max() < tolerance, name


@pytest.mark.parametrize("rates", [[RATE] * STEPS, [0.0, 0.01, 0.02, 0.02, 0.01, 0.005]])
def test_schedule_free_is_the_papers(problem, rates):
    """Defazio et al., 2024, arXiv:2405.15682, algorithm 1: x, y and z each by itself."""
    import numpy as np

    from arctic_optimizers.schedule_free_step import ScheduleFreeAdamW

    def make(parameters):
        return ScheduleFreeAdamW(
            [{"params": list(parameters.values()), "weight_decay": DECAY}], lr=RATE, betas=(0.9, 0.99)
        )

    found, parameters, optimizer = trained(make, problem, rates)
    expected, averages = [], {}
    points = {name: [each.numpy().copy()] * 3 + [np.zeros(each.shape)] for name, each in problem[0].items()}
    weights = 0.0
    for t, (step, rate) in enumerate(zip(problem[1], rates, strict=True), 1):
        weights += rate**2
        share = rate**2 / weights if weights else 0.0
        for name, (x, y, z, v) in points.items():
            g = step[name].numpy()
            v = 0.99 * v + 0.01 * g**2
            z = z - rate * (g / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + DECAY * y)
            x = (1 - share) * x + share * z
            points[name] = [x, 0.1 * z + 0.9 * x, z, v]
            averages[name] = x
        expected.append({name: point[1] for name, point in points.items()})
    assert_same(found, expected)
    optimizer.use_average()
    optimizer.use_average()  # a second time changes nothing
    assert_same([{name: each.detach().numpy() for name, each in parameters.items()}], [averages])
    optimizer.use_training_point()
    assert all((parameters[name].detach().numpy() == value).all() for name, value in found[-1].items())


def test_muon_is_torchs_where_torch_computes_in_the_same_precision(problem):
    import torch

    from arctic_optimizers import muon_step

    weights = {"matrix": problem[0]["matrix"].float()}
    gradients = [{"matrix": step["matrix"].float()} for step in problem[1]]

    def ours(parameters):
        groups = [{"params": [parameters["matrix"]], "orthogonal": True, "weight_decay": DECAY}]
        keys = {"betas": (0.9, 0.99), "momentum": 0.95, "nesterov": True, "newton_schulz_steps": 5}
        return muon_step.Muon(groups, lr=RATE, **keys)

    def theirs(parameters):
        return torch.optim.Muon(list(parameters.values()), lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")

    found, expected = (trained(make, (weights, gradients))[0] for make in (ours, theirs))
    assert_same(found, expected, 0.02 * RATE)  # torch's iteration runs in bf16


KEEP = {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 3}


@pytest.fixture(autouse=True)
def only_this_plugin(monkeypatch):
    monkeypatch.setenv("ARCTIC_PLUGINS", "optimizers")


def with_optimizer(recipe, name, **keys):
    keys |= {"adamw": ["output.*"]} if name == "muon" else {}
    return recipe | {"engine": {"type": "torch"}, "optimizer": {"type": name, "learning_rate": 1e-2} | keys}


class TestScheduleFree(OptimizerFactoryContract):
    @pytest.fixture
    def recipe(self, tiny_recipe):
        return with_optimizer(tiny_recipe, "schedule_free")


@pytest.mark.parametrize(("name", "dtype"), [("adafactor", "fp32"), ("muon", "bf16"), ("schedule_free", "bf16")])
def test_training_goes_on_exactly_also_where_groups_differ(run_recipe, tiny_recipe, plugin_manager, name, dtype):
    plugin_manager.register(KeepsWeights(), "keeps weights")
    groups = [{"match": "hidden.*", "learning_rate_scale": 0.5}]
    recipe = with_optimizer(tiny_recipe, name, groups=groups) | {"train_iters": 6, "model": {"dtype": dtype}}
    whole = run_recipe(recipe)
    run_recipe(recipe | {"checkpoint": KEEP, "exit_iteration_this_run": 3})
    second = run_recipe(recipe | {"checkpoint": KEEP})
    assert second.first_step == 3
    assert figures(second, "loss")[-3:] == figures(whole, "loss")[3:]
    assert not differing(last_weights(whole), last_weights(second))
    recipe["optimizer"]["groups"] = [{"match": "hidden.weight", "learning_rate_scale": 0.5}, *groups]
    third = run_recipe(recipe | {"resume": "kept/global_step_3", "checkpoint": []})
    assert figures(third, "loss")[-3:] == figures(whole, "loss")[3:]


class SeesWeights:
    """What the model holds where it is evaluated and saved."""

    def __init__(self):
        self.evaluated, self.saved, self.trained = [], [], []

    @hookimpl(trylast=True)
    def arctic_evaluate_start(self, trainer):
        self.evaluated.append(self._weights(trainer))

    @hookimpl(trylast=True)
    def arctic_before_save(self, trainer):
        self.saved.append(self._weights(trainer))

    @hookimpl
    def arctic_step_start(self, trainer):
        self.trained.append(self._weights(trainer))

    def _weights(self, trainer):
        return {name: tensor.detach().clone() for name, tensor in trainer.model_unwrapped.state_dict().items()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_schedule_free_evaluates_and_saves_the_average_and_trains_on_as_if_it_had_not(
    run_recipe, tiny_recipe, plugin_manager, dtype
):
    import torch

    recipe = with_optimizer(tiny_recipe, "schedule_free") | {"model": {"dtype": dtype}, "train_iters": 4}
    plain = run_recipe(recipe)
    seen = SeesWeights()
    plugin_manager.register(seen, "sees weights")
    data = recipe["data"] | {"eval_sources": recipe["data"]["sources"]}
    keep = {"output_dir": "kept", "save_every_n_steps": 2}
    run = run_recipe(recipe | {"data": data, "eval_interval": 2, "checkpoint": keep})
    assert figures(run, "loss") == figures(plain, "loss")
    assert differing(seen.evaluated[0], seen.trained[2])  # x is not y
    assert not differing(seen.evaluated[0], seen.saved[0])
    state = torch.load("kept/global_step_2/engine.pt", weights_only=True)
    assert not differing(state["model"], seen.saved[0])


def test_patterns_name_further_matrices_that_adamw_steps(build_run, tiny_recipe):
    with build_run(with_optimizer(tiny_recipe, "muon")) as run:
        names = {id(parameter): name for name, parameter in run.trainer.model_unwrapped.named_parameters()}
        groups = run.trainer.optimizer.param_groups
        assert [names[id(each)] for g in groups if g["orthogonal"] for each in g["params"]] == ["hidden.weight"]


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"type": "adafactor", "clip_threshold": 0.5}, "clip_threshold: expected a number of at least 1"),
        ({"type": "schedule_free", "betas": [0, 0.99]}, "betas: the first is the weight of the average"),
        ({"type": "muon", "adamw": ["outptu.*"]}, r"optimizer\.adamw: the pattern 'outptu"),
    ],
)
def test_what_an_optimizer_cannot_take_is_refused(run_recipe, tiny_recipe, optimizer, message):
    with pytest.raises(RecipeError, match=message):
        run_recipe(tiny_recipe | {"engine": {"type": "torch"}, "optimizer": optimizer})


def test_8_bits_without_a_gpu_end_the_run_before_data_is_prepared(run_recipe, tiny_recipe, hook_recorder):
    import torch

    from arctic_optimizers.adamw_8bit import AdamW8bitFactory

    with pytest.raises(PluginError, match="needs bitsandbytes"):
        AdamW8bitFactory.refuse_without_kernels("cuda", "recipe.yaml:3:5")
    if not torch.cuda.is_available():
        with pytest.raises(PluginError, match="on an accelerator, not on a cpu") as refusal:
            run_recipe(with_optimizer(tiny_recipe, "adamw_8bit"))
        assert refusal.value.exit_code == 3
        assert "arctic_load_data" not in hook_recorder.names
