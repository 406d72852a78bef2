"""Recipes of preferences: what they may say, what they are refused for, and what a run makes of them."""

from __future__ import annotations

import json
import math

import pytest

from arctic_training.errors import DataError, RecipeError


def train_records(run):
    return [line for line in run.metrics if line["kind"] == "train"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ref_model": None}, "ref_model: loss_type sigmoid needs a reference"),
        ({"loss_type": "simpo"}, "ref_model: loss_type simpo has no reference: leave it out"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing: has no effect on loss_type hinge"),
        ({"simpo_gamma": 1.0}, "simpo_gamma: has no effect on loss_type sigmoid"),
        ({"loss_type": "exo_pair"}, "exo_pair needs a share above 0"),
        ({"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0]}, "1 weight for 2 losses"),
        ({"loss_type": ["sigmoid", "sigmoid"]}, "a list of different ones"),
        ({"loss_type": []}, r"^(?!.*has no reference)(?s:.)*expected one loss"),
        ({"loss_weights": [1.0, -1.0]}, r"loss_weights\.1: expected numbers of at least 0, found the number -1"),
        ({"loss_type": "sigmod"}, "loss_type"),
        ({"loss_type": "ipo", "length_normalization": True}, "divides by the tokens anyway"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(run_recipe, dpo_recipe, keys, message):
    with pytest.raises(RecipeError, match=message):
        run_recipe({name: value for name, value in (dpo_recipe | keys).items() if value is not None})


def test_a_recipe_of_arctictraining_trains_as_it_is(run_recipe, tiny_model, preferences):
    recipe = {
        "type": "dpo",
        "micro_batch_size": 2,
        "model": {"type": "huggingface", "name_or_path": str(tiny_model), "dtype": "fp32"},
        "ref_model": {"type": "huggingface", "name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {
            "type": "dpo",
            "sources": [{"type": "huggingface", "name_or_path": str(preferences), "split": "train"}],
            "max_length": 512,
            "max_prompt_length": 4096,
            "dpo_prompt_truncation_mode": "keep_end",
            "num_proc": 1,
            "dl_num_workers": 0,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "beta": 0.1,
        "label_smoothing": 0.0,
        "train_iters": 2,
    }
    first, second = train_records(run_recipe(recipe))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert second["loss"] < first["loss"]


def test_training_moves_rewards_apart_and_tells_it_of_held_out_pairs(run_recipe, dpo_recipe):
    data = dpo_recipe["data"] | {"train_eval_split": [0.75, 0.25], "pack_samples": True}
    run = run_recipe(dpo_recipe | {"data": data, "eval_interval": 8, "epochs": 8, "micro_batch_size": 2})
    evaluation = [line for line in run.metrics if line["kind"] == "eval"][-1]
    assert evaluation["rewards/accuracy"] > 0.9
    assert evaluation["rewards/margin"] == pytest.approx(evaluation["rewards/chosen"] - evaluation["rewards/rejected"])
    assert evaluation["losses/sigmoid"] == pytest.approx(evaluation["loss"], rel=1e-5)


def test_several_losses_are_added_up_with_their_weights(run_recipe, dpo_recipe):
    keys = {"loss_type": ["hinge", "ipo", "cpo"], "loss_weights": [1.0, 0.5, 2.0], "train_iters": 2}
    for record in train_records(run_recipe(dpo_recipe | keys)):
        terms = record["losses/hinge"] + 0.5 * record["losses/ipo"] + 2 * record["losses/cpo"]
        assert record["loss"] == pytest.approx(terms, rel=1e-5)


def test_the_reference_is_asked_once_and_kept_beside_the_rows(run_recipe, dpo_recipe):
    recipe = dpo_recipe | {"precompute_reference": True, "train_iters": 2}
    first = run_recipe(recipe)
    [kept] = first.rows["train"].path.glob("reference-*.npy")
    written = kept.stat().st_mtime_ns
    second = run_recipe(recipe)
    assert [line["loss"] for line in train_records(second)] == [line["loss"] for line in train_records(first)]
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:-8])  # a damaged file is found out and written anew
    third = run_recipe(recipe)
    assert [line["loss"] for line in train_records(third)] == [line["loss"] for line in train_records(first)]


def test_a_reference_with_another_vocabulary_is_refused(run_recipe, dpo_recipe, tiny_model, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    recipe = dpo_recipe | {"ref_model": {"name_or_path": str(other), "dtype": "fp32"}}
    with pytest.raises(RecipeError, match="the reference has a vocabulary of 300 words, and the model to train one of"):
        run_recipe(recipe)


def test_dropout_is_off_unless_the_recipe_keeps_it_and_that_is_said(build_run, dpo_recipe, tiny_model, capsys):
    config = json.loads((tiny_model / "config.json").read_text())
    (tiny_model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    for keys, expected in (({}, 0.0), ({"disable_dropout": False}, 0.5)):
        with build_run(dpo_recipe | keys) as run:
            layer = run.trainer.model_unwrapped.model.layers[0].self_attn
            assert layer.attention_dropout == expected
        assert ("model: no dropout; it was up to 0.5, in 2 places" in capsys.readouterr().err) == (not keys)


def test_rows_that_hold_no_pair_are_named_or_counted(run_recipe, build_run, dpo_recipe, preferences):
    with preferences.open("a") as file:
        file.write('{"prompt": "a", "chosen": "b"}\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    with pytest.raises(DataError, match=r"pairs.jsonl:25: has no column 'rejected'"):
        run_recipe(dpo_recipe)
    with build_run(dpo_recipe, "data.on_bad_row=skip", "data.max_bad_fraction=0.5") as run:
        counts = run.rows["train"].facts["counts"]
    assert counts["rows refused, missing column"] == counts["rows refused, equal answers"] == 1
    assert counts["rows read"] == 26
    assert counts["rows kept"] == 24


def test_rows_of_tokens_that_are_no_pairs_are_refused(run_recipe, dpo_recipe, tmp_path):
    (tmp_path / "tokens.jsonl").write_text(json.dumps({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}) + "\n")
    source = {"type": "huggingface", "name_or_path": str(tmp_path / "tokens.jsonl"), "process": False}
    with pytest.raises(DataError, match="a row is no pair of answers"):
        run_recipe(dpo_recipe | {"data": dpo_recipe["data"] | {"sources": [source]}})
