"""A model that was trained is the model that transformers loads: written during the run, and exported afterwards.

Every ZeRO stage on one rank and on two, tied and untied, in one file and in several: two launches for all of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORKER = str(Path(__file__).with_name("worker_engines.py"))
STAGES = (0, 1, 2, 3)
SMALL_SHARD = 20_000
PRECISIONS = {1: "fp32", 2: "bf16"}
FACTORIES = """
from arctic_training.model import HFModelFactory


class Freezing(HFModelFactory):
    name = "freezing"

    def create_model(self, config):
        model = super().create_model(config)
        model.model.embed_tokens.requires_grad_(False)
        model.model.layers[0].requires_grad_(False)
        return model


class Sharing(HFModelFactory):
    name = "sharing"

    def create_model(self, config):
        model = super().create_model(config)
        model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
        return model
"""
DENSE = [
    (f"zero-{stage}-{'tied' if tied else 'untied'}", ranks) for stage in STAGES for tied in (0, 1) for ranks in (1, 2)
]
OTHERS = [
    *((f"zero-{stage}-{kind}", 2) for stage in (2, 3) for kind in ("freezing", "sharing")),
    ("zero-3-experts", 2),
    ("torch-untied", 1),
    ("torch-tied", 1),
]
"""Frozen weights, weights that are shared against the architecture, experts and buffers; and the torch engine."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A Llama, a mixture of experts with buffers, and chats."""
    from transformers import Glm4MoeConfig

    from arctic_training.testing.tiny_llama import make_tiny_llama

    home = tmp_path_factory.mktemp("exports")
    make_tiny_llama(home / "dense")
    make_tiny_llama(home / "experts")
    (home / "experts/model.safetensors").unlink()
    sizes = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    Glm4MoeConfig(**sizes, **experts, **attention).save_pretrained(home / "experts")
    (home / "factories.py").write_text(FACTORIES)
    with open(home / "chats.jsonl", "w") as file:
        for number in range(8):
            chat = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"It is {number}."}]
            file.write(json.dumps({"messages": chat}) + "\n")
    return home


