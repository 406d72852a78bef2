"""Tokens that a recipe adds: their ids, their rows in the model, and what a run makes of them."""

from __future__ import annotations

import json

import pytest

from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_training.data import DataConfig, DataFactory
from arctic_training.errors import RecipeError
from arctic_training.testing.contracts.common import differing, figures
from arctic_training.trainer import Trainer

TOKENS = ["<tool>", "</tool>"]
INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


class Texts(DataFactory):
    """Rows of text, each token trained."""

    name = "texts"
    config: DataConfig
    default_source = "huggingface"

    def process(self, dataset):
        encoded = [self.tokenizer(row["text"])["input_ids"] for row in dataset]
        return [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in encoded]

    def collate(self, rows):
        import torch

        return {name: torch.tensor([row[name].tolist() for row in rows]) for name in ("input_ids", "labels")}


class Plain(Trainer):
    name = "plain"
    model_factory: HFModelFactory
    data_factory: Texts


@pytest.fixture
def recipe(model_dir, write_lines, monkeypatch, plugin_manager):
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface")
    plugin_manager.register_classes([Texts, Plain], "this test")
    rows = [{"text": "<tool>the sum of its arguments</tool>"}] * 8
    return {
        "type": "plain",
        "model": {"name_or_path": str(model_dir), "dtype": "fp32"},
        "tokenizer": {"added_special_tokens": TOKENS},
        "data": {"sources": [str(write_lines(rows))], "dl_num_workers": 0, "num_proc": 1},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "micro_batch_size": 2,
        "engine": {"type": "torch"},
    }


def published(model_dir):
    from safetensors.torch import load_file

    return load_file(model_dir / "model.safetensors")


def weights_of(run):
    return run.trainer.model_unwrapped.state_dict()


def without_training(recipe):
    """The recipe at a rate at which the weights stay what they were."""
    return recipe | {"optimizer": {"type": "adamw", "learning_rate": 0, "weight_decay": 0}, "train_iters": 1}


def test_a_new_token_is_one_id_and_has_the_mean_of_the_old_rows(recipe, run_recipe, model_dir):
    run = run_recipe(without_training(recipe))
    tokenizer, old, new = run.trainer.tokenizer, published(model_dir), weights_of(run)
    ids = tokenizer("<tool>a</tool>")["input_ids"]
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"
    first = len(tokenizer) - 2
    for name in (INPUT, OUTPUT):
        assert new[name][:first].equal(old[name][:first])
        for row in (ids[0], ids[2]):
            assert new[name][row].allclose(old[name][:first].mean(0), atol=1e-7)


def test_tied_embeddings_stay_tied(recipe, run_recipe):
    recipe["model"] |= {"hf_config_kwargs": {"tie_word_embeddings": True}, "init": "random"}
    model = run_recipe(recipe | {"train_iters": 1}).trainer.model_unwrapped
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight[-1].ne(model.lm_head.weight[-2]).any()  # trained apart


def test_embeddings_that_the_files_keep_apart_stay_apart_whatever_their_configuration_says(make, run, model_dir):
    from arctic_huggingface.added_tokens import AddedTokens, make_room

    keys = {"name_or_path": str(model_dir), "dtype": "fp32", "hf_config_kwargs": {"tie_word_embeddings": True}}
    factory = make(HFModelFactory, **keys)
    model = factory.create_model(factory.create_config())
    make_room(model, AddedTokens(frozenset([320]), frozenset([320])), 1, run)
    before, after = published(model_dir), model.state_dict()
    assert not model.config.tie_word_embeddings
    assert all(after[name][:320].equal(before[name]) for name in (INPUT, OUTPUT))


def test_a_model_with_a_bias_on_its_output_gets_the_mean_of_that_too(make, run, model_dir):
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    from arctic_huggingface.added_tokens import AddedTokens, make_room

    model = GPTJForCausalLM(GPTJConfig(vocab_size=10, n_embd=8, n_layer=1, n_head=2, rotary_dim=2))
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(10.0))
    make_room(model, AddedTokens(frozenset([10]), frozenset([10])), 4, run)
    assert model.lm_head.bias.tolist() == [*range(10), 4.5, 4.5]
    assert model.config.vocab_size == 12


def test_the_rows_are_padded_to_a_multiple_also_without_a_new_token(recipe, run_recipe):
    recipe["model"]["pad_vocabulary_to_multiple_of"] = 128
    recipe["tokenizer"] = {}
    model = run_recipe(recipe | {"train_iters": 1}).trainer.model_unwrapped
    assert (model.config.vocab_size, *model.lm_head.weight.shape) == (384, 384, 32)


