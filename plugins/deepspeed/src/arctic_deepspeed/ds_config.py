"""DeepSpeed's configuration: the recipe's ``deepspeed:`` section completed, and read back from the engine made of it.

DeepSpeed's own defaults have changed between releases, so every option that decides about the numbers is written out
here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from arctic_deepspeed import key_table
from arctic_deepspeed.section import check
from arctic_training.config import KeyProblem
from arctic_training.errors import ArcticError, RecipeError

LEAST_BUCKET = 4 * 1024**2
MOST_BUCKET = 500 * 10**6
"""Elements in a bucket of gradients: below, each reduction is too small to be worth its latency; above, DeepSpeed's own
limit."""

TRAINING_ALONE = ("optimizer", "scheduler", "gradient_clipping", "data_efficiency", "curriculum_learning")
"""Sections that mean nothing to a model without gradients."""


@attrs.frozen
class RunFacts:
    """What the rest of the recipe says about DeepSpeed's options.

    ``num_ranks`` is None where the recipe is all that is known; ``hidden_size`` is the width of the model, None when it
    does not tell.
    """

    micro_batch_size: int
    gradient_accumulation_steps: int
    num_ranks: int | None
    precision: Literal["bf16", "fp16", "fp32"]
    hidden_size: int | None = None


def complete_for(run: Any, model_config: Any) -> dict[str, Any]:
    """DeepSpeed's configuration for a run.

    Args:
        run: the run.
        model_config: the architecture's configuration, for the width of the model; may be None.

    Raises:
        RecipeError: the ``deepspeed`` section contradicts the rest of the recipe.
    """
    recipe = run.config
    facts = RunFacts(
        micro_batch_size=recipe.micro_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        num_ranks=run.world.size,
        precision=recipe.model.precision,
        hidden_size=hidden_size_of(model_config),
    )
    config, problems = complete(recipe.deepspeed, facts)
    problems += _unknown_to_installed(recipe.deepspeed)
    if problems:
        at = recipe.recipe.problem
        raise RecipeError(
            [
                at(("deepspeed", *problem.path), problem.message, of=problem.of, remedy=problem.remedy)
                for problem in problems
            ]
        )
    return config


def _unknown_to_installed(section: Mapping[str, Any]) -> list[KeyProblem]:
    """What another DeepSpeed than the one whose keys we ship makes of the section; it would ignore some keys in
    silence."""
    import deepspeed

    if deepspeed.__version__ == key_table.shipped()["version"]:
        return []
    table = key_table.installed()
    return list(check(section, table["keys"], table["removed"]))


def complete(section: Mapping[str, Any], facts: RunFacts) -> tuple[dict[str, Any], list[KeyProblem]]:
    """The whole of DeepSpeed's configuration.

    Args:
        section: the recipe's ``deepspeed`` section.
        facts: what the rest of the recipe says.

    Returns:
        The configuration, and where the section contradicts the rest of the recipe.
    """
    config: dict[str, Any] = copy.deepcopy(dict(section))
    problems: list[KeyProblem] = []
    _settle_batch(config, facts, problems)
    _settle_precision(config, facts, problems)
    stage = _settle_zero(config, facts)
    if stage == 0:
        # DeepSpeed has no fp32 accumulation without ZeRO; the engine keeps the master weights itself.
        config.pop("bf16", None)
        config.pop("fp16", None)
        config["data_types"].pop("grad_accum_dtype", None)
    config.setdefault("gradient_clipping", 1.0)
    config.setdefault("communication_data_type", "fp32")
    config.setdefault("prescale_gradients", False)
    config.setdefault("gradient_predivide_factor", 1.0)
    config.setdefault("wall_clock_breakdown", False)
    config["zero_allow_untested_optimizer"] = True
    return config, problems


def contradictions(section: Mapping[str, Any], facts: RunFacts) -> list[KeyProblem]:
    """Where a section contradicts itself or the rest of the recipe, as far as ``facts`` tell."""
    config = copy.deepcopy(dict(section))
    problems: list[KeyProblem] = []
    _settle_batch(config, facts, problems)
    _settle_precision(config, facts, problems)
    return problems


def frozen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration for a model that is only asked, made of that of the model that is trained beside it."""
    kept = {name: copy.deepcopy(value) for name, value in config.items() if name not in TRAINING_ALONE}
    kept["zero_optimization"].pop("offload_optimizer", None)
    return kept


def zero_stage(section: Mapping[str, Any]) -> int:
    """The ZeRO stage that a ``deepspeed`` section asks for; 2 when it says nothing."""
    zero = section.get("zero_optimization")
    return int(zero.get("stage", 0)) if isinstance(zero, Mapping) else 2


def hidden_size_of(model_config: Any) -> int | None:
    """The width of a model as its configuration names it, or None."""
    for config in (getattr(model_config, "text_config", None), model_config):
        for name in ("hidden_size", "d_model", "n_embd"):
            size = getattr(config, name, None)
            if isinstance(size, int) and size > 0:
                return size
    return None


