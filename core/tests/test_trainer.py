"""The loop, through whole runs of the tiny components."""

import itertools
import math

import pytest

from arctic_training import LossSum, hookimpl
from arctic_training.dataloader import DataLoader
from arctic_training.errors import ArcticError, RecipeError, TrainingStopped, UsageError
from arctic_training.scheduler import SchedulerFactory
from arctic_training.testing.tiny import TinyDataFactory, TinyTrainer

pytestmark = pytest.mark.usefixtures("arctic_home")


def train_losses(run):
    return [record["loss"] for record in run.metrics if record["kind"] == "train"]


def weights(run):
    return {name: tensor.clone() for name, tensor in run.trainer.model_unwrapped.state_dict().items()}


def largest_difference(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_a_run_equals_a_plain_loop_written_out(run_recipe, tiny_recipe):
    import torch
    import torch.nn.functional as F

    from arctic_training.testing.tiny_model import TinyModel

    run = run_recipe(tiny_recipe | {"train_iters": 30})
    torch.manual_seed(42)
    model = TinyModel(257, 16, 0.0)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.999)
    )
    rows = [row["input_ids"] for row in run.rows["train"]]
    losses = []
    loader = run.trainer.train_dataloader
    order = [int(number) for epoch in range(2) for number in loader.order(epoch)]
    for step in range(30):
        total, count = 0.0, 0
        for number in order[4 * step : 4 * step + 4]:
            ids = torch.as_tensor(rows[number]).long()[None]
            logits = model(ids).logits[0, :-1]
            total = total + F.cross_entropy(logits, ids[0, 1:], reduction="sum")
            count += ids.shape[1] - 1
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert train_losses(run) == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize(("accumulation", "micro_batch_size"), [(4, 4), (16, 1), (2, 8)])
def test_a_step_on_the_same_rows_is_the_same_for_every_split(run_recipe, tiny_recipe, accumulation, micro_batch_size):
    whole = run_recipe(tiny_recipe | {"train_iters": 1, "micro_batch_size": 16})
    split = run_recipe(
        tiny_recipe
        | {"train_iters": 1, "micro_batch_size": micro_batch_size, "gradient_accumulation_steps": accumulation}
    )
    assert largest_difference(weights(whole), weights(split)) < 1e-6
    assert train_losses(whole) == pytest.approx(train_losses(split), rel=1e-6)


def test_a_loss_that_is_a_mean_counts_as_much_as_one_that_is_a_sum(run_recipe, tiny_recipe, plugin_manager):
    class MeanTrainer(TinyTrainer):
        name = "mean"

        def loss(self, batch):
            total, weight = super().loss(batch)
            return total / weight

    plugin_manager.register_classes([MeanTrainer], "test")
    recipe = tiny_recipe | {"train_iters": 3, "gradient_accumulation_steps": 2}
    assert train_losses(run_recipe(recipe)) == pytest.approx(
        train_losses(run_recipe(recipe | {"type": "mean"})), rel=1e-6
    )


def test_the_last_step_takes_the_rows_that_are_left(run_recipe, tiny_recipe):
    run = run_recipe(tiny_recipe | {"micro_batch_size": 10, "gradient_accumulation_steps": 3})
    steps = [record for record in run.metrics if record["kind"] == "train"]
    assert len(steps) == 3
    assert sum(record["trained_tokens"] for record in steps) == sum(
        len(row["input_ids"]) - 1 for row in run.rows["train"]
    )


def test_padding_counts_as_no_token(run_recipe, tiny_recipe):
    run = run_recipe(tiny_recipe)
    tokens = sum(record["tokens"] for record in run.metrics if record["kind"] == "train")
    assert tokens == int(run.rows["train"].lengths().sum())


def test_every_step_is_logged_with_the_figures_of_the_contract(run_recipe, tiny_recipe):
    run = run_recipe(tiny_recipe | {"train_iters": 2})
    first, second = [record for record in run.metrics if record["kind"] == "train"]
    assert (first["step"], second["step"]) == (1, 2)
    assert {
        "epoch", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "step_seconds", "data_seconds",
        "tokens_per_second", "memory_bytes", "mfu",
    } <= first.keys()  # fmt: skip
    assert first["learning_rate"] == 1e-2
    assert first["mfu"] is None


