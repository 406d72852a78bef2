"""The top level of a recipe: the keys that every trainer has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from arctic_training.callback import CallbackConfig
from arctic_training.checkpoint import CheckpointConfig
from arctic_training.config import ComponentConfig, Config, key
from arctic_training.data import DataConfig
from arctic_training.engine import EngineConfig
from arctic_training.loss import LossConfig
from arctic_training.model import ModelConfig
from arctic_training.optimizer import OptimizerConfig
from arctic_training.scheduler import SchedulerConfig
from arctic_training.tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from arctic_training.code import Code
    from arctic_training.plugins import PluginManager
    from arctic_training.recipe import Recipe
    from arctic_training.trainer import Trainer

SEQUENCE_PARALLEL = "sequence parallelism"
EXPERT_PARALLEL = "expert parallelism"


class LoggerConfig(Config):
    output_dir: str | None = key(None, doc="Directory of the log files; `logs` in the run directory by default.")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = key("WARNING", doc="Least level that is printed.")
    print_output_ranks: list[int] | Literal["*"] = key(factory=lambda: [0], doc='Ranks that print; "*" for all.')
    file_output_ranks: list[int] | Literal["*"] = key("*", doc='Ranks that write a log file; "*" for all.')


class WandbConfig(Config):
    enable: bool = key(
        False, later="Weights & Biases tracking (arctic-plugin-wandb)", doc="Send metrics to Weights & Biases."
    )
    entity: str | None = key(None, doc="User or team that the run belongs to.")
    project: str | None = key("arctic-training", doc="Project that the run belongs to.")
    name: str | None = key(None, doc="Name of the run.")


class PluginsConfig(Config):
    require: list[str] = key(factory=list, doc='Plugins that must be installed, as requirements: ["sft>=0.1"].')
    block: list[str] = key(factory=list, doc="Plugins that are not loaded.")
    order: list[str] = key(factory=list, doc="Plugins in the order in which their hook implementations shall run.")
    use: list[str] = key(factory=list, doc="Importable modules to load as plugins beside the installed ones.")


class TrainerConfig(ComponentConfig):
    kind: ClassVar[str] = "trainer"

    # Set when the recipe is resolved; none of them is a key.
    recipe: ClassVar[Recipe]
    plugin_manager: ClassVar[PluginManager]
    trainer_class: ClassVar[type[Trainer]]
    sections: ClassVar[dict[str, Any]] = {}
    warnings: ClassVar[list[str]] = []
    loaded_code: ClassVar[Code | None] = None
    trusted: ClassVar[bool] = False

    type: str = key("sft", doc="Name of the trainer.")
    code: str | None = key(None, doc="Python file with components of your own; train.py beside the recipe by default.")
    skip_validation: bool = key(False, doc="Let components through that the trainer does not declare.")
    run_dir: str | None = key(None, doc="Directory of this run; runs/<recipe>-<date>-<time> by default.")
    plugins: PluginsConfig = key(factory=PluginsConfig, doc="Which plugins this run needs, blocks and orders.")
    callbacks: list[CallbackConfig] = key(factory=list, doc="Callbacks by name.")

    epochs: int = key(1, ge=0, doc="Passes over the training data.")
    train_iters: int = key(0, ge=0, doc="Optimizer steps; above 0 it replaces epochs.")
    micro_batch_size: int = key(1, ge=1, doc="Rows of a rank in one forward pass.")
    gradient_accumulation_steps: int = key(1, ge=1, doc="Micro-batches of a rank in one optimizer step.")
    seed: int = key(42, ge=0, doc="Seed of weights and dropout; rows are ordered by data.seed.")
    min_iterations: int = key(0, ge=0, doc="Repeat the data until it lasts this many optimizer steps.")
    exit_iteration: int = key(0, ge=0, doc="End training at this optimizer step; 0 for no limit.")
    exit_iteration_this_run: int = key(0, ge=0, doc="Stop after this many steps of this process; auto_resume goes on.")
    resume: str | None = key(
        None,
        doc="A checkpoint to go on from, or a directory whose newest is taken; it has to be there.",
    )
    overfit_first_batch: bool = key(False, doc="Train on the first batch again and again.")
    eval_interval: int = key(
        0, ge=0, doc="Optimizer steps between evaluations; given exactly when there is data for it."
    )
    evaluate_at_start: bool = key(False, doc="Evaluate before the first step too.")
    eval_log_iter_interval: int = key(1, ge=0, doc="Print every so many-th evaluation; 0 for none.")
    loss_log_interval: int = key(1, ge=0, doc="Steps between two printed losses; 0 for none.")
    train_log_iter_interval: int = key(1, ge=0, doc="Steps between two printed lines of progress; 0 for none.")
    train_log_metrics_path: str = key(
        "train-log-metrics.jsonl", when_given=True, doc="A second file for metrics; written when the recipe gives it."
    )
    kill_switch_path: str | None = key(
        None, doc="A file whose appearance stops training on all ranks; kill_switch in the run directory by default."
    )

    on_nonfinite: Literal["stop", "skip"] = key(
        "stop", doc="What becomes of a step whose loss or gradient is not finite; the weights never take it."
    )
    max_skipped_steps: int = key(
        10, ge=1, doc="Steps in a row that on_nonfinite: skip goes on after; one more ends training."
    )

    process_group_timeout: float = key(
        1800.0, gt=0, doc="Seconds that a collective may wait for the slowest rank; preparing data is none."
    )

    step_timeout: float = key(
        0.0,
        ge=0,
        doc="Seconds that an optimizer step with its wait for data may take, as may a micro-batch of an evaluation and "
        "a save; then every rank writes its stacks into its log and the run ends. 0 for no limit.",
    )

    sequence_parallel_size: int = key(1, ge=1, later=SEQUENCE_PARALLEL, doc="Ranks that share one sequence.")
    expert_parallel_size: int = key(1, ge=1, later=EXPERT_PARALLEL, doc="Ranks that share one set of experts.")
    arctic_moe: bool | Literal["auto"] = key(
        False, later=EXPERT_PARALLEL, doc="Use Arctic's mixture-of-experts layers."
    )
    enable_arctic_moe_custom_optimization: bool = key(False, later=EXPERT_PARALLEL, doc="Kernels for those layers.")
    enable_routing_replay: bool = key(False, later=EXPERT_PARALLEL, doc="Route tokens in backward as in forward.")
    activation_checkpoint_cpu_offload: bool = key(
        False, doc="Keep checkpointed activations, the inputs of the model's layers, in host memory."
    )
    tiled_mlp_compute: bool = key(False, later="tiled MLP computation", doc="Compute MLPs in tiles of the sequence.")
    mem_profiler: Literal["step", "e2e"] | None = key(
        None, later="memory profiling", doc="Record the device's allocations: of each step, or end to end."
    )
    mem_profiler_dir: str | None = key(None, doc="Where memory profiles go; mem-prof in logger.output_dir by default.")
    mem_profiler_max_entries: int = key(100_000, ge=1, doc="Allocations that a memory profile keeps.")

    model: ModelConfig = key(doc="The model.")
    tokenizer: TokenizerConfig = key(factory=dict, doc="The tokenizer; the model's own by default.")
    data: DataConfig = key(doc="What to train and evaluate on.")
    loss: LossConfig = key(factory=dict, doc="The loss.")
    optimizer: OptimizerConfig = key(factory=dict, doc="The optimizer.")
    scheduler: SchedulerConfig = key(factory=dict, doc="The schedule of the learning rate.")
    engine: EngineConfig = key(factory=dict, doc="What runs backward and the optimizer step.")
    deepspeed: dict[str, Any] = key(factory=dict, doc="DeepSpeed's own configuration, completed and checked.")
    checkpoint: list[CheckpointConfig] = key(factory=list, doc="What to save: one mapping or a list.")
    logger: LoggerConfig = key(factory=LoggerConfig, doc="Log files and printing.")
    wandb: WandbConfig = key(factory=WandbConfig, doc="Weights & Biases.")

    def check(self) -> Iterator[tuple[str, str]]:
        if self.data.evaluates and not self.eval_interval:
            found = "is 0" if "eval_interval" in self.given else "is not given"
            yield "eval_interval", f"{found}, and there is evaluation data: give a number of steps"
        if self.eval_interval and not self.data.evaluates:
            yield "eval_interval", "asks for evaluation, and there is no data for it: give data.eval_sources"
        if self.evaluate_at_start and not self.data.evaluates:
            yield "evaluate_at_start", "asks for evaluation, and there is no data for it: give data.eval_sources"
        if self.resume is not None and not self.resume.strip():
            yield "resume", "names nothing: name a checkpoint, or a directory that holds one"
        for number, entry in enumerate(self.checkpoint):
            if entry.keep_best and not self.data.evaluates:
                yield (f"checkpoint.{number}.keep_best", "needs evaluation data: give data.eval_sources")
        if self.activation_checkpoint_cpu_offload and getattr(self.model, "disable_activation_checkpoint", True):
            yield (
                "activation_checkpoint_cpu_offload",
                "needs activation checkpointing, which this model section does not have or disables",
            )
        if not self.epochs and not self.train_iters and not self.min_iterations:
            yield "epochs", "is 0, and neither train_iters nor min_iterations says how long to train"

    def doubts(self) -> Iterator[tuple[str, str]]:
        if self.train_iters and self.epochs != 1:  # 1 is what the record of a run holds where its recipe held nothing
            yield "epochs", f"is {self.epochs} and has no effect, since train_iters says how many steps to train"
