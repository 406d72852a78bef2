"""The plugin as a run meets it: what validates, where it ends, and what the kernels compute where they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from arctic_training.errors import RecipeError
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve

HEAVY = ("torch", "transformers", "datasets", "numpy", "triton", "liger_kernel", "deepspeed")
ASKING = [{"type": "liger"}, {"liger": True}]

LONG_SEQUENCES = """
type: ids
sequence_parallel_size: 4
tiled_mlp_compute: true
activation_checkpoint_cpu_offload: true
micro_batch_size: 1
model:
  type: liger
  name_or_path: meta-llama/Llama-3.1-8B-Instruct
  attn_implementation: flash_attention_2
  dtype: bf16
data:
  sources: [HuggingFaceH4/ultrachat_200k]
  max_length: 128_000
deepspeed:
  zero_optimization: {stage: 3, offload_optimizer: {device: cpu, pin_memory: true}}
  seq_parallel_communication_data_type: bf16
optimizer: {type: adamw, learning_rate: 2e-5}
"""

TRAINER = """
from arctic_huggingface.model import HFModelFactory
from arctic_training import DataConfig, DataFactory, Trainer


class IdsFactory(DataFactory):
    name = "ids"
    config: DataConfig
    default_source = "huggingface"

    def process(self, dataset):
        return [{"input_ids": row["ids"], "labels": [-100, *row["ids"][1:]]} for row in dataset]

    def collate(self, rows):
        import torch

        return {name: torch.tensor([row[name].tolist() for row in rows]) for name in ("input_ids", "labels")}


class IdsTrainer(Trainer):
    name = "ids"
    model_factory: HFModelFactory
    data_factory: IdsFactory
"""


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,liger")


@pytest.fixture
def recipe(arctic_home, tiny_model):
    """A training on rows of ids, by a trainer that stands beside the recipe."""
    (arctic_home / "train.py").write_text(TRAINER)
    rows = [{"ids": [(7 * row + position) % 250 for position in range(16)]} for row in range(8)]
    (arctic_home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "type": "ids",
        "code": str(arctic_home / "train.py"),
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(arctic_home / "rows.jsonl")], "num_proc": 1, "dl_num_workers": 0},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 2,
        "train_iters": 3,
    }


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize("module", ["", ".plugin", ".model", ".kernels"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, arctic_liger{module}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("asking", ASKING)
def test_a_run_on_a_cpu_ends_before_data_is_prepared_and_says_where_and_what_to_do(
    recipe, run_recipe, asking, on_a_cpu
):
    recipe["data"]["sources"] = ["./nothing-here.jsonl"]  # looked at when data is prepared
    recipe["model"] |= asking
    with pytest.raises(RecipeError) as caught:
        run_recipe(recipe)
    said = str(caught.value)
    assert f"model.{next(iter(asking))}: liger's kernels run on cuda, npu, xpu, and this run is on cpu" in said
    assert "start it where there is an accelerator, or leave it out" in said
    assert caught.value.exit_code == 2


def test_the_error_names_the_line_of_the_recipe(recipe, run_recipe, arctic_home, on_a_cpu):
    recipe["model"]["liger"] = True
    (arctic_home / "recipe.yaml").write_text(json.dumps(recipe, indent=1))
    line = 1 + next(n for n, text in enumerate(json.dumps(recipe, indent=1).splitlines()) if '"liger"' in text)
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:{line}:"):
        run_recipe(arctic_home / "recipe.yaml")


def test_data_can_be_prepared_where_the_kernels_cannot_run(recipe, plugin_manager, on_a_cpu):
    from arctic_training.run import Run

    recipe["model"]["liger"] = True
    with Run(resolve(load_recipe(recipe), plugin_manager)).only_preparing() as _:
        pass


def test_the_type_has_the_keys_of_the_huggingface_one(recipe, plugin_manager):
    from arctic_huggingface.model import HFModelConfig
    from arctic_training.config import keys_of

    recipe["model"]["type"] = "liger"
    section = resolve(load_recipe(recipe), plugin_manager).model
    assert {info.name for info in keys_of(type(section))} == {info.name for info in keys_of(HFModelConfig)}
    assert section.liger


def test_the_type_without_its_kernels_is_a_contradiction(recipe, plugin_manager):
    recipe["model"] |= {"type": "liger", "liger": False}
    with pytest.raises(RecipeError, match=r"model\.liger: contradicts the type 'liger'"):
        resolve(load_recipe(recipe), plugin_manager)


def test_the_key_without_its_plugin_validates_and_a_run_says_what_to_install(recipe, run_recipe, plugin_manager):
    plugin_manager.load_recipe_plugins({"block": ["liger"]})
    recipe["model"]["liger"] = True
    with pytest.raises(RecipeError, match=r"model\.liger: needs arctic-plugin-liger") as caught:
        run_recipe(recipe)
    assert "pip install arctic-plugin-liger" in str(caught.value)


def test_an_architecture_without_kernels_is_refused_before_data_is_prepared(recipe, plugin_manager):
    pytest.importorskip("liger_kernel")
    from transformers import GPT2Config

    from arctic_liger.kernels import refuse_other_architectures
    from arctic_training.run import Run

    recipe["model"]["liger"] = True
    run = Run(resolve(load_recipe(recipe), plugin_manager))
    with pytest.raises(RecipeError, match="liger has no kernels for models of the type 'gpt2'"):
        refuse_other_architectures(GPT2Config(), run.config.model, run)


def test_every_layer_of_a_model_gets_its_kernels_and_its_own_forward_stays(recipe, plugin_manager, tiny_model):
    """On a CPU the kernels can be put into a model, and not be run."""
    pytest.importorskip("liger_kernel")
    code = f"""
import json, sys
from types import SimpleNamespace
from transformers import LlamaForCausalLM
from arctic_liger.kernels import put_into
model = LlamaForCausalLM.from_pretrained({str(tiny_model)!r})
forward = model.forward
put_into(model, SimpleNamespace(type="liger"), SimpleNamespace(say=lambda text: None))
parts = [part for layer in model.model.layers for part in (layer.mlp, layer.input_layernorm)] + [model.model.norm]
assert all("liger_kernel" in part.forward.__func__.__module__ for part in parts), parts
assert model.forward == forward
"""
    subprocess.run([sys.executable, "-c", code], check=True)  # it changes the architecture's module


def test_a_recipe_for_long_sequences_validates(arctic_home, plugin_manager):
    deepspeed = pytest.importorskip("arctic_deepspeed.plugin")
    plugin_manager.register(deepspeed, "deepspeed")
    (arctic_home / "train.py").write_text(TRAINER)
    (arctic_home / "recipe.yaml").write_text(LONG_SEQUENCES)
    config = resolve(load_recipe(arctic_home / "recipe.yaml"), plugin_manager)
    assert config.deepspeed["seq_parallel_communication_data_type"] == "bf16"


@pytest.mark.parametrize(("key", "value"), [("sequence_parallel_size", 4), ("tiled_mlp_compute", True)])
def test_what_is_not_there_yet_ends_a_run_at_once(recipe, run_recipe, key, value):
    with pytest.raises(RecipeError, match=rf"{key}: asks for .*, which is not there yet"):
        run_recipe(recipe | {key: value})


@pytest.mark.gpu
def test_the_kernels_give_the_losses_of_the_plain_model(recipe, run_recipe):
    plain, fused = (
        [line["loss"] for line in run_recipe(recipe | {"model": recipe["model"] | keys}).metrics if "loss" in line]
        for keys in ({}, {"liger": True})
    )
    assert fused == pytest.approx(plain, rel=1e-3)
    assert fused[-1] < fused[0]
