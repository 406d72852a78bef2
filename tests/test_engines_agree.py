"""Every engine, ZeRO stage, number of ranks and split of a batch trains the same model, on a real task in fp32."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORKER = str(Path(__file__).with_name("worker_engines.py"))
LEARNING_RATE = 3e-3
STEPS = 10
STAGES = (0, 1, 2, 3)
SPLITS = ((1, 1, 16), (1, 4, 4), (2, 2, 4), (2, 8, 1))
"""Ranks, accumulation, micro-batch: each makes 16 rows."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of two layers, and chats of unequal length."""
    from arctic_training.testing.tiny_llama import make_tiny_llama

    home = tmp_path_factory.mktemp("engines")
    make_tiny_llama(home / "model", tied=True)
    with open(home / "chats.jsonl", "w") as file:
        for number in range(64):
            answer = f"It is {'very ' * (number % 13)}much: {number * 7}."
            chat = [{"role": "user", "content": f"What is {number} times 7?"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": chat}) + "\n")
    return home


def recipe(home, name, *, stage=None, accumulation=1, micro_batch=16, steps=STEPS, **model):
    """``stage`` None is the torch engine. A single step is taken at the full rate."""
    return {
        "type": "sft",
        "model": {"name_or_path": str(home / "model"), "dtype": "fp32", **model},
        "data": {
            "sources": [str(home / "chats.jsonl")],
            "cache_dir": str(home / "cache"),
            "max_length": 256,
            "div_length": 16,
            "dl_num_workers": 0,
            "num_proc": 1,
        },
        "optimizer": {"type": "fused_adam", "learning_rate": LEARNING_RATE},
        "scheduler": {"name": "linear", "warmup_ratio": 0.1} if steps > 1 else {"name": "constant"},
        "engine": {"type": "torch" if stage is None else "deepspeed"},
        "deepspeed": {} if stage is None else {"zero_optimization": {"stage": stage}},
        "micro_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_iters": steps,
        "train_log_iter_interval": 0,
        "loss_log_interval": 0,
        "run_dir": str(home / "runs" / name),
    }


def recipes_of(home, ranks):
    recipes = {"torch": recipe(home, "torch")} if ranks == 1 else {}
    for stage in STAGES:
        name = f"zero-{stage}-on-{ranks}"
        recipes[name] = recipe(home, name, stage=stage, micro_batch=16 // ranks)
    for split in SPLITS:
        if split[0] == ranks:
            for stage in (None, *STAGES) if ranks == 1 else STAGES:
                name = f"one-step-{'torch' if stage is None else stage}-{split[0]}-{split[1]}-{split[2]}"
                _, accumulation, micro_batch = split
                recipes[name] = recipe(
                    home, name, stage=stage, accumulation=accumulation, micro_batch=micro_batch, steps=1
                )
    for stage in (None, 3) if ranks == 1 else (3,):
        name = f"random-{stage}-on-{ranks}"
        recipes[name] = recipe(home, name, stage=stage, micro_batch=16 // ranks, steps=1, init="random")
    return recipes


@pytest.fixture(scope="module")
def results(home):
    """The figures and the weights of all runs: one process, and one launch of two ranks."""
    import torch

    from arctic_deepspeed.launcher import DeepSpeedLauncher

    for ranks in (1, 2):
        (home / f"recipes-{ranks}.json").write_text(json.dumps(recipes_of(home, ranks)))
    subprocess.run([sys.executable, WORKER, home / "recipes-1.json", home], check=True)
    assert DeepSpeedLauncher().launch(WORKER, [str(home / "recipes-2.json"), str(home)], ["--num_gpus", "2"]) == 0
    results = {}
    for path in home.glob("*.pt"):
        results[path.stem] = json.loads(path.with_suffix(".json").read_text()) | {"weights": torch.load(path)}
    return results


def difference(one, other):
    """The largest difference of a weight."""
    assert list(one["weights"]) == list(other["weights"])
    pairs = zip(one["weights"].values(), other["weights"].values(), strict=True)
    return max(float((tensor - twin).abs().max()) for tensor, twin in pairs)


ENGINES = [f"zero-{stage}-on-{ranks}" for ranks in (1, 2) for stage in STAGES]


@pytest.mark.parametrize("name", ENGINES)
def test_ten_steps_agree_with_the_torch_engine(results, name):
    ours, theirs = results[name], results["torch"]
    assert ours["engine"] == "deepspeed"
    assert ours["ranks"] == int(name[-1])
    assert ours["trained_tokens"] == theirs["trained_tokens"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("name", ["torch", *ENGINES])
def test_the_learning_rate_of_every_step_is_the_closed_form(results, name):
    """Up over the first step of ten, then down in a line to 0."""
    expected = [0.0] + [LEARNING_RATE * (STEPS - step) / (STEPS - 1) for step in range(1, STEPS)]
    assert results[name]["learning_rate"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("stage", ["torch", *STAGES])
def test_one_step_does_not_depend_on_the_split_of_its_rows(results, stage):
    whole = results["one-step-torch-1-1-16"]
    splits = [split for split in SPLITS if stage != "torch" or split[0] == 1]
    for ranks, accumulation, micro_batch in splits:
        split = results[f"one-step-{stage}-{ranks}-{accumulation}-{micro_batch}"]
        assert split["ranks"] == ranks
        assert split["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert difference(split, whole) < 1e-5


def test_zero_3_reads_pretrained_weights_into_shards(results):
    pytest.importorskip("accelerate")
    assert [name for name in results if results[name]["is_partitioned"] and "random" not in name] == [
        name for name in results if "zero-3" in name or "one-step-3" in name
    ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_zero_3_draws_the_same_random_weights_as_any_engine(results, ranks):
    assert difference(results[f"random-3-on-{ranks}"], results["random-None-on-1"]) < 1e-5
