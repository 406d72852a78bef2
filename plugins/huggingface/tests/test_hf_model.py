"""The model factory: what it builds, and what it refuses instead of training something else."""

from __future__ import annotations

import json
import shutil

import pytest

from arctic_huggingface.model import HFModelFactory
from arctic_training.errors import RecipeError


@pytest.fixture
def build(make):
    def build(**keys):
        factory = make(HFModelFactory, **{"dtype": "fp32", **keys})
        return factory.create_model(factory.create_config())

    return build


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_model_is_built_in_the_precision_of_the_recipe(build, model_dir, dtype):
    model = build(name_or_path=str(model_dir), dtype=dtype)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {
        {"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}[dtype]
    }


def test_pretrained_weights_are_those_of_the_folder(build, model_dir):
    from safetensors.torch import load_file

    state = build(name_or_path=str(model_dir)).state_dict()
    saved = load_file(model_dir / "model.safetensors")
    assert saved.keys() == state.keys()
    assert all(saved[name].equal(state[name]) for name in saved)


def test_random_weights_are_drawn_with_the_seed_and_said(build, model_dir, run):
    import torch

    first = build(name_or_path=str(model_dir), init="random").state_dict()
    torch.rand(7)
    again = build(name_or_path=str(model_dir), init="random").state_dict()
    run.config.seed = 43
    other = build(name_or_path=str(model_dir), init="random").state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert first[name].equal(again[name])
    assert not first[name].equal(other[name])
    assert any("random weights" in text and "seed 42" in text for text in run.said)


def test_random_weights_need_no_weight_files_and_leave_other_random_numbers_alone(build, model_dir, tmp_path):
    import torch

    shutil.copy(model_dir / "config.json", tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(name_or_path=str(tmp_path), init="random")
    assert torch.rand(3).equal(expected)


def test_a_relative_folder_is_found_in_the_working_directory(build, model_dir, monkeypatch):
    monkeypatch.chdir(model_dir.parent)
    assert build(name_or_path=f"./{model_dir.name}").config.hidden_size == 32


def test_a_folder_of_checkpoints_is_no_model_and_tells_which_is(build, model_dir, tmp_path):
    for step in (2, 10):
        shutil.copytree(model_dir, tmp_path / f"out/global_step_{step}")
        (tmp_path / f"kept/global_step_{step}").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"out holds checkpoints; name one: \S*out/global_step_10"):
        build(name_or_path=str(tmp_path / "out"))
    with pytest.raises(RecipeError, match=r"kept holds checkpoints that training goes on from, and no model; .*export"):
        build(name_or_path=str(tmp_path / "kept"))
    (tmp_path / "kept/global_step_2/manifest.json").touch()
    with pytest.raises(RecipeError, match="global_step_2 is a checkpoint that training goes on from"):
        build(name_or_path=str(tmp_path / "kept/global_step_2"))


def test_overrides_change_the_architecture(build, model_dir):
    model = build(
        name_or_path=str(model_dir), init="random", hf_config_kwargs={"num_hidden_layers": 1, "attention_dropout": 0.1}
    )
    assert len(model.model.layers) == 1
    assert model.model.layers[0].self_attn.attention_dropout == 0.1


def test_an_override_that_the_architecture_does_not_know_is_refused_with_the_nearest(build, model_dir):
    with pytest.raises(RecipeError, match="LlamaConfig has no key 'num_hiden_layers'") as caught:
        build(name_or_path=str(model_dir), hf_config_kwargs={"num_hiden_layers": 1})
    assert "num_hidden_layers" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"rope_theta": 5e5}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
            {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e6},
        ),
        ({"rope_scaling": None}, {"rope_type": "default", "rope_theta": 1e6}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {"rope_type": "default", "rope_theta": 7.0}),
    ],
)
@pytest.mark.parametrize("older_file", [False, True])
def test_rotary_settings_are_overridden_by_their_names_of_old_and_new(
    make, tiny_config, tmp_path, overrides, expected, older_file
):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    if older_file:
        del content["rope_parameters"]
        content |= {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    else:
        content["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}
    path.write_text(json.dumps(content))
    config = make(HFModelFactory, name_or_path=str(tmp_path), hf_config_kwargs=overrides).create_config()
    assert config.rope_parameters == expected


def test_types_of_layers_follow_their_number(make, tmp_path):
    from transformers import Qwen3Config

    Qwen3Config(num_hidden_layers=4, use_sliding_window=True, max_window_layers=1).save_pretrained(tmp_path)
    for number in (2, 6):
        overrides = {"num_hidden_layers": number}
        config = make(HFModelFactory, name_or_path=str(tmp_path), hf_config_kwargs=overrides).create_config()
        assert config.num_hidden_layers == len(config.layer_types) == number
        assert config.layer_types[0] == "full_attention"


def test_overrides_reach_into_configurations_inside_and_are_checked_there(make, tmp_path):
    from transformers import Gemma3Config

    Gemma3Config().save_pretrained(tmp_path)

    def created(**overrides):
        return make(
            HFModelFactory, name_or_path=str(tmp_path), hf_config_kwargs={"text_config": overrides}
        ).create_config()

    config = created(num_hidden_layers=2)
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (2, 2304)
    with pytest.raises(RecipeError, match="Gemma3TextConfig has no key 'num_hiden_layers'"):
        created(num_hiden_layers=2)


def test_an_override_of_the_wrong_type_is_refused(build, model_dir):
    with pytest.raises(RecipeError, match="hidden_size"):
        build(name_or_path=str(model_dir), hf_config_kwargs={"hidden_size": "large"})


def test_weights_that_are_missing_are_refused_by_name(build, model_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(model_dir, tmp_path / "model")
    weights = load_file(model_dir / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        build(name_or_path=str(tmp_path / "model"))


def test_weights_of_another_shape_are_refused(build, model_dir):
    with pytest.raises(RecipeError, match=r"model\.init: random"):
        build(name_or_path=str(model_dir), hf_config_kwargs={"intermediate_size": 48})


def test_weights_without_a_place_in_the_model_are_said(build, model_dir, run):
    build(name_or_path=str(model_dir), hf_config_kwargs={"num_hidden_layers": 1})
    assert any("left out" in text and "model.layers.1" in text for text in run.said)


def test_a_model_with_tied_embeddings_has_no_missing_weights(build, tiny_config, tmp_path):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path)
    model = build(name_or_path=str(tmp_path))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_activations_are_recomputed_unless_disabled(build, model_dir):
    def recomputing(model):
        return [layer.gradient_checkpointing for layer in model.model.layers]

    assert recomputing(build(name_or_path=str(model_dir))) == [True, True]
    assert recomputing(build(name_or_path=str(model_dir), disable_activation_checkpoint=True)) == [False, False]


def test_recomputing_activations_leaves_gradients_as_they_are(build, model_dir):
    import torch

    gradients = []
    for disabled in (False, True):
        model = build(name_or_path=str(model_dir), disable_activation_checkpoint=disabled).train()
        model(torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_the_cache_is_off_in_training(build, model_dir):
    assert build(name_or_path=str(model_dir)).config.use_cache is False


def test_the_attention_implementation_is_the_recipe_s(build, model_dir):
    assert build(name_or_path=str(model_dir), attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["flash_attention_2", "flesh_attention"])
def test_an_attention_implementation_that_is_not_there_is_refused_by_name(build, model_dir, name):
    with pytest.raises(RecipeError, match=name) as caught:
        build(name_or_path=str(model_dir), attn_implementation=name)
    assert str(caught.value).startswith("model.attn_implementation: ")


def test_a_hub_name_without_network_says_what_to_do(build):
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set") as caught:
        build(name_or_path="nobody/no-such-model")
    assert "hf download" in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/no-such-model", "examples/no-such/model"])
def test_a_path_that_is_not_there_is_no_hub_name(build, name):
    with pytest.raises(RecipeError, match="there is no /"):
        build(name_or_path=name)


def test_a_folder_without_a_model_is_refused(build, tmp_path):
    with pytest.raises(RecipeError, match=r"config\.json"):
        build(name_or_path=str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run_unasked(build, model_dir, tmp_path):
    config = json.loads((model_dir / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "home.Config", "AutoModelForCausalLM": "home.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "home.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(RecipeError, match="code of its own") as caught:
        build(name_or_path=str(tmp_path))
    assert "trust_remote_code: true" in str(caught.value)


def test_a_subclass_gets_the_architecture_s_configuration(make, model_dir):
    from transformers import LlamaForCausalLM

    class CustomModelFactory(HFModelFactory):
        name = "my_custom_model_factory"

        def create_model(self, config):
            config.num_hidden_layers = 1
            return LlamaForCausalLM(config)

    factory = make(CustomModelFactory, name_or_path=str(model_dir))
    assert len(factory.create_model(factory.create_config()).model.layers) == 1


def test_the_longest_sequence_is_the_architecture_s(make, model_dir):
    factory = make(HFModelFactory, name_or_path=str(model_dir))
    assert factory.max_length(factory.create_config()) == 128
