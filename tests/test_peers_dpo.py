"""The losses of preferences against those that TRL computes, on the same model and pairs, in TRL's own environment.

``ARCTIC_TRL_PYTHON`` names the Python of that environment; ``nox -s peers`` makes it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("arctic_dpo")

PYTHON = os.environ.get("ARCTIC_TRL_PYTHON", "")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON, reason="ARCTIC_TRL_PYTHON names no Python with TRL"),
]
BETA, SMOOTHING = 0.3, 0.1
KEYS = {
    "sigmoid": {},
    "hinge": {},
    "ipo": {},
    "robust": {"label_smoothing": SMOOTHING},
    "bco_pair": {},
    "apo_zero": {},
    "apo_down": {},
    "sppo_hard": {},
    "exo_pair": {"label_smoothing": SMOOTHING},
    "discopop": {},
    "sigmoid per token": {"loss_type": "sigmoid", "length_normalization": True},
    "cpo": {"label_smoothing": SMOOTHING, "cpo_alpha": 0.5},
    "simpo": {"simpo_gamma": 0.7},
    "orpo": {"orpo_lambda": BETA},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A policy, another model to hold it against, and four pairs."""
    from arctic_training.testing.tiny_llama import make_tiny_llama

    home = tmp_path_factory.mktemp("peers")
    make_tiny_llama(home / "model")
    make_tiny_llama(home / "reference", seed=1)
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"It is {n}." + " Sure." * n, "rejected": "Who knows? " * (4 - n)}
        for n in range(4)
    ]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def token_ids(home):
    """Prompt and answers of each pair, as our encoder makes them."""
    from transformers import AutoTokenizer

    from arctic_huggingface.chat.pairs import PairEncoder

    rows = [json.loads(line) for line in (home / "pairs.jsonl").read_text().splitlines()]
    encode = PairEncoder(AutoTokenizer.from_pretrained(home / "model"), max_length=256)
    pairs = []
    for row in rows:
        columns = encode([row], [""]).columns
        ids, labels = columns["input_ids"].tolist(), columns["labels"].tolist()
        middle = columns["position_ids"].tolist().index(0, 1)
        prompt = next(number for number, label in enumerate(labels) if label != -100)
        chosen, rejected = ([label for label in part if label != -100] for part in (labels[:middle], labels[middle:]))
        pairs.append({"prompt_ids": ids[:prompt], "chosen_ids": chosen, "rejected_ids": rejected})
    return pairs


@pytest.fixture(scope="module")
def theirs(home):
    """The loss that TRL's trainers give for all pairs together, by name."""
    (home / "tokens.json").write_text(json.dumps(token_ids(home)))
    worker = Path(__file__).with_name("worker_trl.py")
    (home / "keys.json").write_text(json.dumps({"beta": BETA, "keys": KEYS}))
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([PYTHON, str(worker), str(home)], check=True, env=environment, timeout=900)
    return json.loads((home / "trl.json").read_text())


@pytest.mark.parametrize("name", KEYS)
def test_the_loss_is_that_of_trl(build_run, home, theirs, name):
    import torch

    keys = {"loss_type": name} | KEYS[name]
    reference = {} if name in ("cpo", "simpo", "orpo") else {"ref_model": model(home / "reference")}
    recipe = {
        "type": "dpo",
        "model": model(home / "model"),
        "data": {"sources": [str(home / "pairs.jsonl")], "max_length": 256, "num_proc": 1, "dl_num_workers": 0},
        "engine": {"type": "torch"},
        "micro_batch_size": 4,
        **({} if name == "orpo" else {"beta": BETA}),
        **keys,
        **reference,
    }
    with build_run(recipe) as run, torch.no_grad():
        (micro_batch,) = next(run.trainer.train_dataloader.epoch(0))
        loss = run.trainer.loss(micro_batch)
    found = float(loss.sum) / float(loss.weight)
    assert found == pytest.approx(theirs[name], rel=1e-4, abs=1e-4)


def model(path):
    return {"name_or_path": str(path), "dtype": "fp32"}
