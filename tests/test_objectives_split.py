"""Whatever is learned, one optimizer step on the same rows is the same: for every split of them into micro-batches,
accumulation steps and ranks, and in packs.

An objective is one entry of the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("arctic_huggingface")

pytestmark = pytest.mark.slow

WORKER = str(Path(__file__).with_name("worker_objectives.py"))
ROWS = 8


class Objective(NamedTuple):
    """The package that brings it, its file of rows, and its keys beside those of every recipe; what packs its rows."""

    package: str
    rows: str
    keys: dict[str, Any]
    packing: dict[str, Any] | None = {"pack_samples": True}


OBJECTIVES = {
    "sft": Objective("arctic_sft", "chats.jsonl", {"type": "sft"}),
    "causal": Objective("arctic_causal", "documents.jsonl", {"type": "causal", "data": {"pack_samples": False}}),
    "dpo": Objective("arctic_dpo", "pairs.jsonl", {"type": "dpo", "precompute_reference": True}),
    "kto": Objective("arctic_kto", "labelled.jsonl", {"type": "kto", "ref_model": {"init": "random"}}),
    "reward": Objective("arctic_reward", "pairs.jsonl", {"type": "reward", "centering_coefficient": 0.01}),
    "dpo without reference": Objective("arctic_dpo", "pairs.jsonl", {"type": "dpo", "loss_type": ["cpo", "orpo"]}),
    "distill": Objective("arctic_distill", "chats.jsonl", {"type": "distill", "teacher": {"name_or_path": "teacher"}}),
    "embed": Objective("arctic_embed", "texts.jsonl", {"type": "embed", "symmetric": True}, packing=None),
}
SPLITS = {
    "one micro-batch": {"micro_batch_size": ROWS},
    "micro-batches of two": {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
    "single rows": {"micro_batch_size": 1, "gradient_accumulation_steps": 8},
    "slots that are not filled": {"micro_batch_size": 3, "gradient_accumulation_steps": 3},
    "packs": {"micro_batch_size": ROWS},
    "packs in micro-batches": {"micro_batch_size": 1, "gradient_accumulation_steps": 8},
}
ON_TWO_RANKS = {
    "two ranks": {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
    "two ranks, not filled": {"micro_batch_size": 3, "gradient_accumulation_steps": 2},
    "packs on two ranks": {"micro_batch_size": 1, "gradient_accumulation_steps": 4},
}
INSTALLED = [name for name, objective in OBJECTIVES.items() if find_spec(objective.package)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of two layers, and eight rows of unequal length for each objective."""
    from arctic_training.testing.tiny_llama import make_tiny_llama

    home = tmp_path_factory.mktemp("objectives")
    make_tiny_llama(home / "model")
    make_tiny_llama(home / "teacher", layers=3, seed=1)
    numbers = range(ROWS)
    question = [{"role": "user", "content": "What is it?"}]
    answers = [{"role": "assistant", "content": f"It is {'very ' * n}much: {n}."} for n in numbers]
    rows = {
        "chats": [{"messages": [*question, answer]} for answer in answers],
        "documents": [{"text": f"Once upon {'a ' * (1 + n * 2)}time: {n}."} for n in numbers],
        "pairs": [
            {"prompt": f"What is {n}?", "chosen": answers[n]["content"], "rejected": "No idea. " * (1 + n % 3)}
            for n in numbers
        ],
        "labelled": [
            {"prompt": f"What is {n}?", "completion": answers[n]["content"], "label": n % 3 > 0} for n in numbers
        ],
        "texts": [
            {"query": f"What is {n}?", "positive": answers[n]["content"], "negatives": ["No idea."] * (n % 2)}
            for n in numbers
        ],
    }
    for name, content in rows.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return home


def recipe(home, name, split, engine):
    objective = OBJECTIVES[name]
    keys = objective.keys | {"data": dict(objective.keys.get("data", {}))}
    keys["data"] |= {
        "sources": [str(home / objective.rows)],
        "cache_dir": str(home / "cache"),
        "max_length": 128,
        "div_length": 16,
        "dl_num_workers": 0,
        "num_proc": 1,
        **(objective.packing or {} if "packs" in split else {}),
    }
    model = {"name_or_path": str(home / "model"), "dtype": "fp32"}
    for other in {"ref_model", "teacher"} & keys.keys():
        keys[other] = model | keys[other]
        keys[other]["name_or_path"] = str(home / keys[other]["name_or_path"])
    return {
        "model": model,
        "optimizer": {"type": "plain", "learning_rate": 0.1},
        "scheduler": {"type": "constant"},
        "train_iters": 1,
        "train_log_iter_interval": 0,
        "run_dir": str(home / "runs" / f"{name}-{split}"),
        **engine,
        **{**SPLITS, **ON_TWO_RANKS}[split],
        **keys,
    }


def recipes(home, splits, engine):
    made = {}
    for name in INSTALLED:
        for split in splits:
            if OBJECTIVES[name].packing is not None or "packs" not in split:
                made[f"{name}-{split}"] = recipe(home, name, split, engine)
    return json.dumps(made)


@pytest.fixture(scope="module")
def alone(home):
    """All runs of one process, by objective and split."""
    (home / "alone.json").write_text(recipes(home, SPLITS, {"engine": {"type": "torch"}}))
    subprocess.run([sys.executable, WORKER, home / "alone.json", home], check=True)
    return home


@pytest.fixture(scope="module")
def together(home):
    """All runs of two ranks."""
    launcher = pytest.importorskip("arctic_deepspeed.launcher").DeepSpeedLauncher()
    (home / "together.json").write_text(recipes(home, ON_TWO_RANKS, {"deepspeed": {"zero_optimization": {"stage": 2}}}))
    assert launcher.launch(WORKER, [str(home / "together.json"), str(home)], ["--num_gpus", "2"]) == 0
    return home


def assert_the_same_step(directory, name, split):
    import torch

    if OBJECTIVES[name].packing is None and "packs" in split:
        pytest.skip("its rows are not packed")
    (whole,), (other,) = (
        json.loads((directory / f"{name}-{each}.json").read_text()) for each in ("one micro-batch", split)
    )
    for figure in ("loss", "grad_norm", *(key for key in whole if "/" in key)):
        assert other[figure] == pytest.approx(whole[figure], rel=1e-4, abs=1e-6), figure
    before, after = (torch.load(directory / f"{name}-{each}.pt") for each in ("one micro-batch", split))
    assert max(float((before[key] - after[key]).abs().max()) for key in before) < 1e-6


@pytest.mark.parametrize("split", [split for split in SPLITS if split != "one micro-batch"])
@pytest.mark.parametrize("name", INSTALLED)
def test_one_step_does_not_depend_on_the_split_of_its_rows(alone, name, split):
    assert_the_same_step(alone, name, split)


@pytest.mark.distributed
@pytest.mark.parametrize("split", ON_TWO_RANKS)
@pytest.mark.parametrize("name", INSTALLED)
def test_one_step_does_not_depend_on_the_number_of_ranks(alone, together, name, split):
    assert_the_same_step(together, name, split)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_step_changes_the_model(alone, home, name):
    import torch
    from safetensors.torch import load_file

    before = load_file(home / "model" / "model.safetensors")
    after = torch.load(home / f"{name}-one micro-batch.pt")
    if OBJECTIVES[name].keys["type"] == "embed":  # a model without a head has shorter names
        before = {key.removeprefix("model."): tensor for key, tensor in before.items()}
    assert max(float((before[key] - after[key]).abs().max()) for key in before.keys() & after.keys()) > 1e-4
