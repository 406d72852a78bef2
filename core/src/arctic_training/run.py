"""A run, in one direction: configure, prepare data, join the process group, build the stages, train, tear down.

All wiring stands here, so that no component has any in its constructor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training import checkpointing, distributed, preflight, resuming
from arctic_training.data_cache import prepared_rows
from arctic_training.data_report import figures
from arctic_training.disk_errors import explained
from arctic_training.distributed import World
from arctic_training.errors import Interrupted, PluginError, UsageError
from arctic_training.freezing import freeze
from arctic_training.output_lock import OutputLocks
from arctic_training.redaction import redacted
from arctic_training.reporting import MetricsFile, Progress, human_count, shown_path
from arctic_training.run_record import (
    choose_run_dir,
    log_is_whole,
    start_logging,
    stop_logging,
    write_fault,
    write_record,
)
from arctic_training.state import Metrics, seed_everything
from arctic_training.status import FILE as STATUS_FILE
from arctic_training.status import StatusFile
from arctic_training.steering import Steering
from arctic_training.trust import closed_to_others, written_by_others
from arctic_training.watchdog import Watchdog
from arctic_training.wording import counted, counted_by_name

if TYPE_CHECKING:
    import torch

    from arctic_training.checkpoint import CheckpointEngine
    from arctic_training.component import Component
    from arctic_training.config import ComponentConfig
    from arctic_training.engine import Engine
    from arctic_training.model import ModelConfig
    from arctic_training.prepared import PreparedRows
    from arctic_training.trainer import Trainer
    from arctic_training.trainer_config import TrainerConfig

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations a second by the vendor's data sheets, for model FLOPs utilisation."""


