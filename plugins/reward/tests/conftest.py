"""Preference pairs and a recipe that trains a tiny reward model on them."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,reward")


@pytest.fixture
def pair():
    """A function that makes a question with a right and a wrong answer, of several lengths."""

    def pair(number, **others):
        total = number + number % 7
        question = {"role": "user", "content": f"What is {number} plus {number % 7}?"}
        right = f"It is {total}." if number % 3 else f"{total}, of course."
        answers = {"chosen": right, "rejected": f"No idea, {total + 1} maybe."}
        chats = {name: [question, {"role": "assistant", "content": text}] for name, text in answers.items()}
        return chats | others

    return pair


@pytest.fixture
def write(tmp_path):
    """A function that writes rows as JSONL."""

    def write(rows, name="pairs.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def pairs(write, pair):
    """16 pairs, of which every second has a margin."""
    return write([pair(number, **({"margin": number / 8} if number % 2 else {})) for number in range(16)])


@pytest.fixture
def reward_recipe(tiny_model, pairs):
    """Training of a tiny reward model."""
    return {
        "type": "reward",
        "margin": 0.25,
        "centering_coefficient": 0.01,
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32", "disable_activation_checkpoint": True},
        "data": {
            "sources": [str(pairs)],
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


@pytest.fixture
def exported(run_recipe, reward_recipe, tmp_path):
    """The folder that a run exported, with the model that it ended with."""
    checkpoint = {"type": "huggingface", "output_dir": str(tmp_path / "out"), "save_end_of_training": True}
    run = run_recipe(reward_recipe | {"checkpoint": checkpoint, "train_iters": 2})
    (folder,) = (tmp_path / "out").iterdir()
    return folder, run.trainer
