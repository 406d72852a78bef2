"""The plugin in a whole run: a recipe, packs of token ids, a few steps, an export."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from arctic_huggingface.checkpoint import HFCheckpointEngine
from arctic_huggingface.model import HFModelFactory
from arctic_training.api import get_config
from arctic_training.data import DataConfig, DataFactory
from arctic_training.errors import CheckpointError, RecipeError
from arctic_training.trainer import Trainer


class Packs(DataFactory):
    """Rows that hold ids, labels and positions already."""

    name = "packs"
    config: DataConfig
    default_source = "huggingface"

    def process(self, dataset):
        return [dict(row) for row in dataset]

    def collate(self, rows):
        import torch

        return {name: torch.tensor([row[name].tolist() for row in rows]) for name in rows[0]}


class Plain(Trainer):
    name = "plain"
    model_factory: HFModelFactory
    data_factory: Packs
    checkpoint_engine: HFCheckpointEngine

    def loss(self, batch):
        return self.loss_function(self.model, batch)


class JoiningFactory(HFModelFactory):
    """Its model gives an attention mask of its own, as a collator for padded rows would."""

    name = "joining"

    def create_model(self, config):
        model = super().create_model(config)
        forward = model.forward

        def joining(input_ids, **arguments):
            return forward(input_ids=input_ids, attention_mask=input_ids.new_ones(input_ids.shape), **arguments)

        model.forward = joining
        return model


class JoiningTrainer(Plain):
    name = "joining"
    model_factory: JoiningFactory


def pack(number):
    ids = [(number * 7 + position) % 250 + 5 for position in range(16)]
    positions = [*range(6), *range(10)]
    labels = [-100 if position == 0 else token for token, position in zip(ids, positions, strict=True)]
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


@pytest.fixture
def recipe(model_dir, write_lines, tmp_path, monkeypatch):
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface")
    return {
        "type": "plain",
        "run_dir": str(tmp_path / "run"),
        "model": {"name_or_path": str(model_dir), "dtype": "fp32"},
        "data": {
            "sources": [f"{write_lines([pack(number) for number in range(8)])}:train[:6]"],
            "cache_dir": str(tmp_path / "cache"),
            "dl_num_workers": 0,
        },
        "micro_batch_size": 2,
        "engine": {"type": "torch"},
        "checkpoint": {"type": "huggingface", "output_dir": str(tmp_path / "out"), "save_end_of_training": True},
    }


def test_a_run_trains_on_packs_and_exports_what_transformers_loads(recipe, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = Plain(get_config(recipe))
    trainer.train()
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "global_step_3", output_loading_info=True)
    assert not any(report.values())
    ids = torch.arange(40)[None]
    trainer.model.eval()
    assert torch.equal(model.eval()(ids).logits, trainer.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "global_step_3").pad_token == "<|pad|>"
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in steps if line["kind"] == "train"]
    assert rates == pytest.approx([0, 5e-4, 2.5e-4])  # linear, of which a tenth, rounded up, warms up


def test_a_model_that_joins_documents_ends_the_run_before_the_first_step(recipe):
    recipe["type"] = "joining"
    trainer = JoiningTrainer(get_config(recipe))
    with pytest.raises(RecipeError, match=r"attn_implementation 'sdpa' with LlamaForCausalLM lets documents"):
        trainer.train()
    assert trainer.global_step == 0


def test_a_fault_while_writing_leaves_no_export_behind(recipe, tmp_path, monkeypatch):
    import safetensors.torch

    def full_disk(*arguments, **keys):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    recipe["model"]["init"] = "random"
    with pytest.raises(CheckpointError, match="No space left on device"):
        Plain(get_config(recipe)).train()
    assert not (tmp_path / "out" / "global_step_3").exists()


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("scheduler", {"name": "linaer"}, "cosine_with_restarts"),
        ("scheduler", {"scheduler_specific_kwargs": {"power": 2}}, "'linear' has no argument 'power'"),
        ("model", {"atn_implementation": "sdpa"}, "did you mean 'attn_implementation'"),
        ("model", {"init": "zero"}, "'pretrained', 'random'"),
        ("tokenizer", {"chat_templat": "x"}, "did you mean 'chat_template'"),
        ("data", {"sources": [{"name_or_path": "x", "split_maping": {}}]}, "did you mean 'split_mapping'"),
    ],
)
def test_a_recipe_that_is_wrong_in_a_section_of_this_plugin_is_refused(recipe, section, keys, message):
    recipe.setdefault(section, {}).update(keys)
    with pytest.raises(RecipeError) as caught:
        get_config(recipe)
    assert message in str(caught.value)
    assert f"{section}." in str(caught.value)


def test_what_only_a_run_can_find_wrong_is_told_with_its_place_in_the_recipe(recipe, model_dir, tmp_path):
    recipe["model"] = {"name_or_path": str(model_dir), "hf_config_kwargs": {"num_hiden_layers": 1}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    line = 1 + next(number for number, text in enumerate(path.read_text().splitlines()) if "num_hiden_layers" in text)
    with pytest.raises(RecipeError) as caught:
        Plain(get_config(path)).train()
    assert f"recipe.yaml:{line}:" in str(caught.value)
    assert "did you mean 'num_hidden_layers'?" in str(caught.value)


def test_nothing_heavy_is_imported_to_read_and_check_a_recipe(recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    script = (
        "import sys, arctic_huggingface.plugin, arctic_huggingface.commands\n"
        "for name in ('model', 'tokenizer', 'source', 'scheduler', 'checkpoint', 'attention'):\n"
        "    __import__('arctic_huggingface.' + name)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'tokenizers', 'safetensors', 'numpy', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