def test_evaluation_weighs_every_row_by_its_tokens(run_recipe, tiny_recipe):
    recipe = tiny_recipe | {"eval_interval": 100, "evaluate_at_start": True, "train_iters": 1}
    recipe["data"] = recipe["data"] | {"eval_sources": [{"type": "tiny", "texts": ["a", "abc", "abcdefgh"]}]}
    one, two = (run_recipe(recipe | {"micro_batch_size": size}) for size in (1, 2))
    first, second = (next(r for r in run.metrics if r["kind"] == "eval" and r["step"] == 0) for run in (one, two))
    assert first["rows"] == second["rows"] == 3
    assert first["trained_tokens"] == second["trained_tokens"] == 0 + 2 + 7
    assert first["tokens"] == second["tokens"] == 1 + 3 + 8
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)


def test_the_horizon_follows_epochs_iterations_and_limits(run_recipe, tiny_recipe):
    def steps(**keys):
        return len(train_losses(run_recipe(tiny_recipe | {"micro_batch_size": 32} | keys)))

    assert steps(epochs=3) == 6
    assert steps(epochs=3, train_iters=4) == 4
    assert steps(min_iterations=5) == 5
    assert steps(epochs=3, exit_iteration=2) == 2
    assert steps(epochs=3, exit_iteration_this_run=1) == 1


def test_overfitting_the_first_batch_sees_only_its_rows(run_recipe, tiny_recipe, hook_recorder):
    run_recipe(tiny_recipe | {"overfit_first_batch": True, "train_iters": 5})
    rows = [call["batch"][0].rows for call in hook_recorder.of("arctic_step_start")]
    assert len(rows) == 5
    assert all(row == rows[0] for row in rows)


def test_a_loss_that_is_not_finite_ends_training_before_the_weights_take_it(run_recipe, tiny_recipe, plugin_manager):
    class Poisoned:
        @hookimpl(wrapper=True)
        def arctic_compute_loss(self, batch, trainer):
            total, weight = yield
            self.trainer = trainer
            return LossSum(total * (math.nan if trainer.global_step == 2 else 1.0), weight)

    poisoned = Poisoned()
    plugin_manager.register(poisoned, "poisoned")
    with pytest.raises(TrainingStopped, match="loss is nan at step 3"):
        run_recipe(tiny_recipe)
    assert all(parameter.isfinite().all() for parameter in poisoned.trainer.model_unwrapped.parameters())


def test_fp16_whose_gradients_are_never_finite_ends(run_recipe, tiny_recipe, plugin_manager):
    class Poisoned:
        @hookimpl(wrapper=True)
        def arctic_compute_loss(self, batch, trainer):
            loss = yield
            return loss._replace(sum=loss.sum + (trainer.model.output.bias * 0).sqrt().sum())

    plugin_manager.register(Poisoned(), "poisoned")
    with pytest.raises(TrainingStopped, match="gradient norm is nan at step 50"):
        run_recipe(tiny_recipe | {"model": {"dtype": "fp16"}, "train_iters": 60})


def test_the_kill_switch_stops_training_after_the_step(run_recipe, tiny_recipe, arctic_home):
    switch = arctic_home / "switch"
    switch.touch()
    with pytest.raises(TrainingStopped, match=r"kill switch .* after step 1"):
        run_recipe(tiny_recipe | {"kill_switch_path": str(switch)})


def test_rows_come_in_another_order_each_epoch_and_each_once(run_recipe, tiny_recipe, hook_recorder):
    run_recipe(tiny_recipe | {"epochs": 2, "micro_batch_size": 8})
    rows = [row for call in hook_recorder.of("arctic_step_start") for row in call["batch"][0].rows]
    first, second = rows[:64], rows[64:]
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second


