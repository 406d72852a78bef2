"""The plugin as a run meets it: its components, its lightness, its contracts, and what it does with bad input."""

from __future__ import annotations

import subprocess
import sys

import pytest

from arctic_training.errors import DataError, RecipeError
from arctic_training.testing import DataFactoryContract, TrainerContract

HEAVY = ("torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers")


class TestKTOTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, kto_recipe):
        return kto_recipe


class TestKTOData(DataFactoryContract):
    @pytest.fixture
    def recipe(self, kto_recipe):
        return kto_recipe

    def test_no_row_is_longer_than_max_length(self, build_run, recipe):
        """A row holds two documents of at most this length."""
        with build_run(recipe, "data.max_length=52") as run:
            rows = run.rows["train"]
            assert rows.facts["counts"]["rows dropped, longer than max_length"] > 0
            assert max(int(row["position_ids"].max()) for row in rows) < 52


class TestPackedKTOData(TestKTOData):
    @pytest.fixture
    def recipe(self, kto_recipe):
        return kto_recipe | {"data": kto_recipe["data"] | {"pack_samples": True}}


@pytest.mark.parametrize("module", ["", ".plugin", ".data", ".trainer"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, arctic_kto{module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_plugin_offers_its_trainer_and_its_data_factory(plugin_manager):
    import arctic_kto

    registry = plugin_manager.registry
    assert registry.get("trainer", "kto") is arctic_kto.KTOTrainer
    assert registry.get("data", "kto") is arctic_kto.KTODataFactory
    assert set(arctic_kto.__all__) <= set(dir(arctic_kto))
    with pytest.raises(AttributeError, match="no attribute 'KTOTrainr'"):
        arctic_kto.KTOTrainr  # noqa: B018


def test_training_moves_the_rewards_of_good_and_bad_answers_apart(run_recipe, kto_recipe):
    recipe = kto_recipe | {"ref_model": kto_recipe["model"], "eval_interval": 100, "evaluate_at_start": True}
    recipe |= {"data": recipe["data"] | {"eval_sources": recipe["data"]["sources"]}}
    run = run_recipe(recipe, "epochs=8", "data.pack_samples=true", "optimizer.learning_rate=3e-3")
    first, last = (line for line in run.metrics if line["kind"] == "eval")
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-4)
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert first["loss"] == pytest.approx((16 * 1 + 8 * 1.5) / 24 / 2, rel=1e-4)
    assert last["rewards/desirable"] > last["rewards/undesirable"]
    assert last["rewards/margin"] == pytest.approx(last["rewards/desirable"] - last["rewards/undesirable"], rel=1e-4)
    assert last["rewards/margin"] > 0.5
    assert last["rewards/accuracy"] > 0.6


def test_a_file_of_pairs_is_refused_with_what_kto_learns_from(run_recipe, kto_recipe, write):
    path = write([{"prompt": "What is 1 plus 1?", "chosen": "2", "rejected": "3"}], "pairs.jsonl")
    with pytest.raises(DataError, match=r"pairs\.jsonl:1.*two answers") as caught:
        run_recipe(kto_recipe | {"data": kto_recipe["data"] | {"sources": [str(path)]}})
    assert "one answer with its label" in str(caught.value)


@pytest.mark.parametrize("label", [True, False])
def test_labels_that_are_all_equal_are_refused_with_their_counts(run_recipe, kto_recipe, write, chat, label):
    path = write([chat(number, label) for number in range(6)], "equal.jsonl")
    with pytest.raises(DataError, match=f"all answers are equal: {6 * label} are desirable and {6 - 6 * label} und"):
        run_recipe(kto_recipe | {"data": kto_recipe["data"] | {"sources": [str(path)]}})


def test_one_kind_of_answers_may_be_evaluated_on(run_recipe, kto_recipe, write, chat):
    path = write([chat(number, True) for number in range(6)], "good.jsonl")
    recipe = kto_recipe | {"data": kto_recipe["data"] | {"eval_sources": [str(path)]}, "eval_interval": 1}
    run = run_recipe(recipe, "train_iters=1")
    (evaluation,) = (line for line in run.metrics if line["kind"] == "eval")
    assert "rewards/desirable" in evaluation
    assert "rewards/margin" not in evaluation


def test_a_block_of_a_stream_may_hold_one_kind(run_recipe, kto_recipe, write, chat):
    path = write([chat(number, number >= 8) for number in range(16)], "in-order.jsonl")
    data = kto_recipe["data"] | {"sources": [str(path)], "streaming": True, "stream_buffer": 8}
    run = run_recipe(kto_recipe | {"data": data, "train_iters": 4})
    losses = [line["loss"] for line in run.metrics if line["kind"] == "train"]
    assert len(losses) == 4
    assert all(0 < loss < 1.5 for loss in losses)


def test_rows_that_cannot_be_used_are_refused_and_counted(run_recipe, build_run, kto_recipe, write, chat):
    empty = chat(3, True)
    empty["messages"][1]["content"] = ""
    rows = [*(chat(number, number % 2 > 0) for number in range(8)), empty, {**chat(4, True), "label": "maybe"}]
    recipe = kto_recipe | {"data": kto_recipe["data"] | {"sources": [str(write(rows, "bad.jsonl"))]}}
    with pytest.raises(DataError, match=r"bad.jsonl:9: .*empty answer"):
        run_recipe(recipe)
    with build_run(recipe, "data.on_bad_row=skip", "data.max_bad_fraction=0.5") as run:
        counts = run.rows["train"].facts["counts"]
    assert counts["rows read"] == 10
    assert counts["rows refused, empty answer"] == 1
    assert counts["rows refused, wrong type"] == 1
    assert counts["rows kept"] == 8


def test_chats_without_labels_are_refused_with_their_columns(run_recipe, kto_recipe, tiny_chats):
    source = {"type": "huggingface_instruct", "name_or_path": str(tiny_chats)}
    with pytest.raises(DataError, match="need columns `messages` and `label`; found messages"):
        run_recipe(kto_recipe | {"data": kto_recipe["data"] | {"sources": [source]}})


def test_a_longer_answer_is_an_error_where_the_recipe_says_so(run_recipe, kto_recipe):
    with pytest.raises(DataError, match=r"answers.jsonl:\d+.*: prompt and answer have \d+ tokens, more than .* of 52"):
        run_recipe(kto_recipe, "data.max_length=52", "data.over_long=error")


@pytest.mark.parametrize(
    "override",
    ["data.over_long=truncate_right", "data.always_max_length=true", "data.fuse_positions_prob=0.5", "beta=0"],
)
def test_keys_that_would_cut_or_join_answers_are_refused(run_recipe, kto_recipe, override):
    with pytest.raises(RecipeError, match=override.partition("=")[0].rpartition(".")[2]):
        run_recipe(kto_recipe, override, "data.pack_samples=true")


def test_a_reference_of_another_vocabulary_is_refused_with_its_place(run_recipe, kto_recipe):
    reference = kto_recipe["ref_model"] | {"init": "random", "hf_config_kwargs": {"vocab_size": 300}}
    with pytest.raises(RecipeError, match=r"ref_model.*vocabulary of 300 words.* one of 260"):
        run_recipe(kto_recipe | {"ref_model": reference})


def test_without_reference_and_adapter_there_is_nothing_to_measure_against(run_recipe, kto_recipe):
    recipe = {name: value for name, value in kto_recipe.items() if name != "ref_model"}
    with pytest.raises(RecipeError, match=r"there is no reference: .*no adapter"):
        run_recipe(recipe)
