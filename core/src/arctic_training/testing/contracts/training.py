"""Contracts of what trains and keeps: trainers, engines, checkpoint engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arctic_training.errors import CheckpointError, TrainingStopped
from arctic_training.hookspecs import hookimpl
from arctic_training.loss import LossSum
from arctic_training.manifest import verify
from arctic_training.testing.contracts.common import (
    Contract,
    KeepsWeights,
    Recipe,
    differing,
    figures,
    first_batch,
    last_weights,
    weights,
    with_data,
)

if TYPE_CHECKING:
    from arctic_training.plugins import PluginManager
    from arctic_training.run import Run

    RunRecipe = Callable[..., Run]
    BuildRun = Callable[..., AbstractContextManager[Run]]

SAME = 1e-4
"""Relative difference of figures that were added up in another order, in fp32."""


class _TrainingContract(Contract):
    """What holds for a trainer on any engine, and for an engine under any trainer."""

    @pytest.mark.parametrize(("micro_batch_size", "accumulation"), [(2, 2), (1, 4)])
    def test_a_step_does_not_depend_on_the_split_into_micro_batches(
        self, run_recipe: RunRecipe, recipe: Recipe, micro_batch_size: int, accumulation: int
    ) -> None:
        recipe = recipe | {"train_iters": 2}
        whole = run_recipe(recipe | {"micro_batch_size": 4, "gradient_accumulation_steps": 1})
        split = run_recipe(recipe | {"micro_batch_size": micro_batch_size, "gradient_accumulation_steps": accumulation})
        for figure in ("trained_tokens", "loss", "grad_norm"):
            assert figures(split, figure) == pytest.approx(figures(whole, figure), rel=SAME)

    def test_training_goes_on_exactly_where_it_stopped(self, run_recipe: RunRecipe, recipe: Recipe) -> None:
        recipe = recipe | {"train_iters": 4, "checkpoint": []}
        keep = {"output_dir": "contract-checkpoints", "auto_resume": True, "save_every_n_steps": 2}
        whole = run_recipe(recipe)
        first = run_recipe(recipe | {"checkpoint": keep, "exit_iteration_this_run": 2})
        second = run_recipe(recipe | {"checkpoint": keep})
        assert second.first_step == 2
        assert figures(first, "loss") + figures(second, "loss") == figures(whole, "loss")
        assert not differing(last_weights(second), last_weights(whole))


class TrainerContract(_TrainingContract):
    """What every trainer keeps. Its recipe says which components it works with."""

    def test_the_same_recipe_trains_the_same_model(self, run_recipe: RunRecipe, recipe: Recipe) -> None:
        one, other = (run_recipe(recipe | {"train_iters": 2}) for _ in range(2))
        assert figures(one, "loss") == figures(other, "loss")
        assert not differing(last_weights(one), last_weights(other))

    def test_it_learns_a_batch_by_heart(self, run_recipe: RunRecipe, recipe: Recipe) -> None:
        run = run_recipe(
            recipe
            | {"train_iters": 20, "overfit_first_batch": True}
            | {"optimizer": {"type": "adamw", "learning_rate": 1e-2}, "scheduler": {"type": "constant"}}
        )
        losses = figures(run, "loss")
        assert losses[-1] < losses[0]

    def test_evaluation_leaves_training_as_it_is(self, run_recipe: RunRecipe, recipe: Recipe) -> None:
        recipe = with_data(recipe, eval_sources=[], train_eval_split=[1.0, 0.0]) | {"train_iters": 3}
        recipe.pop("evaluate_at_start", None)
        plain = run_recipe(recipe | {"eval_interval": 0})
        evaluated = run_recipe(
            with_data(recipe, eval_sources=recipe["data"]["sources"]) | {"eval_interval": 1, "evaluate_at_start": True}
        )
        assert figures(evaluated, "loss") == figures(plain, "loss")
        assert not differing(last_weights(evaluated), last_weights(plain))

    def test_a_micro_batch_with_nothing_to_train_adds_nothing(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            batch = first_batch(run)
            if "labels" in batch:
                batch["labels"] = batch["labels"].fill_(-100)
            batch.rows = []
            loss = run.trainer.normalised_loss(batch, 1.0)
            loss.backward()
            assert loss.item() == 0
            gradients = [parameter.grad for parameter in run.trainer.model_unwrapped.parameters()]
            assert all(gradient is None or not gradient.any() for gradient in gradients)


class EngineContract(_TrainingContract):
    """What every engine keeps. Its recipe trains in one process."""

    def test_it_trains_as_the_torch_engine_does(self, run_recipe: RunRecipe, recipe: Recipe) -> None:
        recipe = recipe | {"train_iters": 4, "gradient_accumulation_steps": 2}
        ours = run_recipe(recipe)
        theirs = run_recipe({**recipe, "engine": {"type": "torch"}, "deepspeed": {}})
        for figure in ("learning_rate", "loss", "grad_norm"):
            assert figures(ours, figure) == pytest.approx(figures(theirs, figure), rel=SAME)

    def test_it_gives_the_whole_model_by_its_own_names(self, build_run: BuildRun, recipe: Recipe) -> None:
        with build_run(recipe) as run:
            shapes = {
                name: getattr(tensor, "ds_shape", tensor.shape)
                for name, tensor in run.trainer.model_unwrapped.state_dict(keep_vars=True).items()
            }
            given = dict(run.trainer.engine.full_parameters())
            assert {name: tensor.shape for name, tensor in given.items()} == shapes
            assert {tensor.device.type for tensor in given.values()} == {"cpu"}

    def test_a_step_that_is_not_finite_never_reaches_the_weights(
        self, run_recipe: RunRecipe, recipe: Recipe, plugin_manager: PluginManager
    ) -> None:
        keeper = KeepsWeights()
        plugin_manager.register(_Poison(), "poison")
        plugin_manager.register(keeper, "keeper")
        with pytest.raises(TrainingStopped, match="step 2"):
            run_recipe(recipe | {"train_iters": 3})
        assert not [name for name, tensor in keeper.kept.items() if not tensor.isfinite().all()]

    def test_a_skipped_step_changes_nothing_that_comes_after_it(
        self, run_recipe: RunRecipe, recipe: Recipe, plugin_manager: PluginManager
    ) -> None:
        plugin_manager.register(_Poison(), "poison")
        recipe = recipe | {"train_iters": 4, "on_nonfinite": "skip"}
        ours = run_recipe(recipe)
        theirs = run_recipe({**recipe, "engine": {"type": "torch"}, "deepspeed": {}})
        for figure in ("learning_rate", "loss", "grad_norm"):
            assert figures(ours, figure)[2:] == pytest.approx(figures(theirs, figure)[2:], rel=SAME)


class _Poison:
    """Makes the loss of the second step NaN."""

    @hookimpl(wrapper=True)
    def arctic_compute_loss(self, batch: Any, trainer: Any) -> Generator[None, LossSum, LossSum]:
        total, weight = yield
        return LossSum(total * (math.nan if trainer.global_step == 1 else 1.0), weight)


class CheckpointEngineContract(Contract):
    """What every checkpoint engine keeps. Its recipe has one checkpoint entry."""

    @pytest.fixture
    def recipe(self, tiny_recipe: Recipe) -> Recipe:
        """A recipe whose ``checkpoint`` is one mapping that selects the component under test."""
        return tiny_recipe | {"checkpoint": {"output_dir": "contract-checkpoints"}}

    def test_it_writes_only_inside_its_directory(self, build_run: BuildRun, recipe: Recipe, arctic_home: Path) -> None:
        with build_run(recipe) as run:
            (engine,) = run.trainer.checkpoint_engines
            engine.checkpoint_dir = arctic_home / "given"
            engine.checkpoint_dir.mkdir()
            before = _files(arctic_home, run.run_dir / "logs")
            engine.save(run.trainer.model)
            written = _files(arctic_home, run.run_dir / "logs") - before
        assert written, "nothing was written"
        assert not {path for path, _ in written if not path.is_relative_to(arctic_home / "given")}

    def test_what_it_writes_becomes_a_checkpoint_that_verifies(
        self, run_recipe: RunRecipe, recipe: Recipe, arctic_home: Path
    ) -> None:
        run_recipe(_saving(recipe, save_end_of_training=True) | {"train_iters": 2})
        (path,) = (arctic_home / "contract-checkpoints").iterdir()
        assert path.name == "global_step_2"
        assert verify(path) is None

    def test_saving_leaves_training_as_it_is(self, run_recipe: RunRecipe, recipe: Recipe) -> None:
        recipe = recipe | {"train_iters": 3}
        saved, plain = run_recipe(_saving(recipe, save_every_n_steps=1)), run_recipe(_saving(recipe, enabled=False))
        assert figures(saved, "loss") == figures(plain, "loss")
        assert not differing(last_weights(saved), last_weights(plain))

    def test_it_loads_what_it_saved_or_refuses(
        self, run_recipe: RunRecipe, build_run: BuildRun, recipe: Recipe
    ) -> None:
        saved = run_recipe(_saving(recipe, save_end_of_training=True) | {"train_iters": 2})
        again = _saving(recipe, auto_resume=True) | {"train_iters": 4}
        if not saved.trainer.checkpoint_engines[0].resumes:
            with pytest.raises(CheckpointError, match="cannot go on"), build_run(again):
                pass
            return
        with build_run(again) as run:
            assert run.first_step == 2
            assert not differing(weights(run), last_weights(saved))


def _saving(recipe: Recipe, **keys: Any) -> Recipe:
    return recipe | {"checkpoint": recipe["checkpoint"] | {"output_dir": "contract-checkpoints"} | keys}


def _files(directory: Path, left_out: Path) -> set[tuple[Path, int]]:
    """Every file with the time of its last change."""
    return {
        (path, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file() and not path.is_relative_to(left_out)
    }
