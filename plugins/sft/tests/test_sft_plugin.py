"""The plugin as a run meets it: its components, its lightness, and a training from chats to a lower loss."""

from __future__ import annotations

import subprocess
import sys

import pytest

from arctic_training.errors import RecipeError

HEAVY = ("torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers", "jinja2")


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,sft")


@pytest.mark.parametrize("module", ["arctic_sft", "arctic_sft.plugin", "arctic_sft.data", "arctic_sft.trainer"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_plugin_offers_its_trainer_and_its_data_factory(plugin_manager):
    from arctic_sft import SFTDataFactory, SFTTrainer

    assert plugin_manager.registry.get("trainer", "sft") is SFTTrainer
    assert plugin_manager.registry.get("data", "sft") is SFTDataFactory


def test_the_trainer_declares_what_it_works_with():
    from arctic_huggingface.model import HFModelFactory
    from arctic_huggingface.tokenizer import HFTokenizerFactory
    from arctic_sft import SFTDataFactory, SFTTrainer
    from arctic_training.checkpoint import CheckpointEngine
    from arctic_training.optimizer import OptimizerFactory
    from arctic_training.scheduler import SchedulerFactory

    declared = {
        "model_factory": HFModelFactory,
        "data_factory": SFTDataFactory,
        "tokenizer_factory": HFTokenizerFactory,
        "optimizer_factory": OptimizerFactory,
        "scheduler_factory": SchedulerFactory,
        "checkpoint_engine": CheckpointEngine,
    }
    assert {name: SFTTrainer.declared(name) for name in declared} == {name: (cls,) for name, cls in declared.items()}


def test_the_package_gives_its_classes_from_its_own_name_only():
    import arctic_sft

    assert set(arctic_sft.__all__) <= set(dir(arctic_sft))
    with pytest.raises(AttributeError, match="no attribute 'SFTTrainr'"):
        arctic_sft.SFTTrainr  # noqa: B018


@pytest.fixture
def sft_recipe(tiny_model, tiny_chats):
    """Fine-tuning of a tiny model on tiny chats with the torch engine."""
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "dl_num_workers": 0, "num_proc": 1, "div_length": 8},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 8,
        "train_log_iter_interval": 0,
    }


def losses(run):
    return [line["loss"] for line in run.metrics if line["kind"] == "train"]


def test_training_on_chats_lowers_the_loss(run_recipe, sft_recipe):
    run = run_recipe(sft_recipe, "epochs=3")
    assert len(losses(run)) == 18
    assert losses(run)[-1] < 0.7 * losses(run)[0]


def test_one_step_over_all_rows_has_the_same_loss_packed_and_padded(run_recipe, sft_recipe):
    padded = run_recipe(sft_recipe, "micro_batch_size=48")
    packed = run_recipe(sft_recipe, "micro_batch_size=48", "data.pack_samples=true", "data.max_length=256")
    first = [line for run in (padded, packed) for line in run.metrics if line["kind"] == "train"]
    assert len(first) == 2
    assert first[0]["trained_tokens"] == first[1]["trained_tokens"]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-5)


def test_a_row_that_cannot_be_masked_ends_the_run_with_its_place(run_recipe, sft_recipe, tiny_chats):
    from arctic_training.errors import DataError

    with open(tiny_chats, "a") as file:
        file.write('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(DataError, match=r"chats.jsonl.*48.*the chat has no assistant message"):
        run_recipe(sft_recipe)


def test_a_tokenizer_with_more_words_than_the_model_is_told_before_the_first_step(run_recipe, tiny_model, tiny_chats):
    recipe = {
        "model": {
            "name_or_path": str(tiny_model),
            "init": "random",
            "hf_config_kwargs": {"vocab_size": 100, "pad_token_id": 0},
        },
        "data": {"sources": [str(tiny_chats)], "num_proc": 1, "dl_num_workers": 0},
        "engine": {"type": "torch"},
    }
    with pytest.raises(RecipeError, match=r"tokenizer.name_or_path: .* the id \d+, and the model has .* 100 words"):
        run_recipe(recipe)
