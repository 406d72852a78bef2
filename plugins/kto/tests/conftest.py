"""Labelled answers and a recipe that trains a tiny model on them."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,kto")


@pytest.fixture
def chat():
    """A function that makes a question with a right or a wrong answer, of several lengths."""

    def chat(number, good):
        total = number + number % 7 + (0 if good else 1)
        answer = f"It is {total}." if number % 3 else f"{total}, of course."
        question = {"role": "user", "content": f"What is {number} plus {number % 7}?"}
        return {"messages": [question, {"role": "assistant", "content": answer}], "label": good}

    return chat


@pytest.fixture
def write(tmp_path):
    """A function that writes rows as JSONL."""

    def write(rows, name="answers.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def answers(write, chat):
    """24 answers, of which every third is wrong."""
    return write([chat(number, number % 3 > 0) for number in range(24)])


@pytest.fixture
def kto_recipe(tiny_model, tmp_path, answers):
    """Training of a tiny model on labelled answers, against a reference with other weights."""
    from arctic_training.testing.tiny_llama import make_tiny_llama

    reference = make_tiny_llama(tmp_path / "reference", seed=1)
    return {
        "type": "kto",
        "beta": 0.5,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.5,
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32", "disable_activation_checkpoint": True},
        "ref_model": {"name_or_path": str(reference), "dtype": "fp32", "disable_activation_checkpoint": True},
        "data": {
            "sources": [str(answers)],
            "dl_num_workers": 0,
            "num_proc": 1,
            "div_length": 8,
            "max_length": 128,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 4,
        "train_log_iter_interval": 0,
    }
