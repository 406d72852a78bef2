"""The training loop, read from top to bottom: train, epoch, step, loss.

One optimizer step on the same rows is the same step for every split into ranks, accumulation steps, micro-batches and
packs: each loss is a sum, divided by the number of trained tokens of the whole global batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_training import nonfinite
from arctic_training._exports import lazy_attribute
from arctic_training.checkpoint import CheckpointEngine
from arctic_training.component import Component, source_of
from arctic_training.data import DataFactory
from arctic_training.dataloader import Batch
from arctic_training.distributed import sum_over_ranks
from arctic_training.errors import ArcticError
from arctic_training.loss import Figures, LossesBySource, LossFactory, LossSum, trained_tokens
from arctic_training.model import ModelFactory
from arctic_training.optimizer import OptimizerFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.state import Metrics, TrainState
from arctic_training.tokenizer import TokenizerFactory
from arctic_training.trainer_config import LoggerConfig as LoggerConfig
from arctic_training.trainer_config import TrainerConfig as TrainerConfig

if TYPE_CHECKING:
    import torch

    from arctic_training.dataloader import Loader, MicroBatch
    from arctic_training.engine import Engine
    from arctic_training.loss import Loss
    from arctic_training.run import Run


class Trainer(Component):
    """Trains a model. Subclasses say what the loss is, and by their annotations which components they work with.

    A trainer is made empty; ``run`` puts the stages on it. ``CustomTrainer(config).train()`` makes the run by itself.
    """

    kind = "trainer"
    config: TrainerConfig
    model_factory: ModelFactory
    data_factory: DataFactory
    tokenizer_factory: TokenizerFactory
    loss_factory: LossFactory
    optimizer_factory: OptimizerFactory
    scheduler_factory: SchedulerFactory
    checkpoint_engine: CheckpointEngine
    has_own_loss: ClassVar[bool] = False
    """Whether ``loss`` does without the recipe's loss stage, so that a ``loss`` section would do nothing."""

    loss_units: ClassVar[str] = ""
    """What ``loss_weight`` counts, as in ``pairs``; trained tokens where it is left as it is."""

    run: Run
    tokenizer: Any
    model: Any
    model_unwrapped: torch.nn.Module
    loss_function: Loss
    optimizer: torch.optim.Optimizer
    scheduler: Any
    engine: Engine
    train_dataloader: Loader
    eval_dataloaders: dict[str, Loader]
    """The loader of each set of evaluation data, by name."""
    checkpoint_engines: list[CheckpointEngine]
    data_seconds: float = 0.0
    """How long the batch of the current step was waited for."""
    losses_by_source: LossesBySource
    """The loss of the current step over each source of the data, where the loss tells it."""
    figures: Figures
    """What losses measured besides in the current step."""
    skipped_steps: int = 0
    """Steps in a row that were not applied."""

    def __init__(self, config: TrainerConfig, run: Run | None = None) -> None:
        self.config = config
        self.state = TrainState()
        self.eval_dataloaders = {}
        self.losses_by_source = LossesBySource()
        self.figures = Figures()
        if run is not None:
            self.run = run

    def train(self) -> None:
        """Train from where ``state`` stands to ``training_horizon``.

        Raises:
            TrainingStopped: a loss or gradient is not finite, or the kill switch was thrown.
        """
        if not hasattr(self, "run") or self.run.is_over:  # by hand: the run builds all stages and comes back here
            from arctic_training.run import Run

            self.state = TrainState()
            return Run(self.config, trainer=self).execute()
        error: BaseException | None = None
        self.hook.arctic_train_start(trainer=self)
        try:
            if self.config.evaluate_at_start and self.state.step == 0:
                self.evaluate()
                self.heed()
            while not self.finished:
                self.epoch()
            self.end()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.hook.arctic_train_end(trainer=self, error=error)

    def epoch(self) -> None:
        """Train the rest of the current epoch."""
        state = self.state
        self.hook.arctic_epoch_start(epoch=state.epoch, trainer=self)
        self.model.train()
        first_step = state.step
        started = time.perf_counter()
        for batch in self.batches():
            self.data_seconds = time.perf_counter() - started
            step = state.step + 1
            self.step(batch)
            state.step = step  # a step that a subclass writes anew need not count itself
            state.step_in_epoch += 1
            state.position = batch.position
            state.seconds += time.perf_counter() - started
            if batch.ends_epoch:
                state.epoch, state.step_in_epoch, state.position = state.epoch + 1, 0, {}
            self.after_step(batch.ends_epoch)
            if self.finished:
                break
            started = time.perf_counter()
        if state.step == first_step:  # or the loop would go round and round
            raise ArcticError(
                f"the dataloader gave no batch from step {state.step_in_epoch} of epoch {state.epoch} on, "
                f"and counts {self.steps_per_epoch} in an epoch",
                remedy="len() of a dataloader is the number of batches that its epoch() gives",
            )
        if state.step_in_epoch == 0:  # not stopped in the middle
            self.hook.arctic_epoch_end(epoch=state.epoch - 1, trainer=self)

    def step(self, batch: Batch) -> None:
        """Take one optimizer step.

        Args:
            batch: this rank's micro-batches of the step.
        """
        started = time.perf_counter()
        state = self.state
        step = state.step + 1
        self.hook.arctic_step_start(step=step, batch=batch, trainer=self)
        weight, trained, tokens = self.weigh(batch)
        total: Any = 0.0
        self.losses_by_source.clear()
        self.figures.clear()
        self.before_losses(batch)
        for micro_batch in batch:
            loss = self.normalised_loss(micro_batch.to(self.device), weight)
            self.backward(loss)
            total = total + loss.detach()
        self.hook.arctic_before_optimizer_step(step=step, trainer=self)
        learning_rate = self.engine.learning_rate
        result = self.engine.step()
        loss_value = float(sum_over_ranks(total.float().clone(), self.device))
        nonfinite.heed(self, loss_value, result, step, total, [row for part in batch for row in part.rows])
        state.step = step
        state.tokens += tokens
        state.trained_tokens += trained
        seconds = time.perf_counter() - started + self.data_seconds
        metrics: Metrics = {
            "kind": "train",
            "step": step,
            "epoch": state.epoch + getattr(batch, "share", 0.0),
            "loss": loss_value,
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "tokens": tokens,
            "trained_tokens": trained,
            "step_seconds": seconds,
            "data_seconds": self.data_seconds,
            "tokens_per_second": tokens / seconds,
            "memory_bytes": self.engine.memory_bytes(),
            "mfu": self.run.model_flops_utilisation(tokens, seconds),
            **self.losses_by_source.metrics(self.device),
            **self.figures.metrics(self.device),
        }
        self.hook.arctic_step_end(step=step, metrics=metrics, trainer=self)
        self.run.log_metrics(metrics, step)

    def loss(self, batch: dict[str, torch.Tensor]) -> LossSum | torch.Tensor:
        """The loss of one micro-batch: the sum over its trained tokens with its weight, or their mean as a scalar.

        Args:
            batch: ``input_ids`` and ``labels`` of shape (rows, tokens), and what else the data factory puts there.
        """
        return self.loss_function(self.model, batch)

    def prepare(self) -> None:
        """Build what the objective needs besides the stages, such as a reference model. Nothing by default.

        Called once on every rank, when all stages stand on the trainer and before training goes on from a checkpoint.
        """

    def before_losses(self, batches: Iterable[MicroBatch]) -> None:
        """Look at all micro-batches whose losses belong together, before the first of them. Nothing by default.

        For objectives whose loss of one row depends on the other rows: what is found here must be the same for every
        split of these rows into micro-batches and ranks.

        Args:
            batches: this rank's micro-batches, on the CPU: in training those of the optimizer step; in evaluation all
                of the set, under ``torch.no_grad()``, read as they are iterated. Those with empty ``rows`` count for
                nothing and keep this rank in step with the others.
        """

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a normalised loss."""
        self.engine.backward(loss)

    def loss_weight(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | float:
        """The units that the loss of a micro-batch is a sum over: its trained tokens, or its rows if it has no labels.

        Override it together with ``loss`` for an objective that counts something else, such as pairs.
        """
        return trained_tokens(batch) if "labels" in batch else float(len(next(iter(batch.values()))))

    @classmethod
    def units_of_loss(cls) -> str:
        """What the loss is a mean over, in words."""
        return cls.loss_units or ("trained tokens" if cls.loss_weight is Trainer.loss_weight else "units")

    def weigh(self, batch: list[MicroBatch]) -> tuple[float, int, int]:
        """Count a step over all ranks, before its tensors go to the device.

        Returns:
            The weight of the whole global batch, its trained tokens, and its tokens without padding.
        """
        import torch

        counts = torch.zeros(3, dtype=torch.float64)
        for micro_batch in batch:
            micro_batch.weight = float(self.loss_weight(micro_batch))
            if micro_batch.rows:
                counts[0] += micro_batch.weight
                counts[1] += float(trained_tokens(micro_batch)) if "labels" in micro_batch else 0
                counts[2] += micro_batch.num_tokens
        weight, trained, tokens = sum_over_ranks(counts, self.device).tolist()
        return weight, int(trained), int(tokens)

    def normalised_loss(self, batch: MicroBatch, global_weight: float) -> torch.Tensor:
        """This micro-batch's share of the step's loss: its sum divided by the weight of the global batch."""
        # Counted before the loss, which may take the labels out of the batch; `weigh` did so before they left the CPU.
        weight = float(self.loss_weight(batch)) if batch.weight is None else batch.weight
        if not weight and "labels" in batch:
            # A mean over no tokens is 0 / 0, and 0 times its gradient is not 0: train on any labels, and count nothing.
            batch = batch.with_tensors(labels=batch["labels"].clamp(min=0))
        loss = self.hook.arctic_compute_loss(batch=batch, trainer=self)
        total = _checked_loss(loss, self)
        if isinstance(loss, LossSum):
            self.figures.add(loss, counts=bool(batch.rows and weight))
            if batch.rows and weight:
                self.losses_by_source.add(loss)
            if weight and batch.rows and self.state.step == self.run.first_step:  # once: it reads the device
                self._check_weight(weight, float(loss.weight))
        else:
            total = total * weight
        if not batch.rows or not weight:  # only here to keep this rank in step with the others
            total = total.nan_to_num(0.0) * 0.0
        return total / (global_weight or 1.0)

    def evaluate(self) -> Metrics:
        """Evaluate on every row of each set of evaluation data once, weighted by trained tokens.

        Returns:
            The figures of the set; of several sets, those over all their rows.
        """
        from arctic_training.evaluation import evaluate

        return evaluate(self)

    def checkpoint(self) -> None:
        """Save to every entry of the recipe's ``checkpoint`` list that is enabled."""
        for engine in self.checkpoint_engines:
            if engine.config.enabled:
                self.save(engine)

    def save(self, engine: CheckpointEngine) -> None:
        """Save to one entry; before one that keeps the best there is an evaluation."""
        if engine.config.keep_best and self.run.last_evaluation_step != self.state.step:
            self.evaluate()
        self.run.save(engine)

    def batches(self) -> Iterator[Batch]:
        """The steps that are left of the current epoch."""
        if not self.config.overfit_first_batch:
            return self.train_dataloader.epoch(self.state.epoch, self.state.position)
        first = next(self.train_dataloader.epoch(0))
        steps = self.steps_per_epoch or self.last_step
        return (
            Batch(first, {}, step / steps, step == steps) for step in range(self.state.step_in_epoch + 1, steps + 1)
        )

    def after_step(self, epoch_ended: bool) -> None:
        """What follows a step: evaluation, checkpoints, what is asked from outside."""
        from arctic_training.checkpointing import due

        step = self.state.step
        if self.eval_dataloaders and self.config.eval_interval and step % self.config.eval_interval == 0:
            self.evaluate()
        for engine in due(self, epoch_ended):
            self.save(engine)
        self.heed()

    def heed(self) -> None:
        """Do what is asked from outside, now that all ranks are between two steps.

        Raises:
            Interrupted: a signal ends training.
            TrainingStopped: somebody asked for the end, or threw the kill switch.
        """
        self.run.steering.heed(self)

    def end(self) -> None:
        """What follows the last step: the last evaluation and checkpoints.

        A run that finds its last step taken already writes those that an earlier process was ended before. A process
        that ends before it, by ``exit_iteration_this_run``, saves what the next one goes on from.
        """
        from arctic_training.checkpointing import complete, due_at_end, due_at_pause

        took_steps = self.state.step > self.run.first_step
        if took_steps and self.eval_dataloaders and self.run.last_evaluation_step != self.state.step:
            self.evaluate()
        at_end = self.state.step >= self.last_step
        for engine in due_at_end(self, only_missing=not took_steps) if at_end else due_at_pause(self):
            self.save(engine)
        complete(self.run)

    def _check_weight(self, counted: float, weight: float) -> None:
        if abs(weight - counted) > 1e-6 * max(weight, counted):
            raise ArcticError(
                f"the loss says that it sums over {weight:g} units; loss_weight of {self.name!r} counts {counted:g}",
                remedy="override loss_weight(batch) to count what loss sums over: both normalise the step",
            )

    @property
    def eval_dataloader(self) -> Loader | None:
        """The loader of the first set of evaluation data; None without any."""
        return next(iter(self.eval_dataloaders.values()), None)

    @property
    def hook(self) -> Any:
        """The hooks of this run."""
        return self.run.plugins.hook

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None where the data is streamed, and nobody knows."""
        return self.train_dataloader.steps_per_epoch

    @property
    def training_horizon(self) -> int:
        """Optimizer steps of the whole training, which schedules follow; ``exit_iteration`` may end it earlier."""
        config = self.config
        return config.train_iters or max(config.epochs * (self.steps_per_epoch or 0), config.min_iterations)

    @property
    def last_step(self) -> int:
        """The optimizer step that training ends after."""
        return min(self.training_horizon, self.config.exit_iteration or self.training_horizon)

    @property
    def finished(self) -> bool:
        """Whether this process has no step left to take."""
        taken_here = self.state.step - self.run.first_step
        limit = self.config.exit_iteration_this_run
        return self.state.step >= self.last_step or bool(limit and taken_here >= limit)

    @property
    def global_step(self) -> int:
        """Optimizer steps taken."""
        return self.state.step

    @property
    def epoch_idx(self) -> int:
        """The current epoch, from 0."""
        return self.state.epoch

    @property
    def trainer(self) -> Trainer:
        return self


def _checked_loss(loss: Any, trainer: Trainer) -> torch.Tensor:
    """The tensor of a loss that can be trained on."""
    import torch

    who = f"loss of {trainer.name!r} ({source_of(type(trainer))})"
    if loss is None:
        raise ArcticError(f"{who} returned nothing", remedy="end it with `return loss`")
    tensor = loss.sum if isinstance(loss, LossSum) else loss
    if not isinstance(tensor, torch.Tensor) or tensor.numel() != 1:
        shape = f"a tensor of shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else f"{tensor!r:.60}"
        raise ArcticError(f"{who} returned {shape}", remedy="return a scalar tensor, the mean, or a LossSum")
    if torch.is_grad_enabled() and not tensor.requires_grad:
        raise ArcticError(f"{who} has no gradient", remedy="leave out detach(), item() and no_grad()")
    return tensor.reshape(())


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, name)