def recipe(home, name, ranks):
    engine, _, kind = name.removeprefix("zero-").partition("-")
    places = {form: str(home / f"{name}-{ranks}" / form) for form in ("whole", "shards", "resumable")}
    model = {"name_or_path": str(home / ("experts" if kind == "experts" else "dense")), "dtype": PRECISIONS[ranks]}
    model |= {"init": "random", "hf_config_kwargs": {"tie_word_embeddings": kind == "tied"}}
    saved = {"save_end_of_training": True}
    return {
        "type": "sft",
        "model": model | ({"type": kind} if kind in ("freezing", "sharing") else {}),
        "code": str(home / "factories.py"),
        "skip_validation": True,
        "data": {
            "sources": [str(home / "chats.jsonl")],
            "cache_dir": str(home / "cache"),
            "max_length": 64,
            "dl_num_workers": 0,
            "num_proc": 1,
        },
        "optimizer": {"type": "fused_adam", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"} if engine == "torch" else {"type": "deepspeed"},
        "deepspeed": {} if engine == "torch" else {"zero_optimization": {"stage": int(engine)}},
        "micro_batch_size": 2,
        "train_iters": 2,
        "train_log_iter_interval": 0,
        "run_dir": str(home / "runs" / f"{name}-{ranks}"),
        "checkpoint": [
            {"output_dir": places["resumable"], **saved},
            {"type": "huggingface", "output_dir": places["whole"], **saved},
            {"type": "huggingface", "output_dir": places["shards"], "max_shard_size": SMALL_SHARD, **saved},
        ],
    }


@pytest.fixture(scope="module")
def trained(home):
    """The folder of all checkpoints, and of {name}-{ranks}.pt with the weights after the last step."""
    from arctic_deepspeed.launcher import DeepSpeedLauncher

    for ranks in (1, 2):
        recipes = {f"{name}-{ranks}": recipe(home, name, ranks) for name, each in DENSE + OTHERS if each == ranks}
        (home / f"recipes-{ranks}.json").write_text(json.dumps(recipes))
    subprocess.run([sys.executable, WORKER, home / "recipes-1.json", home], check=True)
    assert DeepSpeedLauncher().launch(WORKER, [str(home / "recipes-2.json"), str(home)], ["--num_gpus", "2"]) == 0
    return home


def exported(source, out, *options):
    from click.testing import CliRunner

    from arctic_cli.options import Settings
    from arctic_huggingface.export import command

    result = CliRunner().invoke(command, [str(source), str(out), *options], obj=Settings())
    if result.exception is not None:
        raise result.exception
    return out


def assert_is_the_trained_model(folder, home, name, ranks):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    given = recipe(home, name, ranks)["model"]
    config = AutoConfig.from_pretrained(given["name_or_path"], **given["hf_config_kwargs"])
    model = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    weights = torch.load(home / f"{name}-{ranks}.pt")
    model.load_state_dict(weights, strict=True)
    state = loaded.state_dict()
    assert state.keys() == weights.keys()
    assert {name: tensor.dtype for name, tensor in state.items()} == {n: tensor.dtype for n, tensor in weights.items()}
    assert loaded.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[PRECISIONS[ranks]]
    ids = torch.arange(4, 200, 7)[None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("form", ["whole", "shards"])
@pytest.mark.parametrize(("name", "ranks"), DENSE + OTHERS)
def test_a_model_written_during_a_run_is_the_trained_one(trained, name, ranks, form):
    folder = trained / f"{name}-{ranks}" / form / "global_step_2"
    assert (len(list(folder.glob("*.safetensors"))) > 2) == (form == "shards")
    assert_is_the_trained_model(folder, trained, name, ranks)


@pytest.mark.parametrize("form", ["whole", "shards"])
@pytest.mark.parametrize(("name", "ranks"), DENSE + OTHERS)
def test_a_model_exported_afterwards_is_the_trained_one_and_that_of_the_run(trained, tmp_path, name, ranks, form):
    folder = trained / f"{name}-{ranks}"
    options = ("--max-shard-size", str(SMALL_SHARD)) if form == "shards" else ()
    out = exported(folder / "resumable", tmp_path / "out", *options)
    assert_is_the_trained_model(out, trained, name, ranks)
    ours, theirs = (
        {path.name: path.read_bytes() for path in place.iterdir() if path.suffix != ".safetensors"}
        for place in (out, folder / form / "global_step_2")
    )
    assert ours.keys() == theirs.keys() - {"manifest.json"}
    assert all(content == theirs[file] for file, content in ours.items() if not file.endswith("index.json"))


@pytest.mark.parametrize(("stage", "dtype"), [*product((2, 3), ("fp32", "fp16"))])
def test_another_precision_is_that_of_the_trained_weights_in_every_stage(trained, tmp_path, stage, dtype):
    import torch
    from safetensors.torch import load_file

    out = exported(trained / f"zero-{stage}-untied-2" / "resumable", tmp_path / "out", "--dtype", dtype)
    wanted = {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    weights = torch.load(trained / f"zero-{stage}-untied-2.pt")
    written = load_file(out / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(tensor.equal(weights[name].to(wanted)) for name, tensor in written.items())
    assert json.loads((out / "config.json").read_text())["dtype"] == str(wanted).removeprefix("torch.")


@pytest.mark.parametrize("kind", ["untied", "sharing", "freezing", "experts"])
def test_files_that_are_mapped_anew_again_and_again_give_the_same_model(trained, tmp_path, monkeypatch, kind):
    source = trained / f"zero-3-{kind}-2" / "resumable"
    whole = exported(source, tmp_path / "whole")
    monkeypatch.setattr("arctic_deepspeed.reading.MOST_READ", 1)
    again = exported(source, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