def check_engine(engine: Any, config: Mapping[str, Any]) -> None:
    """Read the options that decide about the numbers back from DeepSpeed's engine.

    Raises:
        ArcticError: DeepSpeed took one of them differently.
    """
    zero = config["zero_optimization"]
    written = {
        "train_batch_size": (config["train_batch_size"], engine.train_batch_size()),
        "train_micro_batch_size_per_gpu": (
            config["train_micro_batch_size_per_gpu"],
            engine.train_micro_batch_size_per_gpu(),
        ),
        "gradient_accumulation_steps": (config["gradient_accumulation_steps"], engine.gradient_accumulation_steps()),
        "gradient_clipping": (config["gradient_clipping"], engine.gradient_clipping()),
        "gradient_predivide_factor": (config["gradient_predivide_factor"], engine.gradient_predivide_factor()),
        "prescale_gradients": (config["prescale_gradients"], not engine.postscale_gradients()),
        "communication_data_type": (config["communication_data_type"], _dtype_name(engine.communication_data_type)),
        "bf16.enabled": (_enabled(config, "bf16"), bool(engine.bfloat16_enabled())),
        "fp16.enabled": (_enabled(config, "fp16"), bool(engine.fp16_enabled())),
        "zero_optimization.stage": (zero["stage"], int(engine.zero_optimization_stage())),
        "zero_optimization.reduce_bucket_size": (zero.get("reduce_bucket_size"), engine.zero_reduce_bucket_size()),
        "data_types.grad_accum_dtype": (
            config["data_types"].get("grad_accum_dtype", "fp32"),
            _dtype_name(engine.get_data_types()[1]),
        ),
    }
    tested = key_table.shipped()["version"]
    for name, (wanted, taken) in written.items():
        if wanted is not None and wanted != taken:
            raise ArcticError(
                f"DeepSpeed took {name} as {taken!r}, and the configuration says {wanted!r}",
                where=f"deepspeed.{name}",
                remedy=f"install the DeepSpeed that this was tested with: pip install deepspeed=={tested}",
            )


def _settle_batch(config: dict[str, Any], facts: RunFacts, problems: list[KeyProblem]) -> None:
    rows_of_a_rank = facts.micro_batch_size * facts.gradient_accumulation_steps
    rows = "micro_batch_size x gradient_accumulation_steps"
    batch = {
        "train_micro_batch_size_per_gpu": (facts.micro_batch_size, "micro_batch_size"),
        "gradient_accumulation_steps": (facts.gradient_accumulation_steps, "gradient_accumulation_steps"),
    }
    if facts.num_ranks is not None:
        batch["train_batch_size"] = (rows_of_a_rank * facts.num_ranks, f"{rows} x number of ranks")
    elif (given := config.get("train_batch_size", rows_of_a_rank)) <= 0 or given % rows_of_a_rank:
        message = f"is {given}, and {rows} is {rows_of_a_rank}: no number of ranks comes to that"
        problems.append(KeyProblem(("train_batch_size",), message, of="key", remedy="leave it out"))
    for name, (value, origin) in batch.items():
        if config.setdefault(name, value) != value:
            message = f"is {config[name]}, and {origin} comes to {value}"
            problems.append(KeyProblem((name,), message, of="key", remedy="leave it out"))


def _settle_precision(config: dict[str, Any], facts: RunFacts, problems: list[KeyProblem]) -> None:
    if "bfloat16" in config:  # DeepSpeed's old name for it
        config["bf16"] = config.pop("bfloat16")
    if _enabled(config, "bf16") and _enabled(config, "fp16"):
        problems.append(KeyProblem(("fp16", "enabled"), "is on, and so is bf16", of="key", remedy="leave both out"))
        config["bf16"]["enabled"] = config["fp16"]["enabled"] = False
        facts = attrs.evolve(facts, precision="fp32")
    for name in ("bf16", "fp16"):
        section = config.setdefault(name, {})
        wanted = facts.precision == name
        if section.setdefault("enabled", wanted) != wanted:
            says = "on" if section["enabled"] else "off"
            message = f"is {says}, and model.dtype is {facts.precision}"
            problems.append(KeyProblem((name, "enabled"), message, of="key", remedy="leave it out"))
    config["bf16"].setdefault("check_grad_overflow", True)
    data_types = config.setdefault("data_types", {})
    # Arithmetic in 16 bits, sums of gradients in 32: the precision that every engine keeps.
    data_types.setdefault("grad_accum_dtype", "fp32")


def _settle_zero(config: dict[str, Any], facts: RunFacts) -> int:
    stage = zero_stage(config)
    width = facts.hidden_size or 0
    bucket = min(max(width * width, LEAST_BUCKET), MOST_BUCKET)
    zero = config.setdefault("zero_optimization", {})
    zero["stage"] = stage
    if stage:
        zero.setdefault("reduce_bucket_size", bucket)
        zero.setdefault("contiguous_gradients", True)
        zero.setdefault("reduce_scatter", True)
    if stage in (1, 2):
        zero.setdefault("allgather_bucket_size", bucket)
        zero.setdefault("overlap_comm", False)
    if stage == 3:
        zero.setdefault("overlap_comm", True)
        zero.setdefault("stage3_prefetch_bucket_size", bucket * 9 // 10)
        zero.setdefault("stage3_param_persistence_threshold", max(10 * width, 10_000))
    offload = zero.get("offload_optimizer") or {}
    if offload.get("device", "none") != "none":
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    return stage


def _enabled(config: Mapping[str, Any], name: str) -> bool:
    return bool(config.get(name, {}).get("enabled", False))


def _dtype_name(dtype: Any) -> str:
    names = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
    return names.get(str(dtype), str(dtype))
