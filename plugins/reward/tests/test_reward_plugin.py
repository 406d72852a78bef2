"""The plugin as a run meets it: its components, its contracts, its loss, what it exports, and bad input."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from arctic_training.errors import DataError, RecipeError
from arctic_training.testing import DataFactoryContract, TrainerContract

HEAVY = ("torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers")


class TestRewardTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, reward_recipe):
        return reward_recipe


class TestRewardData(DataFactoryContract):
    @pytest.fixture
    def recipe(self, reward_recipe):
        return reward_recipe | {"data": reward_recipe["data"] | {"pack_samples": True}}

    def test_no_row_is_longer_than_max_length(self, build_run, recipe):
        """A row holds two documents of at most this length."""
        with build_run(recipe, "data.max_length=50") as run:
            assert max(int(row["position_ids"].max()) for row in run.rows["train"]) < 50


@pytest.mark.parametrize("module", ["", ".plugin", ".data", ".model", ".trainer"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, arctic_reward{module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_plugin_offers_its_trainer_its_data_factory_and_its_model(plugin_manager):
    import arctic_reward

    registry = plugin_manager.registry
    assert registry.get("trainer", "reward") is arctic_reward.RewardTrainer
    assert registry.get("data", "reward") is arctic_reward.RewardDataFactory
    assert registry.get("model", "reward") is arctic_reward.RewardModelFactory
    assert set(arctic_reward.__all__) <= set(dir(arctic_reward))
    with pytest.raises(AttributeError, match="no attribute 'RewardTrainr'"):
        arctic_reward.RewardTrainr  # noqa: B018


def plain_score(model, tokenizer, chat):
    """The score of a chat by the words of transformers alone."""
    import torch

    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    return model.score(model.model(input_ids=torch.tensor([ids])).last_hidden_state)[0, -1, 0]


@pytest.mark.parametrize("packed", [False, True])
def test_value_and_gradient_are_those_of_the_papers(build_run, reward_recipe, pairs, packed):
    """-log sigmoid(r_c - r_r - margin), Llama 2 (arXiv:2307.09288, equation 2), and the square of the sum of both
    rewards (Eisenstein et al., arXiv:2312.09244), written out in float64, each chat by itself."""
    import torch

    with build_run(reward_recipe | {"gradient_accumulation_steps": 16}, f"data.pack_samples={packed}".lower()) as run:
        trainer = run.trainer
        model, tokenizer = trainer.model_unwrapped.double(), trainer.tokenizer
        terms = []
        for row in map(json.loads, pairs.read_text().splitlines()):
            better, worse = (plain_score(model, tokenizer, row[name]) for name in ("chosen", "rejected"))
            margin = row.get("margin", 0.25)
            terms.append(torch.log(1 + torch.exp(-(better - worse - margin))) + 0.01 * (better + worse) ** 2)
        expected = sum(terms) / len(terms)
        expected.backward()
        gradients = {name: each.grad.clone() for name, each in model.named_parameters()}
        model.zero_grad()
        (batch,) = trainer.train_dataloader.epoch(0)
        weight, _, _ = trainer.weigh(batch)
        total = sum(trainer.normalised_loss(part, weight) for part in batch)
        total.backward()
    assert weight == 16
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - gradients[name]).abs().max() <= 1e-6 * gradients[name].abs().max()


def test_training_tells_better_from_worse_answers(run_recipe, reward_recipe, capsys):
    recipe = reward_recipe | {"eval_interval": 100, "evaluate_at_start": True}
    recipe |= {"data": recipe["data"] | {"eval_sources": recipe["data"]["sources"]}}
    run = run_recipe(recipe, "epochs=5", "optimizer.learning_rate=3e-3", "data.pack_samples=true")
    first, last = (line for line in run.metrics if line["kind"] == "eval")
    assert last["loss_weight"] == 16
    assert "over 16 pairs\n" in capsys.readouterr().err
    assert first["loss"] == pytest.approx(math.log(2) + 0.5 * 0.56, abs=0.2)  # the margins are 0.56 on average
    assert last["loss"] < 0.5 * first["loss"]
    assert last["rewards/accuracy"] == 1
    assert last["rewards/margin"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], rel=1e-4)


def test_plain_transformers_gives_the_exports_the_scores_that_training_saw(exported, pair):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, trainer = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (model.config.num_labels, model.config.architectures) == (1, ["LlamaForSequenceClassification"])
    chats = [pair(number)[name] for number in range(4) for name in ("chosen", "rejected")]
    with torch.no_grad():
        trained = [plain_score(trainer.model_unwrapped.eval(), trainer.tokenizer, chat).item() for chat in chats]
        alone = [
            model(**tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")).logits.item()
            for chat in chats
        ]
        together = tokenizer.apply_chat_template(chats, return_dict=True, return_tensors="pt", padding=True)
        padded = model(**together).logits[:, 0].tolist()
    assert alone == pytest.approx(trained, abs=1e-5)
    assert padded == pytest.approx(trained, abs=1e-5)


def test_a_reward_model_is_trained_on_with_the_head_that_it_has(exported, build_run, reward_recipe, capsys):
    folder, trainer = exported
    head = trainer.model_unwrapped.score.weight.detach()
    with build_run(reward_recipe | {"model": reward_recipe["model"] | {"name_or_path": str(folder)}}) as run:
        assert run.trainer.model_unwrapped.score.weight.equal(head)
    assert "begin at random" not in capsys.readouterr().err


def test_a_new_head_is_drawn_with_the_seed_and_said_to_be_new(build_run, reward_recipe, capsys):
    heads = []
    for seed in (1, 1, 2):
        with build_run(reward_recipe | {"seed": seed}) as run:
            heads.append(run.trainer.model_unwrapped.score.weight.detach().clone())
    assert heads[0].equal(heads[1])
    assert not heads[0].equal(heads[2])
    assert (
        "has no weights for score.weight, which begin at random, drawn with the recipe's seed"
        in capsys.readouterr().err
    )


def test_an_attention_implementation_that_cannot_run_here_is_refused(run_recipe, reward_recipe):
    """The check before training asks this model too, and refuses attention that joins documents."""
    with pytest.raises(RecipeError, match="attn_implementation"):
        run_recipe(
            reward_recipe | {"model": reward_recipe["model"] | {"attn_implementation": "flash_attention_2"}},
            "data.pack_samples=true",
        )


def test_rows_that_cannot_be_used_are_refused_and_counted(run_recipe, build_run, reward_recipe, write, pair):
    alone = {name: value for name, value in pair(1).items() if name == "chosen"}
    empty = pair(2)
    empty["rejected"][1]["content"] = ""
    rows = [*(pair(number) for number in range(8)), alone, empty, pair(3, margin="much")]
    recipe = reward_recipe | {"data": reward_recipe["data"] | {"sources": [str(write(rows, "bad.jsonl"))]}}
    with pytest.raises(DataError, match=r"bad.jsonl:9: has no column 'rejected'"):
        run_recipe(recipe)
    with build_run(recipe, "data.on_bad_row=skip", "data.max_bad_fraction=0.5") as run:
        counts = run.rows["train"].facts["counts"]
    assert counts["rows refused, missing column"] == 1
    assert counts["rows refused, empty answer"] == 1
    assert counts["rows refused, wrong type"] == 1
    assert counts["rows kept"] == 8


@pytest.mark.parametrize("margin", [-2, "-0.5"])
def test_a_margin_below_0_is_refused_in_a_row_as_in_the_recipe(
    run_recipe, build_run, reward_recipe, write, pair, margin
):
    path = write([pair(0, margin=0), pair(1, margin=margin), pair(2)], "low.jsonl")
    recipe = reward_recipe | {"data": reward_recipe["data"] | {"sources": [str(path)]}}
    with pytest.raises(DataError, match=rf"low.jsonl:2 .*: holds {margin!r} in 'margin', not a number of at least 0"):
        run_recipe(recipe)
    with build_run(recipe, "data.on_bad_row=skip", "data.max_bad_fraction=0.5") as run:
        assert run.rows["train"].facts["counts"]["rows refused, wrong type"] == 1
        assert len(run.rows["train"]) == 2


def test_a_margin_may_stand_in_another_column(build_run, reward_recipe, write, pair):
    path = write([pair(number, lead=number) for number in range(4)], "lead.jsonl")
    source = {"name_or_path": str(path), "column_mapping": {"margin": "lead"}}
    with build_run(reward_recipe | {"data": reward_recipe["data"] | {"sources": [source]}}) as run:
        rows = run.rows["train"]
        assert [set(row["margin"].tolist()) for row in rows] == [{0.0}, {1.0}, {2.0}, {3.0}]


def test_a_model_without_a_score_for_each_token_is_refused(run_recipe, reward_recipe, tmp_path, tiny_model):
    import shutil

    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path / "bert"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=260, num_labels=1, **sizes)).save_pretrained(folder)
    with pytest.raises(RecipeError, match="BertForSequenceClassification has no score for each token"):
        run_recipe(reward_recipe | {"model": reward_recipe["model"] | {"name_or_path": str(folder)}})
