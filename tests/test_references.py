"""What a policy is held against: before the first step the policy itself, whoever tells it and on every engine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("arctic_dpo")

pytestmark = pytest.mark.slow
WORKER = str(Path(__file__).with_name("worker_objectives.py"))
STAGES = (0, 2, 3)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model with dropout in its attention, and sixteen pairs of unequal length."""
    from arctic_training.testing.tiny_llama import make_tiny_llama

    home = tmp_path_factory.mktemp("references")
    make_tiny_llama(home / "model")
    config = json.loads((home / "model" / "config.json").read_text())
    (home / "model" / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    rows = [
        {
            "prompt": f"What is {n}?",
            "chosen": f"It is {n}." + " Sure." * (n % 3),
            "rejected": "Who knows? " * (1 + n % 4),
        }
        for n in range(16)
    ]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def recipe(home, name, *, data=None, **keys):
    return {
        "type": "dpo",
        "model": {"name_or_path": str(home / "model"), "dtype": "fp32"},
        "ref_model": {"name_or_path": str(home / "model"), "dtype": "fp32"},
        "data": {
            "sources": [str(home / "pairs.jsonl")],
            "cache_dir": str(home / "cache"),
            "max_length": 128,
            "div_length": 16,
            "dl_num_workers": 0,
            "num_proc": 1,
            **(data or {}),
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "micro_batch_size": 16,
        "train_iters": 3,
        "train_log_iter_interval": 0,
        "run_dir": str(home / "runs" / name),
        **keys,
    }


def losses(home, name):
    return [record["loss"] for record in json.loads((home / f"{name}.json").read_text())]


def of_stage(home, stage, ranks):
    name = f"zero-{stage}-on-{ranks}"
    engine = {"deepspeed": {"zero_optimization": {"stage": stage}}, "micro_batch_size": 16 // ranks}
    precomputed = f"{name}-precomputed"
    return {
        name: recipe(home, name, **engine),
        precomputed: recipe(
            home, precomputed, **engine, precompute_reference=True, data={"cache_dir": f"{home}/{name}"}
        ),
    }


@pytest.fixture(scope="module")
def alone(home):
    """Runs of one process."""
    torch_engine = {"engine": {"type": "torch"}}
    runs = {
        "separate": recipe(home, "separate", **torch_engine),
        "packed": recipe(home, "packed", **torch_engine, data={"pack_samples": True}),
        "precomputed": recipe(home, "precomputed", **torch_engine, precompute_reference=True),
        "precomputed, packed": recipe(
            home, "precomputed, packed", **torch_engine, precompute_reference=True, data={"pack_samples": True}
        ),
        "the policy itself": recipe(
            home, "the policy itself", **torch_engine, precompute_reference=True, ref_model=None
        ),
        **{name: made for stage in STAGES for name, made in of_stage(home, stage, 1).items()},
    }
    (home / "alone.json").write_text(json.dumps(runs))
    subprocess.run([sys.executable, WORKER, home / "alone.json", home], check=True)
    return home


@pytest.fixture(scope="module")
def together(home):
    """Runs of two ranks."""
    launcher = pytest.importorskip("arctic_deepspeed.launcher").DeepSpeedLauncher()
    runs = {name: made for stage in STAGES for name, made in of_stage(home, stage, 2).items()}
    (home / "together.json").write_text(json.dumps(runs))
    assert launcher.launch(WORKER, [str(home / "together.json"), str(home)], ["--num_gpus", "2"]) == 0
    return home


def assert_nothing_is_learned_yet(home, name):
    first = json.loads((home / f"{name}.json").read_text())[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["", "-precomputed"])
@pytest.mark.parametrize("stage", STAGES)
def test_before_the_first_step_the_loss_is_ln_2_on_one_rank(alone, stage, kind):
    assert_nothing_is_learned_yet(alone, f"zero-{stage}-on-1{kind}")


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["", "-precomputed"])
@pytest.mark.parametrize("stage", STAGES)
def test_before_the_first_step_the_loss_is_ln_2_on_two_ranks(alone, together, stage, kind):
    name = f"zero-{stage}-on-2{kind}"
    assert_nothing_is_learned_yet(together, name)
    assert losses(together, name) == pytest.approx(losses(alone, "separate"), abs=1e-4)


@pytest.mark.parametrize("name", ["packed", "precomputed", "precomputed, packed", "the policy itself"])
def test_every_way_to_a_reference_gives_the_same_losses(alone, name):
    assert_nothing_is_learned_yet(alone, name)
    assert losses(alone, name) == pytest.approx(losses(alone, "separate"), abs=1e-5)
    assert losses(alone, name)[-1] < 0.6


def test_an_adapter_that_is_switched_off_is_the_same_reference(run_recipe, home):
    pytest.importorskip("arctic_peft")
    adapter = {"peft_type": "Lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}
    kinds = {"separate": {}, "switched off": {"ref_model": None}, "precomputed": {"precompute_reference": True}}
    found = {}
    for name, keys in kinds.items():
        made = recipe(home, f"adapter, {name}", engine={"type": "torch"}, **keys)
        made["model"] = made["model"] | {"peft_config": adapter}
        found[name] = [line["loss"] for line in run_recipe(made).metrics if line["kind"] == "train"]
    assert found["separate"][0] == pytest.approx(math.log(2), abs=1e-4)
    assert found["switched off"] == pytest.approx(found["separate"], abs=1e-5)
    assert found["precomputed"] == pytest.approx(found["separate"], abs=1e-5)