class Run:
    """One training, from a resolved recipe to its end.

    Args:
        config: what ``get_config`` gave.
        trainer: a trainer made by hand; by default ``arctic_build_trainer`` makes one.

    Attributes: ``config``, ``plugins``, ``hook``, ``world``, ``device``, ``run_dir``, ``trainer``, ``rows`` (prepared
    rows by split), ``eval_rows`` (by set), ``engine_class`` and ``engine_reason``, ``log`` (this rank's logger),
    ``log_path``, ``remote_code`` (what components note of Python code that came with a model, for the run's record).
    """

    device: torch.device
    trainer: Trainer
    engine_class: type[Engine]
    engine_config: Any
    model_config: Any
    model_max_length: int | None = None
    tokenizer_sha256: str | None = None

    def __init__(self, config: TrainerConfig, trainer: Trainer | None = None) -> None:
        distributed.wait_without_spinning()
        self.config = config
        self.plugins = config.plugin_manager
        self.hook = self.plugins.hook
        self.code = config.loaded_code
        self.fingerprint = self.plugins.fingerprint()
        self.world = World.from_environment()
        with closed_to_others():
            self.run_dir = choose_run_dir(config)
            self._output_locks = OutputLocks()
            self._output_locks.take_run_dir(self)
            self.log, self.log_path = start_logging(self, config.logger)
        self.rows: dict[str, PreparedRows] = {}
        self.eval_rows: dict[str, PreparedRows] = {}
        self.saved: dict[CheckpointEngine, Path] = {}
        self.pending: checkpointing.Pending | None = None
        self.saved_at: dict[CheckpointEngine, float] = {}
        self.first_step = 0
        self.last_evaluation_step: int | None = None
        self.last_evaluation: dict[str, Metrics] = {}
        self.engine_reason = ""
        self.steering = Steering(self)
        self._given_trainer = trainer
        self._components: dict[int, Component] = {}
        self.status: StatusFile | None = None
        self._progress: Progress | None = None
        self.data_facts: dict[str, dict[str, Any]] = {}
        self.remote_code: dict[str, Any] = {}
        self._own_plugins: list[Any] = []
        self._joined = False
        self.is_over = False
        self.only_prepares = False
        self.unique_name = uuid.uuid4().hex

    @closed_to_others()
    def execute(self) -> None:
        """Run from beginning to end, and tidy up however it ends."""
        self.steering.install()
        try:
            self.set_up()
            self.steering.begin()
            self.trainer.train()
            self.finish()
        except OSError as error:
            told = self.steering.cause_of(error)
            self.fail(told)
            raise (explained(error, self) if told is error else told) from error
        except BaseException as error:
            told = self.steering.cause_of(error)
            self.fail(told)
            if told is not error:
                raise told from error
            raise
        finally:
            self.tear_down()

    @contextlib.contextmanager
    def only_preparing(self, *, rows: bool = True) -> Iterator[None]:
        """Prepare data and nothing else, streamed data too; ``rows=False`` stops before, with tokenizer and
        architecture built."""
        self.only_prepares = True
        self.steering.install()
        try:
            self.configure()
            self.build_for_data()
            if rows:
                self.prepare_data()
            yield
        except BaseException as error:
            self.fail(error)
            if isinstance(error, OSError) and (told := explained(error, self)) is not error:
                raise told from error
            raise
        finally:
            self.tear_down()

    def set_up(self) -> None:
        """Everything that comes before the first step."""
        self.configure()
        self.build_for_data()
        self.prepare_data()
        self.join()
        self._output_locks.take(self)
        self.build()
        self.resume()

    def configure(self) -> None:
        """Check that this run can be, and make its directory."""
        self.plugins.refuse_broken()
        self.plugins.check_pending()
        preflight.refuse_later_keys(self.config)
        preflight.refuse_keys_without_their_plugin(self.config)
        if not self.only_prepares:
            preflight.refuse_endless_streams(self.config)
            resuming.refuse_absent(self)
        self.device = distributed.choose_device(self.world)
        seed_everything(self.config.seed)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.engine_class, self.engine_config, self.engine_reason = preflight.choose_engine(self)
        preflight.refuse_checkpoints_of_other_engines(self)
        self.engine_class.prepare_process(self)
        if self.world.is_first:
            self._start_reporting()
            write_record(self)
        if self.config.step_timeout and not self.only_prepares:
            self._register(Watchdog(self), "watchdog")
        for number, callback in enumerate(self.config.callbacks):
            self._register(self.make(callback), f"callback {number} {callback.type}")
        self.hook.arctic_configure(run=self)
        self._say_what_runs()
        from arctic_training.trainer import Trainer

        if self._given_trainer is not None:
            preflight.refuse_other_components(self.config, type(self._given_trainer))
            self.trainer = self._given_trainer
            self.trainer.run = self
        else:
            self.trainer = self.plugins.ask("arctic_build_trainer", Trainer, run=self)

    def build_for_data(self) -> None:
        """Build what data is prepared with: the architecture, which tells the longest sequence, and the tokenizer."""
        trainer = self.trainer
        self.model_config = self.plugins.ask("arctic_build_model_config", object, config=self.config.model, run=self)
        trainer.tokenizer = self.plugins.ask("arctic_build_tokenizer", object, config=self.config.tokenizer, run=self)
        fingerprint = self.component("tokenizer").fingerprint(trainer.tokenizer)
        self.tokenizer_sha256 = hashlib.sha256(fingerprint.encode()).hexdigest()
        self.model_max_length = self.component("model").max_length(self.model_config)

    def prepare_data(self) -> None:
        """Prepare rows, or find them prepared; no process group exists yet, so nobody can time out on it."""
        if self.config.data.streaming and not self.only_prepares:
            self.say(f"data: train: streamed, {self.config.data.stream_buffer:,} rows at a time")
        else:
            self.rows["train"] = prepared_rows(self, "train")
            self._say_rows("train", "train")
        for name in self.config.data.eval_sets:
            self.eval_rows[name] = prepared_rows(self, "eval", name)
            self._say_rows("eval", name)
        if self.eval_rows:
            self.rows["eval"] = next(iter(self.eval_rows.values()))
        if self.world.is_first:
            write_record(self)

    def join(self) -> None:
        """Join the process group, and make sure that all ranks run the same thing."""
        self._joined = distributed.join(
            self.world,
            self.device,
            timeout=self.config.process_group_timeout,
            alone=self.engine_class.needs_process_group,
        )
        digests = distributed.gather_objects(self._digest())
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if odd:
            raise UsageError(
                f"rank {odd[0]} has other plugins, versions or another recipe than rank 0",
                remedy="install the same distributions on every node and start all ranks with the same recipe",
            )

    def build(self) -> None:
        """Build the stages in order and put them on the trainer."""
        import torch

        from arctic_training.checkpoint import CheckpointEngine
        from arctic_training.dataloader import Loader
        from arctic_training.engine import Engine

        ask, config, trainer = self.plugins.ask, self.config, self.trainer

        def loader_of(rows: Any, split: str) -> Any:
            return ask("arctic_build_dataloader", Loader, dataset=rows, split=split, config=config.data, run=self)

        trainer.train_dataloader = loader_of(self.rows.get("train"), "train")
        names = config.data.source_names("train")
        trainer.losses_by_source.names = names if len(names) > 1 else []
        trainer.eval_dataloaders = {name: loader_of(rows, "eval") for name, rows in self.eval_rows.items()}
        if trainer.steps_per_epoch == 0:
            raise UsageError(
                "the training rows do not fill one optimizer step",
                remedy="lower micro_batch_size or gradient_accumulation_steps, or set data.drop_last: false",
            )
        model = ask(
            "arctic_build_model", torch.nn.Module, model_config=self.model_config, config=config.model, run=self
        )
        freeze(model, config.model, self)
        trainer.model = trainer.model_unwrapped = model
        if self.remote_code and self.world.is_first:
            write_record(self)
        trainer.loss_function = ask("arctic_build_loss", callable, config=config.loss, run=self)
        optimizer = ask("arctic_build_optimizer", torch.optim.Optimizer, model=model, config=config.optimizer, run=self)
        trainer.optimizer = optimizer
        scheduler = ask("arctic_build_scheduler", object, optimizer=optimizer, config=config.scheduler, run=self)
        trainer.scheduler = scheduler
        engine = ask("arctic_build_engine", Engine, model=model, optimizer=optimizer, scheduler=scheduler, run=self)
        trainer.engine = engine
        trainer.model, trainer.model_unwrapped = engine.model, engine.model_unwrapped
        trainer.checkpoint_engines = [
            ask("arctic_build_checkpoint_engine", CheckpointEngine, config=entry, run=self)
            for entry in config.checkpoint
        ]
        trainer.prepare()
        preflight.refuse_unwritable_checkpoints(self)
        preflight.refuse_full_disks(self)
        self.num_parameters = sum(
            getattr(parameter, "ds_numel", parameter.numel()) for parameter in trainer.model_unwrapped.parameters()
        )
        self.say(f"model: {human_count(self.num_parameters)} parameters, {config.model.precision}")
        # Dropout differs between ranks; weights do not, since they were made with the common seed.
        seed_everything(config.seed + self.world.rank)

    def resume(self) -> None:
        """Go on from a checkpoint, if the recipe says so and there is one."""
        resuming.resume(self)
        trainer = self.trainer
        self.first_step = trainer.state.step
        if trainer.state.step > trainer.last_step:
            self.warn(
                f"checkpoint: it was written after step {trainer.state.step}, and the recipe ends after step "
                f"{trainer.last_step}: nothing is trained, and what is here has been trained for longer than it says"
            )
        if trainer.state.step >= trainer.last_step:
            self.say(f"training is complete: {trainer.state.step} of {counted(trainer.last_step, 'step')} taken")
        else:
            rows = trainer.train_dataloader.global_batch_size
            if "train" in self.rows:  # of a small set a step has all rows, and no more
                rows = min(rows, len(self.rows["train"]))
            self.say(f"training: {counted(trainer.last_step, 'step')} of {counted(rows, 'row')}")
            if not checkpointing.saves_the_end(trainer):
                self.warn("what training ends with is not saved: no entry of checkpoint says save_end_of_training")

    def finish(self) -> None:
        """Say what came of it."""
        self.event("finished", step=self.trainer.state.step, seconds=self.trainer.state.seconds)
        if self.status is not None:
            self.status.end(None)
        self.say(f"done: {counted(self.trainer.state.step, 'step')}; record of the run in {shown_path(self.run_dir)}")

    def fail(self, error: BaseException) -> None:
        """Write down why the run ended, for whoever reads its log and for the launcher's parent."""
        trace = None if isinstance(error, Interrupted) else error
        self.log.error("the run ended: %s", error, exc_info=trace, extra={"said": True})
        if self.status is not None:
            self.status.end(error)
        if isinstance(error, Exception):
            try:
                write_fault(self, error)
                error.arctic_written_down = True  # type: ignore[attr-defined]
            except OSError as failure:  # the error itself matters more
                self.log.error("the cause could not be written down: %s", failure, extra={"said": True})
        if log_is_whole(self.log):
            error.arctic_log_path = str(self.log_path)  # type: ignore[attr-defined]

    def tear_down(self) -> None:
        """Tidy up; nothing here may hide the error that ended the run."""
        self.is_over = True
        failed = sys.exc_info()[0] is not None
        errors = self.plugins.call_backwards("arctic_unconfigure", run=self)
        for error in errors:
            self.log.error("tidying up failed: %s", error, exc_info=error)
        if self._joined and not (failed and self.world.size > 1):  # a rank that failed must not wait for the others
            distributed.leave()
        for plugin in self._own_plugins:
            self.plugins.unregister(plugin)
        self._output_locks.release()
        stop_logging(self.log)
        self.steering.restore()
        if errors and not failed:
            raise errors[0]

    def component(self, kind: str) -> Any:
        """The component that the recipe's section of this kind selects, made once."""
        return self.component_of(getattr(self.config, kind))

    def component_of(self, section: ComponentConfig) -> Any:
        """The component that a section of the recipe selects, made once."""
        if id(section) not in self._components:
            self._components[id(section)] = self.make(section)
        return self._components[id(section)]

    def frozen_model(self, section: ModelConfig) -> torch.nn.Module:
        """A model that is only asked and never trained, such as a reference or a teacher: built through the hooks of
        the model stage, without gradients and dropout. Every rank calls it when the stages are built, and the engine
        places it as its own; whoever prepares data may call it before, and has it on the device.

        Args:
            section: a section of the recipe like ``model``.
        """
        import torch

        ask = self.plugins.ask
        model_config = ask("arctic_build_model_config", object, config=section, run=self)
        model = ask("arctic_build_model", torch.nn.Module, model_config=model_config, config=section, run=self)
        model = model.eval().requires_grad_(False)
        engine = getattr(self.trainer, "engine", None)
        return model.to(self.device) if engine is None else engine.place_frozen(model)

    def make(self, section: ComponentConfig) -> Any:
        """A component of the class that a section selected."""
        if section.component is None:
            raise PluginError(
                f"nothing was selected for the {section.kind} section",
                remedy=f"set {section.kind}.type, or install a plugin that brings one: arctic plugins",
            )
        return section.component(section, self)

    def save(self, engine: CheckpointEngine) -> Path:
        """Write one checkpoint; every rank calls it."""
        return checkpointing.save(self, engine)

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        """Hand one record to all loggers, on rank 0."""
        if self.world.is_first:
            metrics = redacted(metrics)
            self.hook.arctic_log_metrics(metrics=metrics, step=step, run=self)

    def event(self, event: str, *, step: int, **details: Any) -> None:
        """Log that something happened."""
        self.log.info("%s at step %d %s", event, step, details)
        self.log_metrics({"kind": "event", "event": event, "step": step, **details}, step)

    def say(self, text: str) -> None:
        """Tell the user, on rank 0, and every rank's log."""
        self.log.info("%s", text, extra={"said": True})
        if self._progress is not None:
            self._progress.line(text)

    def progress_of(self, what: str) -> Callable[[int, int], None]:
        """A function that shows how much of something is done, of how much; on rank 0."""
        return self._progress.of(what) if self._progress is not None else lambda done, whole: None

    def warn(self, text: str) -> None:
        """Tell the user that something may not be as they think."""
        self.say(f"warning: {text}")

    def model_flops_utilisation(self, tokens: int, seconds: float) -> float | None:
        """Share of the devices' peak that the model's arithmetic takes; None where the peak is unknown.

        6 operations a parameter and token: 2 forward, 4 backward (Kaplan et al., 2020, arXiv:2001.08361).
        """
        if self.device.type != "cuda":
            return None
        import torch

        name = torch.cuda.get_device_name(self.device)
        peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
        return None if peak is None else 6 * self.num_parameters * tokens / (seconds * peak * self.world.size)

    @property
    def all_rows(self) -> dict[str, PreparedRows]:
        """Prepared rows by ``train`` and the names of evaluation sets."""
        train = {"train": self.rows["train"]} if "train" in self.rows else {}
        return train | {name: rows for name, rows in self.eval_rows.items() if name != "train"}

    @property
    def kill_switch_path(self) -> Path:
        """The file whose appearance stops training."""
        given = self.config.kill_switch_path
        return Path(given) if given else self.run_dir / "kill_switch"

    def _start_reporting(self) -> None:
        if not self.only_prepares:
            paths = [self.run_dir / "metrics.jsonl"]
            if "train_log_metrics_path" in self.config.given:
                paths.append(Path(self.config.train_log_metrics_path))
            self._register(MetricsFile(paths), "metrics file")
            self.status = StatusFile(self.run_dir / STATUS_FILE)
            self._register(self.status, "status file")
            self.steering.forget()
        self._progress = Progress()
        self._register(self._progress, "progress")

    def _register(self, plugin: Any, name: str) -> None:
        """Register for as long as this run lasts."""
        self.plugins.register(plugin, name)
        self._own_plugins.append(plugin)

    def _say_what_runs(self) -> None:
        others = [info for info in self.plugins.plugins if info.status == "active" and info.distribution]
        names = ", ".join(f"{info.name} {info.version}" for info in others)
        what = (
            f"data of {self.config.type}" if self.only_prepares else f"{self.config.type} in {shown_path(self.run_dir)}"
        )
        self.say(f"arctic: {what}, with {names or 'no plugins'}")
        if self.code:
            self.say(f"code: {shown_path(self.code.path)}, sha256 {self.code.sha256[:16]}")
        if not self.only_prepares:
            place = f"{self.world.size} x {self.device.type}"
            self.say(f"engine: {self.engine_class.name} on {place}, since {self.engine_reason}")
        if reason := written_by_others(self.run_dir):
            self.warn(f"run_dir: {reason}, who may change what this run writes")
        for warning in self.config.warnings:
            self.warn(warning)

    def _say_rows(self, split: str, name: str) -> None:
        rows = self.rows["train"] if split == "train" else self.eval_rows[name]
        names = self.config.data.source_names(split, name)
        found = figures(rows, self.component("data").packs_hold, names)
        self.data_facts[name] |= found
        counts = "".join(
            f", {counted_by_name(number, count)}"
            for count, number in found["counts"].items()
            if number and count not in ("rows read", "rows kept")
        )
        self.say(f"data: {name}: {counted(found['rows'], 'row')}, {counted(found['tokens'], 'token')}{counts}")
        for refused in found["refused"][:3]:
            self.warn(f"{refused['where']}: {refused['reason']}")

    def _digest(self) -> str:
        # The recipe as written: defaults such as num_proc differ from machine to machine, and may.
        parts = [self.fingerprint, self.config.recipe.data, self.code.sha256 if self.code else ""]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
