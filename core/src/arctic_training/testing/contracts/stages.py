"""Contracts of what a run builds once: tokenizers, models, losses, optimizers, schedules."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from arctic_training.loss import IGNORE_INDEX, LossSum
from arctic_training.testing.contracts.common import Contract, Recipe, differing, figures, first_batch, weights

if TYPE_CHECKING:
    import torch

    from arctic_training.run import Run

    RunRecipe = Callable[..., Run]
    BuildRun = Callable[..., AbstractContextManager[Run]]


class TokenizerFactoryContract(Contract):
    """What every tokenizer factory keeps."""

    @pytest.fixture
    def text(self) -> str:
        """Text that the tokenizer can write down and read back."""
        return "Seven times 7 is 49."

    def test_text_survives_being_tokenised(self, build_run: BuildRun, recipe: Recipe, text: str) -> None:
        with build_run(recipe) as run:
            tokenizer = run.trainer.tokenizer
            assert text in tokenizer.decode(tokenizer.encode(text))

    def test_the_same_recipe_gives_the_same_ids_and_fingerprint(
        self, build_run: BuildRun, recipe: Recipe, text: str
    ) -> None:
        with build_run(recipe) as run:
            factory = run.component("tokenizer")
            one, other = factory.create_tokenizer(), factory.create_tokenizer()
            assert list(one.encode(text)) == list(other.encode(text))
            assert factory.fingerprint(one) == factory.fingerprint(other)


class ModelFactoryContract(Contract):
    """What every factory of causal language models keeps."""

    def test_the_same_recipe_gives_the_same_weights(self, build_run: BuildRun, recipe: Recipe) -> None:
        states = []
        for _ in range(2):
            with build_run(recipe) as run:
                states.append(weights(run))
        assert not differing(*states)

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_its_weights_are_finite_and_of_the_recipes_precision(
        self, build_run: BuildRun, recipe: Recipe, dtype: str
    ) -> None:
        with build_run(recipe | {"model": recipe["model"] | {"dtype": dtype}}) as run:
            parameters = dict(run.trainer.model_unwrapped.named_parameters())
            assert {parameter.dtype for parameter in parameters.values()} == {run.config.model.torch_dtype}
            assert all(parameter.isfinite().all() for parameter in parameters.values())

    def test_a_prediction_does_not_see_the_tokens_behind_it(self, build_run: BuildRun, recipe: Recipe) -> None:
        import torch

        with build_run(recipe) as run, torch.no_grad():
            model = run.trainer.model_unwrapped.eval()
            ids = first_batch(run)["input_ids"][:1, :8]
            changed = ids.clone()
            changed[:, -1] = ids[:, 0] if ids[0, 0] != ids[0, -1] else ids[:, -1] - 1
            one, other = (model(input_ids=each, use_cache=False).logits[:, :-1] for each in (ids, changed))
            assert torch.allclose(one, other, atol=1e-5)

    def test_every_trained_parameter_gets_a_gradient(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            model = run.trainer.model_unwrapped.train()
            run.trainer.normalised_loss(first_batch(run), 1.0).backward()
            without = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
            assert not without


class LossFactoryContract(Contract):
    """What every loss of labelled tokens keeps."""

    def test_it_is_a_sum_with_its_weight(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            batch = first_batch(run)
            loss = _loss_of(run, batch)
            assert isinstance(loss, LossSum)
            assert loss.sum.ndim == 0
            assert float(loss.weight) == float(run.trainer.loss_weight(batch)) > 0

    def test_a_batch_costs_what_its_rows_cost_alone(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            batch = first_batch(run)
            rows = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(len(batch.rows))]
            alone = [_loss_of(run, row) for row in rows]
            whole = _loss_of(run, batch)
            assert whole.sum.item() == pytest.approx(sum(loss.sum.item() for loss in alone), rel=1e-5)
            assert float(whole.weight) == sum(float(loss.weight) for loss in alone)

    def test_padding_costs_nothing(self, build_run: BuildRun, recipe: Recipe) -> None:
        import torch.nn.functional as F

        with build_run(recipe) as run:
            batch = {name: tensor for name, tensor in first_batch(run).items() if name in ("input_ids", "labels")}
            fill = {"input_ids": 0, "labels": IGNORE_INDEX}
            padded = {name: F.pad(tensor, (0, 5), value=fill[name]) for name, tensor in batch.items()}
            assert _loss_of(run, padded).sum.item() == pytest.approx(_loss_of(run, batch).sum.item(), rel=1e-5)

    def test_nothing_to_train_costs_nothing(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            batch = first_batch(run)
            batch["labels"] = batch["labels"].fill_(IGNORE_INDEX)
            loss = _loss_of(run, batch)
            loss.sum.backward()
            assert (loss.sum.item(), float(loss.weight)) == (0, 0)
            gradients = [parameter.grad for parameter in run.trainer.model_unwrapped.parameters()]
            assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


class OptimizerFactoryContract(Contract):
    """What every optimizer factory keeps."""

    def test_it_has_every_trained_parameter_once(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            model, optimizer = _fresh_optimizer(run)
            held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
            trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
            assert sorted(held) == sorted(trained)

    def test_it_starts_at_the_recipes_learning_rate(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            _, optimizer = _fresh_optimizer(run)
            assert optimizer.param_groups[0]["lr"] == run.config.optimizer.learning_rate

    def test_a_step_moves_the_weights_and_one_at_rate_zero_does_not(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            model, optimizer = _fresh_optimizer(run)
            before = _state(model)
            _steps(model, optimizer, [0])
            moved = _state(model)
            assert differing(before, moved)
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            _steps(model, optimizer, [1])
            assert not differing(moved, _state(model))

    def test_it_goes_on_from_its_state(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            model, optimizer = _fresh_optimizer(run)
            _steps(model, optimizer, [0, 1])
            state = _through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            other_model, other = _fresh_optimizer(run)
            other_model.load_state_dict(state["model"])
            other.load_state_dict(state["optimizer"])
            _steps(model, optimizer, [2, 3])
            _steps(other_model, other, [2, 3])
            assert not differing(_state(model), _state(other_model))


class SchedulerFactoryContract(Contract):
    """What every scheduler factory keeps."""

    def test_every_rate_is_finite_and_some_are_above_zero(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            rates = _rates(run, run.trainer.training_horizon)
            assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
            assert max(rates) > 0

    def test_its_state_goes_on(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe | {"train_iters": 12}) as run:
            _, optimizer = _fresh_optimizer(run)
            scheduler = run.component("scheduler").create_scheduler(optimizer)
            first = _advance(optimizer, scheduler, 5)
            state = _through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
            _, optimizer = _fresh_optimizer(run)
            scheduler = run.component("scheduler").create_scheduler(optimizer)
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            assert first + _advance(optimizer, scheduler, 7) == _rates(run, 12)

    def test_it_counts_optimizer_steps_and_not_micro_batches(self, run_recipe: RunRecipe, recipe: Recipe) -> None:
        recipe = recipe | {"train_iters": 6, "micro_batch_size": 1}
        one, other = (run_recipe(recipe | {"gradient_accumulation_steps": steps}) for steps in (1, 3))
        assert figures(one, "learning_rate") == figures(other, "learning_rate")


def _loss_of(run: Run, batch: Any) -> LossSum:
    return run.trainer.loss_function(run.trainer.model, batch)


def _fresh_optimizer(run: Run) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = copy.deepcopy(run.trainer.model_unwrapped)
    return model, run.component("optimizer").create_optimizer(model)


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seeds: list[int]) -> None:
    """A step on drawn gradients for each seed."""
    import torch

    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
        optimizer.step()
        optimizer.zero_grad()


def _rates(run: Run, steps: int) -> list[float]:
    _, optimizer = _fresh_optimizer(run)
    return _advance(optimizer, run.component("scheduler").create_scheduler(optimizer), steps)


def _advance(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    """The rates of the next steps."""
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint would give back; only tensors and plain values come through."""
    import torch

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
