"""``arctic generate``: which model is taken, what it is asked, and that only its text is printed."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner

from arctic_huggingface.generate import command, find_model
from arctic_huggingface.model import HFModelFactory
from arctic_training.errors import CheckpointError, RecipeError, UsageError


@pytest.fixture
def generate():
    def generate(*arguments, stdin=None):
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return generate


def test_the_folder_of_a_model_is_that_model(model_dir):
    assert find_model(model_dir) == model_dir


def test_the_newest_complete_export_of_an_output_dir_is_taken(model_dir, tmp_path):
    for name in ("global_step_9", "global_step_10", "global_step_11.incomplete"):
        shutil.copytree(model_dir, tmp_path / name)
    (tmp_path / "global_step_12").mkdir()
    assert find_model(tmp_path) == tmp_path / "global_step_10"


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        find_model(tmp_path / "nothing")


def test_a_checkpoint_to_resume_from_is_told_from_a_model(tmp_path):
    (tmp_path / "global_step_3").mkdir()
    with pytest.raises(CheckpointError, match="to resume from") as caught:
        find_model(tmp_path)
    assert "arctic export" in caught.value.remedy


def test_only_the_text_goes_to_standard_output(generate, model_dir):
    result = generate(model_dir, "what does this do", "--max-new-tokens", 8)
    assert "LlamaForCausalLM" in result.stderr
    assert str(model_dir) not in result.stdout
    assert result.stdout.strip()


def test_greedy_text_is_the_model_s_likeliest(generate, model_dir):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    ids = tokenizer("<|user|>what does this do<|end|><|assistant|>")["input_ids"]
    begin = len(ids)
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[begin:], skip_special_tokens=True)
    assert generate(model_dir, "what does this do", "--max-new-tokens", 8).stdout == expected + "\n"


def test_a_prompt_may_be_piped_in(generate, model_dir):
    piped = generate(model_dir, "--max-new-tokens", 8, stdin="what does this do\n")
    assert piped.stdout == generate(model_dir, "what does this do", "--max-new-tokens", 8).stdout


def test_the_template_and_the_system_message_change_what_is_asked(generate, model_dir):
    answers = {
        generate(model_dir, "hello", "--max-new-tokens", 8, *options).stdout
        for options in ((), ("--raw",), ("--system", "be brief"))
    }
    assert len(answers) == 3


def test_sampling_is_a_function_of_the_seed(generate, model_dir):
    def sample(seed):
        return generate(
            model_dir, "hello", "--temperature", 1.5, "--top-p", 0.99, "--max-new-tokens", 12, "--seed", seed
        ).stdout

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_text_ends_where_the_model_s_room_ends(generate, model_dir):
    assert generate(model_dir, "hello", "--max-new-tokens", 1000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello", "--raw", "--system", "x"], "--system has no meaning with --raw"),
        (["hello", "--top-p", "0.5"], "--top-p has no meaning at temperature 0"),
        (["x" * 600], "the model takes 128"),
        ([], "there is no prompt"),
    ],
)
def test_what_makes_no_sense_is_refused(generate, model_dir, arguments, message):
    with pytest.raises(UsageError, match=message):
        generate(model_dir, *arguments, stdin="")


def test_a_broken_model_is_refused_without_a_traceback(generate, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"model .*: .*header too small"):
        generate(tmp_path / "model", "hello")


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("LlamaForSequenceClassification", "lm_head.weight of LlamaForCausalLM"),
        ("LlamaModel", "lm_head.weight of LlamaForCausalLM"),
        ("BertModel", "cls.predictions.* of BertLMHeadModel"),
    ],
)
def test_a_model_without_a_head_for_words_is_refused_as_a_run_does(
    generate, make, tiny_config, make_tokenizer, tmp_path, kind, lacking
):
    """Loaded as a language model it would get a head that is drawn anew each time."""
    import transformers

    if kind == "BertModel":
        sizes = {"num_attention_heads": 4, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
        config = transformers.BertConfig(vocab_size=320, tie_word_embeddings=False, is_decoder=True, **sizes)
    else:
        config = tiny_config(num_labels=1)
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"has no weights for {lacking}") as caught:
        generate(tmp_path, "hello")
    assert "reward models and encoders write no text" in caught.value.remedy
    factory = make(HFModelFactory, name_or_path=str(tmp_path))
    with pytest.raises(RecipeError) as of_run:
        factory.create_model(factory.create_config())
    assert caught.value.message in str(of_run.value)
    assert caught.value.exit_code == of_run.value.exit_code


def test_an_embedding_that_is_the_head_too_is_no_head_that_lacks(generate, tiny_config, make_tokenizer, tmp_path):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert generate(tmp_path, "hello", "--max-new-tokens", 2)


def test_an_adapter_of_a_model_that_writes_no_text_is_refused(generate, tiny_config, tmp_path, monkeypatch):
    from transformers import LlamaForSequenceClassification

    from arctic_huggingface import adapters

    merged = LlamaForSequenceClassification(tiny_config())
    monkeypatch.setattr(adapters, "merged_model", lambda folder, trusted: merged)
    for name in ("config.json", adapters.ADAPTER_CONFIG):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match="is an adapter of LlamaForSequenceClassification"):
        generate(tmp_path, "hello")
