"""A recipe that trains an adapter on a small Llama, with the huggingface plugin and this one alone."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,peft")


@pytest.fixture
def lora_recipe(tiny_model):
    """LoRA of rank 4 on a tiny Llama; the trainer and its data are those of the kit."""
    return {
        "type": "tiny",
        "skip_validation": True,
        "model": {
            "type": "huggingface",
            "name_or_path": str(tiny_model),
            "dtype": "fp32",
            "peft_config": {"peft_type": "Lora", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        },
        "tokenizer": {"type": "huggingface"},
        "data": {"sources": [{"type": "tiny"}], "dl_num_workers": 0, "num_proc": 1},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 4,
        "train_log_iter_interval": 0,
    }


@pytest.fixture
def with_adapter(lora_recipe):
    """A function that gives the recipe with another adapter."""

    def changed(**adapter):
        return lora_recipe | {"model": lora_recipe["model"] | {"peft_config": adapter}}

    return changed
