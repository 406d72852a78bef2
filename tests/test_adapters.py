"""Adapters on every engine and ZeRO stage, alone and on two ranks: small checkpoints that any of them continues, and
files that say what the trained model said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")
pytest.importorskip("arctic_peft")

pytestmark = pytest.mark.slow

from arctic_training.testing.contracts.common import KeepsWeights, figures, last_weights  # noqa: E402

ENGINES = ["torch", 0, 1, 2, 3]
WORKER = str(Path(__file__).with_name("worker_engines.py"))


@pytest.fixture(autouse=True)
def keeps_weights(arctic_home, plugin_manager):
    plugin_manager.register(KeepsWeights(), "keeps weights")


@pytest.fixture
def recipe(arctic_home, tiny_chats):
    """LoRA on packs of chats; the model is large beside the adapter."""
    return made(arctic_home, tiny_chats)


def made(home, chats):
    from arctic_training.testing.tiny_llama import make_tiny_llama

    return {
        "type": "sft",
        "model": {
            "name_or_path": str(make_tiny_llama(home / "base", hidden_size=64, layers=3)),
            "dtype": "fp32",
            "peft_config": {"peft_type": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]},
        },
        "data": {
            "sources": [str(chats)], "max_length": 128, "div_length": 16, "dl_num_workers": 0, "num_proc": 1,
            "cache_dir": str(home / "cache"),
        },
        "optimizer": {"type": "fused_adam", "learning_rate": 3e-2},
        "scheduler": {"name": "constant"},
        "micro_batch_size": 4,
        "train_iters": 6,
        "train_log_iter_interval": 0,
        "checkpoint": {"output_dir": "kept", "auto_resume": True, "save_every_n_steps": 3},
    }  # fmt: skip


def on(recipe, engine, **keys):
    """The recipe on an engine: torch, or DeepSpeed with a ZeRO stage."""
    if engine == "torch":
        return recipe | {"engine": {"type": "torch"}, "deepspeed": {}} | keys
    return recipe | {"engine": {"type": "deepspeed"}, "deepspeed": {"zero_optimization": {"stage": engine}}} | keys


def size_of(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoints_are_small_and_go_on_exactly(run_recipe, recipe, engine, arctic_home):
    whole = run_recipe(on(recipe, engine, checkpoint=[]))
    run_recipe(on(recipe, engine, exit_iteration_this_run=3))
    again = run_recipe(on(recipe, engine))
    assert again.first_step == 3
    assert figures(again, "loss")[-3:] == figures(whole, "loss")[3:]
    for name, tensor in last_weights(whole).items():
        assert last_weights(again)[name].equal(tensor), name
    path = arctic_home / "kept/global_step_3"
    state = size_of(path) - size_of(path / "model") - (path / "random-0.pt").stat().st_size
    assert state < 0.5 * (arctic_home / "base/model.safetensors").stat().st_size
    run_recipe(on(recipe | {"model": recipe["model"] | {"peft_config": None}}, engine, train_iters=3,
                  checkpoint={"output_dir": "full", "save_end_of_training": True}))  # fmt: skip
    assert size_of("full/global_step_3") > 4 * state


@pytest.mark.parametrize("after", ENGINES)
@pytest.mark.parametrize("before", ENGINES)
def test_an_adapter_goes_on_in_another_engine_or_stage(run_recipe, recipe, before, after):
    whole = run_recipe(on(recipe, "torch", checkpoint=[]))
    run_recipe(on(recipe, before, exit_iteration_this_run=3))
    moved = run_recipe(on(recipe, after))
    assert moved.first_step == 3
    assert figures(moved, "loss")[-3:] == pytest.approx(figures(whole, "loss")[3:], rel=1e-4)
    for name, tensor in last_weights(whole).items():
        assert last_weights(moved)[name].sub(tensor).abs().max() < 1e-3, name


@pytest.mark.parametrize("kind", ["dora", "pissa", "ia3"])
@pytest.mark.parametrize("engine", [1, 3])
def test_other_kinds_train_as_on_the_torch_engine(run_recipe, recipe, kind, engine):
    recipe["model"]["peft_config"] = {"peft_type": kind, "target_modules": ["q_proj", "v_proj"]}
    if kind == "ia3":
        recipe["model"]["peft_config"]["feedforward_modules"] = []
    ours = run_recipe(on(recipe, engine, checkpoint=[]))
    theirs = run_recipe(on(recipe, "torch", checkpoint=[]))
    assert figures(ours, "loss") == pytest.approx(figures(theirs, "loss"), rel=1e-4)


@pytest.mark.parametrize("engine", [0, 2, 3])
def test_adapters_in_16_bits_train_as_on_the_torch_engine(run_recipe, recipe, engine):
    recipe["model"]["dtype"] = "bf16"
    ours = run_recipe(on(recipe, engine, checkpoint=[]))
    theirs = run_recipe(on(recipe, "torch", checkpoint=[]))
    assert figures(ours, "loss") == pytest.approx(figures(theirs, "loss"), rel=2e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_exported_and_merged_it_is_the_model_that_was_trained(run_recipe, recipe, engine):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    entries = [{"output_dir": "kept", "save_end_of_training": True},
               {"type": "huggingface", "output_dir": "exported", "save_end_of_training": True}]  # fmt: skip
    run = run_recipe(on(recipe, engine, checkpoint=entries))
    command = [sys.executable, "-m", "arctic_cli", "export"]
    subprocess.run([*command, "kept", "adapter"], check=True, capture_output=True)
    subprocess.run([*command, "kept", "merged", "--merge"], check=True, capture_output=True)
    ids = torch.tensor([[5, 77, 80, 12, 200, 31]])

    def plain(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")

    with torch.no_grad():
        base = plain("base")(input_ids=ids).logits
        logits = [PeftModel.from_pretrained(plain("base"), folder).eval()(input_ids=ids).logits
                  for folder in ("adapter", "exported/global_step_6")]  # fmt: skip
        logits.append(plain("merged")(input_ids=ids).logits)
    assert all((each - logits[0]).abs().max() < 1e-4 for each in logits)
    assert (base - logits[0]).abs().max() > 1e-2
    trained = {name.replace(".default", ""): tensor for name, tensor in last_weights(run).items()}
    from safetensors.torch import load_file

    for name, tensor in load_file("adapter/adapter_model.safetensors").items():
        assert (trained[name] - tensor).abs().max() < 1e-6


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """LoRA on two ranks with each stage: three steps, and three more."""
    home = tmp_path_factory.mktemp("adapters")
    chats = home / "chats.jsonl"
    with chats.open("w") as file:
        for number in range(48):
            question, answer = ({"role": role, "content": f"It is {number}."} for role in ("user", "assistant"))
            file.write(json.dumps({"messages": [question, answer]}) + "\n")
    recipe = made(home, chats) | {"micro_batch_size": 2}
    recipes = {}
    for stage in (0, 2, 3):
        keep = {"output_dir": str(home / f"kept-{stage}"), "auto_resume": True, "save_every_n_steps": 3}
        recipes[f"whole-{stage}"] = on(recipe, stage, checkpoint=[])
        recipes[f"first-{stage}"] = on(recipe, stage, checkpoint=keep, exit_iteration_this_run=3)
        recipes[f"second-{stage}"] = on(recipe, stage, checkpoint=keep)
    recipes["moved"] = on(recipe, 3, checkpoint=[], resume=str(home / "kept-0/global_step_3"))
    for name, each in recipes.items():
        each["run_dir"] = str(home / name)
    (home / "recipes.json").write_text(json.dumps(recipes))
    (home / "results").mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, WORKER, str(home / "recipes.json"), str(home / "results")], check=True, timeout=400)
    return home


def losses(home, name):
    lines = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_go_on_exactly(on_two_ranks, stage):
    whole = losses(on_two_ranks, f"whole-{stage}")
    assert losses(on_two_ranks, f"first-{stage}") + losses(on_two_ranks, f"second-{stage}") == whole
    assert whole == pytest.approx(losses(on_two_ranks, "whole-0"), rel=1e-4)
    assert losses(on_two_ranks, "moved") == pytest.approx(whole[3:], rel=1e-4)


@pytest.mark.distributed
def test_one_rank_goes_on_from_two(on_two_ranks, run_recipe):
    recipe = json.loads((on_two_ranks / "recipes.json").read_text())["moved"]
    recipe |= {"resume": str(on_two_ranks / "kept-3/global_step_3"), "micro_batch_size": 4, "run_dir": "one"}
    run = run_recipe(on(recipe, "torch"))
    assert figures(run, "loss") == pytest.approx(losses(on_two_ranks, "whole-0")[3:], rel=1e-4)
