"""The plugin as a run meets it: its components, its contracts, students that come to their teacher, bad input."""

from __future__ import annotations

import subprocess
import sys

import pytest

from arctic_training.errors import RecipeError
from arctic_training.testing import DataFactoryContract, TrainerContract

HEAVY = ("torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers", "jinja2")


class TestDistillTrainer(TrainerContract):
    @pytest.fixture
    def recipe(self, distill_recipe):
        return distill_recipe | {"temperature": 2.0, "sft_weight": 0.5, "hidden_layers": [[1, 2], [2, 3]]}


@pytest.mark.slow
class TestDistillTrainerWithStoredPredictions(TrainerContract):
    @pytest.fixture
    def recipe(self, distill_recipe):
        packed = {"teacher_top_k": 4, "pack_samples": True}
        return distill_recipe | {"divergence": "jensen_shannon", "data": distill_recipe["data"] | packed}


class TestDistillData(DataFactoryContract):
    @pytest.fixture
    def recipe(self, distill_recipe):
        return distill_recipe


@pytest.mark.slow
class TestDistillDataWithStoredPredictions(DataFactoryContract):
    @pytest.fixture
    def recipe(self, distill_recipe):
        return distill_recipe | {"data": distill_recipe["data"] | {"teacher_top_k": 2, "pack_samples": True}}


@pytest.mark.parametrize("module", ["", ".plugin", ".data", ".trainer"])
def test_what_a_recipe_check_imports_is_light(module):
    code = f"import sys, arctic_distill{module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_plugin_offers_its_trainer_and_its_data_factory(plugin_manager):
    import arctic_distill

    assert plugin_manager.registry.get("trainer", "distill") is arctic_distill.DistillTrainer
    assert plugin_manager.registry.get("data", "distill") is arctic_distill.DistillDataFactory
    assert set(arctic_distill.__all__) <= set(dir(arctic_distill))
    with pytest.raises(AttributeError, match="no attribute 'DistillTrainr'"):
        arctic_distill.DistillTrainr  # noqa: B018


def figures(run, name, kind="train"):
    return [line[name] for line in run.metrics if line["kind"] == kind]


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_a_student_comes_nearer_to_its_teacher_and_agrees_with_it_more(run_recipe, distill_recipe, divergence):
    run = run_recipe(distill_recipe | {"divergence": divergence, "epochs": 2})
    assert figures(run, "distillation/divergence")[-1] < 0.7 * figures(run, "distillation/divergence")[0]
    assert figures(run, "distillation/agreement")[-1] > figures(run, "distillation/agreement")[0]
    assert figures(run, "loss") == pytest.approx(figures(run, "distillation/divergence"), rel=1e-6)


def test_hidden_states_come_nearer_to_those_of_the_teacher(run_recipe, distill_recipe):
    run = run_recipe(distill_recipe | {"distillation_weight": 0, "hidden_layers": [[2, 3]], "epochs": 2})
    assert figures(run, "distillation/hidden/2-3")[-1] < 0.8 * figures(run, "distillation/hidden/2-3")[0]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(run_recipe, distill_recipe, tiny_model):
    teacher = {"name_or_path": str(tiny_model), "dtype": "fp32"}
    run = run_recipe(distill_recipe | {"teacher": teacher, "hidden_layers": [[1, 1]], "train_iters": 1})
    (line,) = (line for line in run.metrics if line["kind"] == "train")
    assert line["loss"] == pytest.approx(0, abs=1e-6)
    assert line["distillation/agreement"] == 1
    assert line["distillation/teacher_loss"] == pytest.approx(line["distillation/sft_loss"], rel=1e-6)


def test_the_teacher_has_no_dropout_and_no_gradients(build_run, distill_recipe):
    dropout = {"hf_config_kwargs": {"attention_dropout": 0.5}}
    recipe = distill_recipe | {"teacher": distill_recipe["teacher"] | dropout}
    with build_run(recipe) as run:
        run.trainer.model.train()
        batch = next(run.trainer.train_dataloader.epoch(0))[0]
        losses = [run.trainer.loss(batch).sum.item() for _ in range(2)]
        assert losses[0] == losses[1]
        assert not any(parameter.requires_grad for parameter in run.trainer.teacher.parameters())


def test_evaluation_tells_how_near_the_student_is(run_recipe, distill_recipe, tiny_chats):
    data = distill_recipe["data"] | {"eval_sources": [str(tiny_chats)]}
    run = run_recipe(distill_recipe | {"data": data, "eval_interval": 6, "train_iters": 12})
    assert figures(run, "distillation/divergence", "eval")[1] < figures(run, "distillation/divergence", "eval")[0]
    assert len(set(figures(run, "distillation/teacher_loss", "eval"))) == 1