def test_a_vocabulary_with_room_is_not_resized_and_the_row_begins_anew(make, run, model_dir):
    from arctic_huggingface.added_tokens import AddedTokens, make_room

    model = make(HFModelFactory, name_or_path=str(model_dir), dtype="fp32")
    model = model.create_model(model.create_config())
    before = published(model_dir)
    make_room(model, AddedTokens(frozenset([318]), frozenset([318])), 1, run)
    after = model.state_dict()
    assert model.config.vocab_size == 320
    assert after[INPUT][318].allclose(before[INPUT][:318].mean(0), atol=1e-7)
    assert after[INPUT][319].equal(before[INPUT][319])


def test_a_token_of_the_vocabulary_keeps_its_id_and_row_and_that_is_said(make, run, model_dir):
    make(HFModelFactory, name_or_path=str(model_dir))
    factory = make(HFTokenizerFactory, added_special_tokens=["<|user|>", "<tool>"])
    tokenizer = factory.create_tokenizer()
    assert factory.added.new_ids == {tokenizer.convert_tokens_to_ids("<tool>")}
    assert any("1 of 2 added tokens have been in its vocabulary: <|user|>" in text for text in run.said)


def test_the_export_loads_with_no_key_missing_and_its_tokenizer_has_the_tokens(recipe, run_recipe, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = {"type": "huggingface", "output_dir": str(tmp_path / "out"), "save_end_of_training": True}
    recipe["model"]["pad_vocabulary_to_multiple_of"] = 64
    run = run_recipe(recipe | {"train_iters": 2, "checkpoint": checkpoint})
    folder = tmp_path / "out" / "global_step_2"
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("<tool>the sum")["input_ids"]])
    assert ids.tolist() == [run.trainer.tokenizer("<tool>the sum")["input_ids"]]
    assert model.config.vocab_size == json.loads((folder / "config.json").read_text())["vocab_size"] == 384
    assert torch.equal(model.eval()(ids).logits, run.trainer.model_unwrapped.eval()(ids).logits)


def test_a_resumed_run_rebuilds_the_rows_and_goes_on_exactly(recipe, run_recipe, tmp_path):
    recipe |= {"train_iters": 4, "checkpoint": {"output_dir": str(tmp_path / "state"), "save_every_n_steps": 2}}
    whole = run_recipe(recipe | {"run_dir": "whole"})
    rest = run_recipe(recipe | {"run_dir": "rest", "resume": str(tmp_path / "state" / "global_step_2")})
    assert figures(rest, "loss") == figures(whole, "loss")[2:]
    assert not differing(weights_of(rest), weights_of(whole))


@pytest.mark.parametrize("keys", [{"added_tokens": ["sum"]}, {"added_special_tokens": ["sum"]}])
def test_prepared_rows_are_filed_under_the_tokens(make, model_dir, keys):
    make(HFModelFactory, name_or_path=str(model_dir))
    plain, other = make(HFTokenizerFactory), make(HFTokenizerFactory, **keys)
    assert plain.fingerprint(plain.create_tokenizer()) != other.fingerprint(other.create_tokenizer())


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"added_tokens": ["a", "a"]}, "tokenizer.added_tokens: 'a' is named twice"),
        ({"added_tokens": ["a"], "added_special_tokens": ["a"]}, "added_special_tokens: 'a' is named twice"),
        ({"added_tokens": [" "]}, "tokenizer.added_tokens: ' ' is no token"),
        ({"added_tokens": "a"}, "tokenizer.added_tokens: expected a list"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(recipe, run_recipe, section, said):
    with pytest.raises(RecipeError) as caught:
        run_recipe(recipe | {"tokenizer": section})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("frozen", "told"),
    [
        (["*embed_tokens*"], "of model.embed_tokens;"),
        (["*embed_tokens*", "lm_head*"], "and lm_head;"),
        ([], None),
    ],
)
def test_tokens_that_no_training_reaches_are_told(run_recipe, recipe, capfd, frozen, told):
    recipe["model"] |= {"freeze": frozen} if frozen else {}
    run_recipe(recipe | {"train_iters": 1})
    errors = " ".join(capfd.readouterr().err.split())
    assert ("2 added tokens are not learnt" in errors) == bool(told)
    assert told is None or told in errors