def test_hooks_are_called_in_the_order_of_the_hookspecs(run_recipe, tiny_recipe, hook_recorder):
    from arctic_training import hookspecs

    tiny_recipe["checkpoint"] = {"output_dir": "out", "save_end_of_training": True}
    run_recipe(tiny_recipe | {"train_iters": 1})
    listed = [name for name in vars(hookspecs) if name.startswith("arctic_")]
    called = list(dict.fromkeys(hook_recorder.names))
    setup = called[: called.index("arctic_train_start")]
    order = [name for name in listed if name in setup]
    assert [name for name in setup if name in order] == order
    assert called.index("arctic_step_start") < called.index("arctic_compute_loss")
    assert called.index("arctic_compute_loss") < called.index("arctic_before_optimizer_step")
    assert called.index("arctic_before_optimizer_step") < called.index("arctic_step_end")
    assert called[-1] == "arctic_unconfigure"


def test_observers_of_the_end_run_when_training_fails(run_recipe, tiny_recipe, plugin_manager, hook_recorder):
    class Failing(TinyTrainer):
        name = "failing"

        def loss(self, batch):
            raise RuntimeError("no loss today")

    plugin_manager.register_classes([Failing], "test")
    with pytest.raises(RuntimeError, match="no loss today"):
        run_recipe(tiny_recipe | {"type": "failing"})
    (ended,) = hook_recorder.of("arctic_train_end")
    assert str(ended["error"]) == "no loss today"
    assert hook_recorder.names[-1] == "arctic_unconfigure"


def test_a_key_whose_feature_is_not_there_yet_stops_the_run_at_once(run_recipe, tiny_recipe):
    with pytest.raises(RecipeError, match="sequence_parallel_size: asks for sequence parallelism"):
        run_recipe(tiny_recipe | {"sequence_parallel_size": 2})


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bit_training_keeps_fp32_master_weights(run_recipe, tiny_recipe, dtype):
    tiny_recipe["model"] = {"dtype": dtype}
    run = run_recipe(tiny_recipe | {"epochs": 4})
    engine = run.trainer.engine
    assert {str(parameter.dtype) for parameter in run.trainer.model_unwrapped.parameters()} == {
        "torch.bfloat16" if dtype == "bf16" else "torch.float16"
    }
    assert {str(master.dtype) for master in engine.master_of.values()} == {"torch.float32"}
    losses = train_losses(run)
    assert losses[-1] < 0.6 * losses[0]


def masked_mean(model, batch):
    """A mean as many write it: 0 / 0 where nothing is trained, and so is its gradient."""
    import torch.nn.functional as F

    logits, labels = model(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), labels.clamp(min=0), reduction="none")
    mask = (labels != -100).float()
    return (losses * mask).sum() / mask.sum()


def test_a_mean_over_nothing_poisons_neither_loss_nor_gradient(run_recipe, tiny_recipe, plugin_manager):
    class MeanTrainer(TinyTrainer):
        name = "mean"

        def loss(self, batch):
            return masked_mean(self.model, batch)

    plugin_manager.register_classes([MeanTrainer], "test")
    tiny_recipe["data"]["sources"][0]["texts"] = ["abc def"] * 5
    recipe = tiny_recipe | {"micro_batch_size": 1, "gradient_accumulation_steps": 4}
    whole, split = run_recipe(recipe), run_recipe(recipe | {"type": "mean"})
    assert train_losses(split) == pytest.approx(train_losses(whole), rel=1e-6)
    assert largest_difference(weights(whole), weights(split)) < 1e-5


def test_weights_below_one_normalise_too(run_recipe, tiny_recipe, plugin_manager):
    class LightTrainer(TinyTrainer):
        name = "light"

        def loss(self, batch):
            total, weight = super().loss(batch)
            return LossSum(total * 1e-4, weight * 1e-4)

        def loss_weight(self, batch):
            return super().loss_weight(batch) * 1e-4

    plugin_manager.register_classes([LightTrainer], "test")
    one, two = (run_recipe(tiny_recipe | {"train_iters": 1, "type": name}) for name in ("tiny", "light"))
    assert train_losses(one) == pytest.approx(train_losses(two), rel=1e-6)


def test_a_loss_that_returns_nothing_is_told_so(run_recipe, tiny_recipe, plugin_manager):
    class Forgetful(TinyTrainer):
        name = "forgetful"

        def loss(self, batch):
            super().loss(batch)

    plugin_manager.register_classes([Forgetful], "test")
    with pytest.raises(ArcticError, match=r"loss of 'forgetful' \(.*\) returned nothing"):
        run_recipe(tiny_recipe | {"type": "forgetful"})