def test_packed_and_padded_rows_have_the_same_loss(run_recipe, distill_recipe):
    recipe = distill_recipe | {"micro_batch_size": 48, "sft_weight": 1.0, "hidden_layers": [[1, 1]], "train_iters": 1}
    padded, packed = run_recipe(recipe), run_recipe(recipe, "data.pack_samples=true")
    for name in ("loss", "grad_norm", "trained_tokens", "distillation/agreement"):
        assert figures(packed, name) == pytest.approx(figures(padded, name), rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"jensen_shannon_weight": 0.3}, "jensen_shannon_weight: is of no use to forward_kl"),
        ({"hidden_weight": 2}, "hidden_weight: weighs nothing: give hidden_layers"),
        ({"hidden_layers": [[1, -1]]}, "hidden_layers: layers are counted from 0"),
        ({"distillation_weight": 0}, "distillation_weight: is 0, so that nothing is learnt from the teacher"),
        ({"distillation_weight": 0, "hidden_layers": [[1, 1]], "temperature": 2}, "temperature: is of no use with"),
        ({"temperature": 0}, "temperature"),
        ({"jensen_shannon_weight": 1, "divergence": "jensen_shannon"}, "jensen_shannon_weight"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(run_recipe, distill_recipe, keys, message):
    with pytest.raises(RecipeError, match=message):
        run_recipe(distill_recipe | keys)


def test_a_recipe_without_a_teacher_is_refused(run_recipe, distill_recipe):
    del distill_recipe["teacher"]
    with pytest.raises(RecipeError, match="teacher"):
        run_recipe(distill_recipe)


def test_layers_that_do_not_exist_or_differ_in_width_are_refused(run_recipe, distill_recipe, tmp_path):
    from arctic_training.testing.tiny_llama import make_tiny_llama

    with pytest.raises(RecipeError, match=r"hidden_layers: there is no layer 4 in the teacher; give 0, .* to 3"):
        run_recipe(distill_recipe | {"hidden_layers": [[2, 4]]})
    with pytest.raises(RecipeError, match="hidden_layers: there is no layer 3 in the model"):
        run_recipe(distill_recipe | {"hidden_layers": [[3, 3]]})
    wide = make_tiny_llama(tmp_path / "wide", hidden_size=64)
    with pytest.raises(RecipeError, match="hidden states have 32 numbers in the model and 64 in the teacher"):
        run_recipe(distill_recipe | {"teacher": {"name_or_path": str(wide)}, "hidden_layers": [[1, 1]]})


def test_a_teacher_without_a_tokenizer_is_told(run_recipe, distill_recipe, tmp_path):
    from arctic_training.testing.tiny_llama import make_tiny_llama

    bare = make_tiny_llama(tmp_path / "bare")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (bare / file).unlink()
    run = run_recipe(distill_recipe | {"teacher": {"name_or_path": str(bare)}, "train_iters": 1})
    assert "teacher: it comes without a tokenizer" in run.log_path.read_text()


@pytest.fixture
def make_teacher(tiny_teacher, tmp_path):
    """Makes a teacher whose tokenizer or architecture has been changed."""

    def make(name, change_tokenizer=None, **architecture):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        path = tmp_path / name
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
        if change_tokenizer is not None:
            change_tokenizer(tokenizer)
        config = AutoConfig.from_pretrained(tiny_teacher, **architecture)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return {"name_or_path": str(path), "dtype": "fp32"}

    return make


def test_a_teacher_with_other_words_is_refused_before_it_is_loaded(run_recipe, distill_recipe, make_teacher):
    teacher = make_teacher("other-words", lambda tokenizer: tokenizer.add_tokens(["<more>"]), vocab_size=261)
    with pytest.raises(
        RecipeError, match=r"teacher.name_or_path: .* differs in 1 word, the first is '<more>'"
    ) as caught:
        run_recipe(distill_recipe | {"teacher": teacher})
    assert caught.value.exit_code == 2
    with pytest.raises(RecipeError, match="another vocabulary"):
        run_recipe(distill_recipe | {"teacher": teacher}, "data.teacher_top_k=2")


def test_a_teacher_that_predicts_too_few_words_or_reads_too_little_is_refused(run_recipe, distill_recipe, make_teacher):
    few = make_teacher("few-words", vocab_size=200, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    with pytest.raises(RecipeError, match="the teacher predicts 200 words, and the tokenizer has 260"):
        run_recipe(distill_recipe | {"teacher": few})
    short = make_teacher("short", max_position_embeddings=64)
    with pytest.raises(RecipeError, match="the teacher takes at most 64 tokens, and rows have up to 128"):
        run_recipe(distill_recipe | {"teacher": short})


def test_a_teacher_whose_vocabulary_is_padded_teaches_the_words_that_both_have(
    run_recipe, distill_recipe, make_teacher
):
    padded = make_teacher("padded", vocab_size=320, initializer_range=0.3)
    run = run_recipe(distill_recipe | {"teacher": padded, "train_iters": 8})
    assert figures(run, "loss")[-1] < figures(run, "loss")[0]


def test_bad_chats_end_the_run_or_are_counted(run_recipe, build_run, distill_recipe, tiny_chats):
    from arctic_training.errors import DataError

    with open(tiny_chats, "a") as file:
        file.write('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(DataError, match="the chat has no assistant message"):
        run_recipe(distill_recipe)
    with build_run(distill_recipe, "data.on_bad_row=skip", "data.max_bad_fraction=0.5") as run:
        assert run.rows["train"].facts["counts"]["rows kept"] == 48
