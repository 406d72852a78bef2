"""The optimizers: their steps against formulas written out here, their contracts, and where they cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from arctic_training.errors import PluginError, RecipeError
from arctic_training.testing import OptimizerFactoryContract, TrainerContract

TYPES = ("adafactor", "muon")


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "optimizers")


def optimizer_of(tiny_recipe, name, **keys):
    return tiny_recipe | {"optimizer": {"type": name, "learning_rate": 1e-2, **keys}}


@pytest.fixture(params=TYPES)
def recipe(request, tiny_recipe):
    return optimizer_of(tiny_recipe, request.param)


class TestOptimizers(OptimizerFactoryContract):
    @pytest.fixture(params=TYPES)
    def recipe(self, request, tiny_recipe):
        return optimizer_of(tiny_recipe, request.param)


@pytest.mark.slow
class TestTrainingWithThem(TrainerContract):
    @pytest.fixture(params=TYPES)
    def recipe(self, request, tiny_recipe):
        return optimizer_of(tiny_recipe, request.param, learning_rate=3e-2)


@pytest.mark.parametrize("module", ["", ".plugin", ".adafactor", ".muon", ".schedule_free", ".adamw_8bit"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, arctic_optimizers{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_orthogonalised_matrix_keeps_its_singular_vectors():
    from arctic_optimizers.muon_step import orthogonalised

    matrix = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diagonal(left.T @ orthogonalised(matrix, 5) @ right.T)
    assert ((values > 0.6) & (values < 1.3)).all()
    rest = orthogonalised(matrix, 5) - left @ torch.diag(values) @ right
    assert rest.abs().max() < 1e-12
    assert torch.equal(orthogonalised(matrix.T, 5), orthogonalised(matrix, 5).T)


def polynomial(matrix, steps):
    """The quintic iteration on the singular values themselves, which is what it does to a matrix."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_steps_matrices_and_adamw_the_rest_as_the_formulas_say(nesterov):
    from arctic_optimizers.muon_step import Muon

    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    matrix, vector = torch.nn.Parameter(drawn(6, 4)), torch.nn.Parameter(drawn(7))
    optimizer = Muon(
        [
            {"params": [matrix], "lr": 0.1, "weight_decay": 0.2, "orthogonal": True},
            {"params": [vector], "lr": 0.05, "weight_decay": 0.0},
        ],
        lr=0.1, betas=(0.9, 0.95), momentum=0.9, nesterov=nesterov, newton_schulz_steps=5,
    )  # fmt: skip
    w, m, v, first, second = (
        matrix.detach().clone(),
        drawn(6, 4) * 0,
        vector.detach().clone(),
        drawn(7) * 0,
        drawn(7) * 0,
    )
    for step in range(1, 5):
        matrix.grad, vector.grad = drawn(6, 4), drawn(7)
        m = 0.9 * m + 0.1 * matrix.grad
        update = 0.1 * matrix.grad + 0.9 * m if nesterov else m
        w = (1 - 0.1 * 0.2) * w - 0.1 * 0.2 * 6**0.5 * polynomial(update, 5)
        first = 0.9 * first + 0.1 * vector.grad
        second = 0.95 * second + 0.05 * vector.grad**2
        v = v - 0.05 * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        optimizer.step()
    torch.testing.assert_close(matrix.detach(), w, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(vector.detach(), v, rtol=1e-10, atol=1e-12)


def test_adafactor_steps_as_its_paper_says(build_run, tiny_recipe):
    """Algorithm 4 of arXiv:1804.04235, with torch's decoupled weight decay."""
    with build_run(optimizer_of(tiny_recipe, "adafactor", weight_decay=0.0)) as run:
        factory = run.component("optimizer")
        model = torch.nn.Linear(5, 3, bias=False).double()
        optimizer = factory.create_optimizer(model)
        generator = torch.Generator().manual_seed(2)
        weight = model.weight.detach().clone()
        rows, columns = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.float64)
        for step in range(1, 4):
            gradient = torch.randn(3, 5, dtype=torch.float64, generator=generator)
            model.weight.grad = gradient.clone()
            beta = 1 - step**-0.8
            rows = beta * rows + (1 - beta) * gradient.square().mean(1, keepdim=True)
            columns = beta * columns + (1 - beta) * gradient.square().mean(0, keepdim=True)
            update = gradient / (rows @ columns / rows.mean()).sqrt()
            rate = min(1e-2, step**-0.5) * max(1e-3, weight.square().mean().sqrt())
            weight = weight - rate * update / max(1.0, update.square().mean().sqrt())
            optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-6, atol=1e-9)


def test_embeddings_and_the_output_head_are_no_matrices_of_the_body():
    from arctic_optimizers.muon import body_matrices

    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(8, 4), "body": torch.nn.Linear(4, 4), "head": torch.nn.Linear(4, 8)}
    )
    model.get_output_embeddings = lambda: model["head"]
    assert body_matrices(model) == {id(model["body"].weight)}


def test_a_key_that_adafactor_does_not_have_is_refused(run_recipe, tiny_recipe):
    with pytest.raises(RecipeError, match="betas: has no effect on adafactor"):
        run_recipe(optimizer_of(tiny_recipe, "adafactor", betas=[0.9, 0.99]))


def test_eight_bits_say_at_once_that_they_need_an_accelerator(run_recipe, tiny_recipe):
    if torch.cuda.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(PluginError, match="8-bit kernels") as caught:
        run_recipe(optimizer_of(tiny_recipe, "adamw_8bit"))
    assert "adafactor" in caught.value.remedy


@pytest.mark.gpu
def test_eight_bits_train(run_recipe, tiny_recipe):
    pytest.importorskip("bitsandbytes")
    run = run_recipe(optimizer_of(tiny_recipe, "adamw_8bit", learning_rate=1e-3), "train_iters=20")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "train"]
    assert losses[-1] < losses[0]