def test_a_subclass_may_take_the_step_by_the_batch_alone(run_recipe, tiny_recipe, plugin_manager):
    class Around(TinyTrainer):
        name = "around"

        def step(self, batch):
            super().step(batch)

    class Anew(TinyTrainer):
        name = "anew"

        def step(self, batch):
            for micro_batch in batch:
                self.backward(self.loss(micro_batch).sum / 100)
            self.engine.step()

    plugin_manager.register_classes([Around, Anew], "test")
    run = run_recipe(tiny_recipe | {"type": "around", "train_iters": 2})
    assert train_losses(run) == train_losses(run_recipe(tiny_recipe | {"train_iters": 2}))
    assert run_recipe(tiny_recipe | {"type": "anew", "train_iters": 2}).trainer.global_step == 2


def test_a_dataloader_that_counts_more_than_it_gives_ends_training(run_recipe, tiny_recipe, plugin_manager):
    class Short(TinyDataFactory):
        name = "short"

        def create_dataloader(self, dataset, split):
            class Loader(DataLoader):
                def epoch(self, epoch, position=None):
                    start = (position or {}).get("row", 0) // self.global_batch_size
                    return itertools.islice(super().epoch(epoch, position), max(0, 3 - start))

            return Loader(dataset, self.collate, micro_batch_size=4)

    class ShortTrainer(TinyTrainer):
        name = "short"
        data_factory: Short

    plugin_manager.register_classes([Short, ShortTrainer], "test")
    with pytest.raises(ArcticError, match="gave no batch from step 3 of epoch 0 on, and counts 16"):
        run_recipe(tiny_recipe | {"type": "short"})


def test_ending_early_does_not_bend_the_schedule(run_recipe, tiny_recipe, plugin_manager):
    class Falling(SchedulerFactory):
        name = "falling"

        def create_scheduler(self, optimizer):
            import torch

            horizon = self.training_horizon
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / horizon)

    plugin_manager.register_classes([Falling], "test")
    recipe = tiny_recipe | {"train_iters": 8, "scheduler": {"type": "falling"}}
    whole, ended = (
        [record["learning_rate"] for record in run_recipe(recipe | keys).metrics if record["kind"] == "train"]
        for keys in ({}, {"exit_iteration": 3})
    )
    assert ended == whole[:3]


def test_evaluation_leaves_the_random_numbers_of_training_alone(run_recipe, tiny_recipe, plugin_manager):
    class Noisy(TinyTrainer):
        name = "noisy"

        def loss(self, batch):
            import torch

            torch.rand(3)
            return super().loss(batch)

    plugin_manager.register_classes([Noisy], "test")
    recipe = tiny_recipe | {"type": "noisy", "train_iters": 4, "model": {"dtype": "fp32", "dropout": 0.3}}
    alone = run_recipe(recipe)
    data = recipe["data"] | {"eval_sources": [{"type": "tiny", "texts": ["a", "abc"]}]}
    assert train_losses(run_recipe(recipe | {"data": data, "eval_interval": 1})) == train_losses(alone)


def test_metrics_are_plain_json_whatever_a_plugin_adds(run_recipe, tiny_recipe, plugin_manager):
    import json

    class Adding:
        @hookimpl
        def arctic_step_end(self, step, metrics, trainer):
            import numpy as np
            import torch

            metrics |= {"tensor": torch.tensor(0.5), "array": np.float32(0.25), "ratio": math.nan, "parts": [math.inf]}

    plugin_manager.register(Adding(), "adding")
    run = run_recipe(tiny_recipe | {"train_iters": 1})
    line = (run.run_dir / "metrics.jsonl").read_text().splitlines()[0]
    record = json.loads(line, parse_constant=pytest.fail)
    assert [record[name] for name in ("tensor", "array", "ratio", "parts")] == [0.5, 0.25, None, [None]]


def test_fp16_without_master_weights_is_refused(run_recipe, tiny_recipe):
    engine = {"type": "torch", "master_weights": False}
    run_recipe(tiny_recipe | {"model": {"dtype": "bf16"}, "engine": engine, "train_iters": 1})
    with pytest.raises(UsageError, match="fp16 cannot train without master weights"):
        run_recipe(tiny_recipe | {"model": {"dtype": "fp16"}, "engine": engine})


