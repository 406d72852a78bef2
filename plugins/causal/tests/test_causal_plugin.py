"""The plugin as a run meets it: its components, its lightness, its contracts, and a training that learns text."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from arctic_training.errors import DataError, RecipeError
from arctic_training.testing import DataFactoryContract, DataSourceContract, TrainerContract

HEAVY = ("torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers")
SENTENCES = ("The river runs to the sea.", "A short one.", "Snow falls on the old town while its people sleep, and on.")


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,causal")


@pytest.fixture
def documents(tmp_path):
    """Documents of one to six sentences, as JSONL."""
    texts = [" ".join((SENTENCES * 2)[number % 3 : number % 3 + 1 + number % 6]) for number in range(24)]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(texts)))
    return path


@pytest.fixture
def causal_recipe(tiny_model, documents):
    """Training of a tiny model on a few documents with the torch engine."""
    return {
        "type": "causal",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {
            "sources": [{"type": "huggingface_causal", "name_or_path": str(documents)}],
            "dl_num_workers": 0,
            "num_proc": 1,
            "div_length": 8,
            "max_length": 32,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 4,
        "train_log_iter_interval": 0,
    }


class TestCausalTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, causal_recipe):
        return causal_recipe


class TestCausalData(DataFactoryContract):
    @pytest.fixture
    def recipe(self, causal_recipe):
        return causal_recipe


class TestUnpackedCausalData(DataFactoryContract):
    @pytest.fixture
    def recipe(self, causal_recipe):
        return causal_recipe | {"data": causal_recipe["data"] | {"pack_samples": False}}


class TestCausalSource(DataSourceContract):
    @pytest.fixture
    def recipe(self, causal_recipe):
        return causal_recipe


@pytest.mark.parametrize("module", ["", ".plugin", ".data", ".trainer", ".source"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, arctic_causal{module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_plugin_offers_its_trainer_its_data_factory_and_its_source(plugin_manager):
    import arctic_causal

    registry = plugin_manager.registry
    assert registry.get("trainer", "causal") is arctic_causal.CausalTrainer
    assert registry.get("data", "causal") is arctic_causal.CausalDataFactory
    assert registry.get("data_source", "huggingface_causal") is arctic_causal.HFCausalDataSource
    assert set(arctic_causal.__all__) <= set(dir(arctic_causal))
    with pytest.raises(AttributeError, match="no attribute 'CausalTrainr'"):
        arctic_causal.CausalTrainr  # noqa: B018


def losses(run):
    return [line["loss"] for line in run.metrics if line["kind"] == "train"]


def test_training_on_text_lowers_the_loss(run_recipe, causal_recipe):
    run = run_recipe(causal_recipe, "epochs=8")
    assert losses(run)[-1] < 0.5 * losses(run)[0]


def test_a_file_is_enough_as_a_source_and_rows_that_hold_text_may_come_from_any(build_run, causal_recipe, documents):
    ids = []
    for source in (str(documents), {"type": "huggingface", "name_or_path": str(documents)}):
        recipe = causal_recipe | {"data": causal_recipe["data"] | {"sources": [source]}}
        with build_run(recipe) as run:
            ids.append([row["input_ids"].tolist() for row in run.rows["train"]])
    assert ids[0] == ids[1]


def test_the_loss_is_that_of_each_piece_of_a_document_by_itself(build_run, causal_recipe, documents):
    """Against a plain loop: -log p of each token but the first of a piece, added up over the packs of a micro-batch."""
    import torch

    with build_run(causal_recipe) as run, torch.no_grad():
        model, tokenizer = run.trainer.model_unwrapped.eval(), run.trainer.tokenizer
        expected, count = torch.zeros((), dtype=torch.float64), 0
        for line in documents.read_text().splitlines():
            ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
            ids = [*([tokenizer.bos_token_id] if tokenizer.bos_token else []), *ids, tokenizer.eos_token_id]
            for start in range(0, len(ids), 32):
                piece = torch.tensor([ids[start : start + 32]])
                if piece.shape[1] > 1:
                    log_p = model(input_ids=piece).logits[0, :-1].double().log_softmax(-1)
                    expected -= log_p.gather(-1, piece[0, 1:, None]).sum()
                    count += piece.shape[1] - 1
        total, weight = torch.zeros((), dtype=torch.float64), 0
        for batch in run.trainer.train_dataloader.epoch(0):
            for micro_batch in batch:
                found = run.trainer.loss(micro_batch)
                total += found.sum
                weight += int(found.weight)
    assert weight == count
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_chats_are_refused_with_their_columns(run_recipe, causal_recipe, tiny_chats):
    recipe = causal_recipe | {"data": causal_recipe["data"] | {"sources": [f"{tiny_chats}"]}}
    with pytest.raises(DataError, match="messages"):
        run_recipe(recipe)
    other = {"type": "huggingface", "name_or_path": str(tiny_chats)}
    with pytest.raises(DataError, match="documents need a column `text`; found messages"):
        run_recipe(causal_recipe | {"data": causal_recipe["data"] | {"sources": [other]}})


def test_arguments_that_would_cut_or_add_without_a_count_are_refused(run_recipe, causal_recipe):
    recipe = causal_recipe | {"tokenizer": {"tokenize_kwargs": {"truncation": True, "add_special_tokens": True}}}
    with pytest.raises(RecipeError, match=r"truncation: .*data\.over_long") as caught:
        run_recipe(recipe)
    assert "add_special_tokens: beginning and end" in str(caught.value)


def test_a_bad_row_is_counted_and_the_rest_is_prepared(run_recipe, build_run, causal_recipe, documents):
    with documents.open("a") as file:
        file.write('{"text": "", "id": 24}\n{"text": 7, "id": 25}\n')
    with pytest.raises(DataError, match=r"documents.jsonl:25: holds an empty text in 'text'"):
        run_recipe(causal_recipe)
    with build_run(causal_recipe, "data.on_bad_row=skip", "data.max_bad_fraction=0.5") as run:
        counts = run.rows["train"].facts["counts"]
    assert counts["rows read"] == 26
    assert counts["rows refused, missing text"] == 1
    assert counts["rows refused, wrong type"] == 1
