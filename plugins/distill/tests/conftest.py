"""A tiny student, a tiny teacher with other weights, and a recipe of both."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,distill")


@pytest.fixture
def tiny_teacher(tmp_path):
    """A Llama with the words of ``tiny_model``, a layer more, and other weights that make it sure of itself."""
    import torch
    from transformers import AutoModelForCausalLM

    from arctic_training.testing.tiny_llama import make_tiny_llama

    path = make_tiny_llama(tmp_path / "tiny-teacher", layers=3, seed=1)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(path)
    return path


@pytest.fixture
def distill_recipe(tiny_model, tiny_teacher, tiny_chats):
    """Distillation of a tiny model from a tiny teacher on tiny chats with the torch engine."""
    return {
        "type": "distill",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "teacher": {"name_or_path": str(tiny_teacher), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "dl_num_workers": 0, "num_proc": 1, "div_length": 8, "max_length": 128},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 4,
        "train_log_iter_interval": 0,
    }