class Tidy:
    """Notes when it is set up and tidied up, and fails at the latter if it is told to."""

    def __init__(self, name, notes, error=None):
        self.name, self.notes, self.error = name, notes, error

    @hookimpl
    def arctic_configure(self, run):
        self.notes.append(f"{self.name} up")

    @hookimpl
    def arctic_unconfigure(self, run):
        self.notes.append(f"{self.name} down")
        if self.error:
            raise self.error


def test_all_tidy_up_in_reverse_even_if_one_cannot(run_recipe, tiny_recipe, plugin_manager):
    notes = []
    for name, error in (("a", None), ("b", OSError("no")), ("c", None)):
        plugin_manager.register(Tidy(name, notes, error), name)
    with pytest.raises(OSError, match="no"):
        run_recipe(tiny_recipe | {"train_iters": 1})
    assert notes == ["c up", "b up", "a up", "a down", "b down", "c down"]


def test_tidying_up_does_not_hide_the_error_that_ended_the_run(run_recipe, tiny_recipe, plugin_manager):
    class Failing(TinyTrainer):
        name = "failing"

        def loss(self, batch):
            raise RuntimeError("no loss today")

    plugin_manager.register_classes([Failing], "test")
    plugin_manager.register(Tidy("a", [], OSError("no")), "a")
    with pytest.raises(RuntimeError, match="no loss today"):
        run_recipe(tiny_recipe | {"type": "failing"})


def test_a_run_directory_that_cannot_be_written_is_told_with_the_remedy(run_recipe, tiny_recipe, arctic_home):
    (arctic_home / "file").touch()
    with pytest.raises(UsageError, match=r"log cannot be written: .*\n  set run_dir"):
        run_recipe(tiny_recipe | {"run_dir": str(arctic_home / "file/run")})


def test_runs_that_start_in_the_same_second_have_directories_of_their_own(tiny_recipe, plugin_manager):
    from arctic_training.recipe import load_recipe
    from arctic_training.resolve import resolve
    from arctic_training.run_record import choose_run_dir

    config = resolve(load_recipe(tiny_recipe), plugin_manager)
    assert len({choose_run_dir(config) for _ in range(4)}) == 4


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda loss: None, "returned nothing"),
        (lambda loss: 0.5, "returned 0.5"),
        (lambda loss: loss.sum.expand(2), r"a tensor of shape \(2,\)"),
        (lambda loss: loss.sum.detach(), "has no gradient"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_told_with_its_trainer(
    run_recipe, tiny_recipe, plugin_manager, returned, said
):
    class Odd(TinyTrainer):
        name = "odd"

        def loss(self, batch):
            return returned(super().loss(batch))

    plugin_manager.register_classes([Odd], "test")
    with pytest.raises(ArcticError, match=rf"loss of 'odd' \(.*test_trainer.py:\d+\).*{said}"):
        run_recipe(tiny_recipe | {"type": "odd"})


def test_a_loss_sum_can_be_scaled_and_added_to():
    import torch

    loss = LossSum(torch.tensor(6.0), 3)
    assert loss * 2 == 2 * loss == LossSum(torch.tensor(12.0), 3)
    assert loss / 2 == LossSum(torch.tensor(3.0), 3)
    assert loss + loss == LossSum(torch.tensor(12.0), 3)
    assert loss + 0.5 == 0.5 + loss == LossSum(torch.tensor(7.5), 3)  # a term that is a mean over the 3


@pytest.mark.parametrize(
    ("batch", "said"), [(2, "1 step of 2 rows\n"), (1000, "1 step of {} rows\n"), (1, "1 step of 1 row\n")]
)
def test_the_rows_of_a_step_are_said_as_many_as_there_are(run_recipe, tiny_recipe, capsys, batch, said):
    run = run_recipe(tiny_recipe | {"train_iters": 1, "micro_batch_size": batch})
    printed = capsys.readouterr().err
    assert "training: " + said.format(len(run.rows["train"])) in printed
    assert "done: 1 step;" in printed
