"""The names that users import from ``arctic_training`` though a plugin owns them, and which plugin brings what.

The only place where core knows a plugin by name, and only as text: nothing here is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

EXPORTS: dict[str, dict[str, str]] = {
    "arctic_training": {
        "ArcticError": "arctic_training.errors:ArcticError",
        "CheckpointConfig": "arctic_training.checkpoint:CheckpointConfig",
        "CheckpointEngine": "arctic_training.checkpoint:CheckpointEngine",
        "Config": "arctic_training.config:Config",
        "DataConfig": "arctic_training.data:DataConfig",
        "DataFactory": "arctic_training.data:DataFactory",
        "DataSource": "arctic_training.data:DataSource",
        "LossConfig": "arctic_training.loss:LossConfig",
        "LossFactory": "arctic_training.loss:LossFactory",
        "LossSum": "arctic_training.loss:LossSum",
        "ModelConfig": "arctic_training.model:ModelConfig",
        "ModelFactory": "arctic_training.model:ModelFactory",
        "OptimizerConfig": "arctic_training.optimizer:OptimizerConfig",
        "OptimizerFactory": "arctic_training.optimizer:OptimizerFactory",
        "SchedulerConfig": "arctic_training.scheduler:SchedulerConfig",
        "SchedulerFactory": "arctic_training.scheduler:SchedulerFactory",
        "SourceConfig": "arctic_training.data:SourceConfig",
        "TokenizerConfig": "arctic_training.tokenizer:TokenizerConfig",
        "TokenizerFactory": "arctic_training.tokenizer:TokenizerFactory",
        "Trainer": "arctic_training.trainer:Trainer",
        "TrainerConfig": "arctic_training.trainer:TrainerConfig",
        "get_config": "arctic_training.api:get_config",
        "hookimpl": "arctic_training.hookspecs:hookimpl",
        "key": "arctic_training.config:key",
        "register": "arctic_training.component:register",
        "HFModelFactory": "arctic_huggingface.model:HFModelFactory",
        "HFTokenizerFactory": "arctic_huggingface.tokenizer:HFTokenizerFactory",
        "CausalDataFactory": "arctic_causal.data:CausalDataFactory",
        "CausalTrainer": "arctic_causal.trainer:CausalTrainer",
        "DistillTrainer": "arctic_distill.trainer:DistillTrainer",
        "EmbedTrainer": "arctic_embed.trainer:EmbedTrainer",
        "DPODataFactory": "arctic_dpo.data:DPODataFactory",
        "DPOTrainer": "arctic_dpo.trainer:DPOTrainer",
        "KTOTrainer": "arctic_kto.trainer:KTOTrainer",
        "RewardTrainer": "arctic_reward.trainer:RewardTrainer",
        "SFTDataFactory": "arctic_sft.data:SFTDataFactory",
        "SFTTrainer": "arctic_sft.trainer:SFTTrainer",
    },
    "arctic_training.model": {"HFModelFactory": "arctic_huggingface.model:HFModelFactory"},
    "arctic_training.tokenizer": {"HFTokenizerFactory": "arctic_huggingface.tokenizer:HFTokenizerFactory"},
    "arctic_training.data": {
        "CausalDataFactory": "arctic_causal.data:CausalDataFactory",
        "HFCausalDataSource": "arctic_causal.source:HFCausalDataSource",
        "DPODataFactory": "arctic_dpo.data:DPODataFactory",
        "SFTDataFactory": "arctic_sft.data:SFTDataFactory",
        "HFDataSource": "arctic_huggingface.source:HFDataSource",
        "HFInstructDataSource": "arctic_huggingface.source:HFInstructDataSource",
    },
    "arctic_training.trainer": {
        "CausalTrainer": "arctic_causal.trainer:CausalTrainer",
        "DPOTrainer": "arctic_dpo.trainer:DPOTrainer",
        "KTOTrainer": "arctic_kto.trainer:KTOTrainer",
        "RewardTrainer": "arctic_reward.trainer:RewardTrainer",
        "SFTTrainer": "arctic_sft.trainer:SFTTrainer",
    },
    "arctic_training.checkpoint": {
        "HFCheckpointEngine": "arctic_huggingface.checkpoint:HFCheckpointEngine",
        "DSCheckpointEngine": "arctic_deepspeed.checkpoint:DSCheckpointEngine",
    },
}

DISTRIBUTIONS = {
    "arctic_huggingface": "arctic-plugin-huggingface",
    "arctic_sft": "arctic-plugin-sft",
    "arctic_causal": "arctic-plugin-causal",
    "arctic_distill": "arctic-plugin-distill",
    "arctic_embed": "arctic-plugin-embed",
    "arctic_dpo": "arctic-plugin-dpo",
    "arctic_kto": "arctic-plugin-kto",
    "arctic_reward": "arctic-plugin-reward",
    "arctic_deepspeed": "arctic-plugin-deepspeed",
    "arctic_liger": "arctic-plugin-liger",
    "arctic_peft": "arctic-plugin-peft",
}

KNOWN_COMPONENTS: dict[tuple[str, str], str] = {
    ("trainer", "sft"): "arctic-plugin-sft",
    ("trainer", "causal"): "arctic-plugin-causal",
    ("trainer", "distill"): "arctic-plugin-distill",
    ("trainer", "kto"): "arctic-plugin-kto",
    ("trainer", "reward"): "arctic-plugin-reward",
    ("trainer", "dpo"): "arctic-plugin-dpo",
    ("trainer", "embed"): "arctic-plugin-embed",
    ("data", "sft"): "arctic-plugin-sft",
    ("data", "causal"): "arctic-plugin-causal",
    ("data", "distill"): "arctic-plugin-distill",
    ("data", "kto"): "arctic-plugin-kto",
    ("data", "reward"): "arctic-plugin-reward",
    ("data", "dpo"): "arctic-plugin-dpo",
    ("data", "embed"): "arctic-plugin-embed",
    ("data_source", "huggingface"): "arctic-plugin-huggingface",
    ("data_source", "huggingface_instruct"): "arctic-plugin-huggingface",
    ("data_source", "huggingface_pairs"): "arctic-plugin-huggingface",
    ("data_source", "huggingface_causal"): "arctic-plugin-causal",
    ("model", "huggingface"): "arctic-plugin-huggingface",
    ("model", "embed"): "arctic-plugin-embed",
    ("model", "reward"): "arctic-plugin-reward",
    ("model", "liger"): "arctic-plugin-liger",
    ("tokenizer", "huggingface"): "arctic-plugin-huggingface",
    ("scheduler", "huggingface"): "arctic-plugin-huggingface",
    ("checkpoint", "huggingface"): "arctic-plugin-huggingface",
    ("checkpoint", "deepspeed"): "arctic-plugin-deepspeed",
    ("optimizer", "fused_adam"): "arctic-plugin-deepspeed",
    ("optimizer", "cpu_adam"): "arctic-plugin-deepspeed",
    ("optimizer", "adafactor"): "arctic-plugin-optimizers",
    ("optimizer", "muon"): "arctic-plugin-optimizers",
    ("optimizer", "schedule_free"): "arctic-plugin-optimizers",
    ("optimizer", "adamw_8bit"): "arctic-plugin-optimizers",
    ("engine", "deepspeed"): "arctic-plugin-deepspeed",
    ("launcher", "deepspeed"): "arctic-plugin-deepspeed",
}
"""(kind, name) of components that a distribution of ours brings, to say so when it is not installed."""

KNOWN_KEYS: dict[tuple[str, str], tuple[str, str]] = {
    ("", "teacher"): ("distill", "arctic-plugin-distill"),
    ("", "ref_model"): ("dpo", "arctic-plugin-dpo"),
    ("", "beta"): ("dpo", "arctic-plugin-dpo"),
    ("", "label_smoothing"): ("dpo", "arctic-plugin-dpo"),
    ("data", "max_prompt_length"): ("dpo", "arctic-plugin-dpo"),
    ("data", "dpo_prompt_truncation_mode"): ("dpo", "arctic-plugin-dpo"),
}
"""(section, key) of keys that belong to another trainer: its name and its distribution."""

KNOWN_SECTIONS: dict[str, str] = {"deepspeed": "arctic-plugin-deepspeed"}
"""Top-level sections that a plugin brings."""


def lazy_attribute(module: str, name: str) -> Any:
    """The attribute ``name`` of ``module`` for a PEP 562 ``__getattr__``.

    Raises:
        AttributeError: the module has no such name.
        ImportError: the plugin that owns it is not installed; names the distribution to install.
    """
    target = EXPORTS.get(module, {}).get(name)
    if target is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    owner, _, attribute = target.partition(":")
    package = owner.partition(".")[0]
    try:
        return getattr(importlib.import_module(owner), attribute)
    except ModuleNotFoundError as error:
        if error.name != package or package not in DISTRIBUTIONS:
            raise
        raise ImportError(
            f"{name} is part of {DISTRIBUTIONS[package]}: pip install {DISTRIBUTIONS[package]}"
        ) from error
