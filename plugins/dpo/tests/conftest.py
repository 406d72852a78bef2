"""A recipe that learns from a few pairs with a tiny model, made here, so that tests need no network."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,dpo")


@pytest.fixture
def preferences(tmp_path):
    """A JSONL file of 24 pairs of answers of different lengths."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": f"What is {number} plus {number % 7}?",
            "chosen": f"It is {number + number % 7}." + " Sure." * (number % 3),
            "rejected": "Who knows? " * (1 + number % 4),
        }
        for number in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def dpo_recipe(tiny_model, preferences):
    """Training of a tiny model on these pairs with the torch engine; the reference is the same model."""
    return {
        "type": "dpo",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "ref_model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {
            "sources": [str(preferences)],
            "dl_num_workers": 0,
            "num_proc": 1,
            "div_length": 8,
            "max_length": 128,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 4,
        "train_log_iter_interval": 0,
    }
