"""What a recipe may say of an adapter, and how each mistake is told: where it is, and what is nearest."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from arctic_peft.section import SHORTHANDS, UNFIT, kind_and_keys, shipped
from arctic_training.errors import RecipeError
from arctic_training.plugins import create_plugin_manager
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve

HEAVY = ("torch", "transformers", "datasets", "numpy", "deepspeed", "peft")
RECIPE = """type: tiny
skip_validation: true
model:
  type: huggingface
  name_or_path: a-model
  peft_config: {%s}
tokenizer: {type: huggingface}
data: {sources: [{type: tiny}]}
"""


@pytest.fixture
def check(arctic_home, plugin_manager):
    """A function that gives the messages about an adapter, as ``arctic validate`` does."""

    def messages(adapter, **changes):
        text = RECIPE % adapter
        for old, new in changes.items():
            text = text.replace(old, new)
        (arctic_home / "recipe.yaml").write_text(text)
        try:
            resolve(load_recipe(arctic_home / "recipe.yaml"), plugin_manager)
        except RecipeError as error:
            return [str(problem).replace(f"{arctic_home}/", "") for problem in error.problems]
        return []

    return messages


def test_the_table_that_ships_is_that_of_the_peft_that_is_installed():
    specification = importlib.util.spec_from_file_location("peft_table", Path(__file__).with_name("peft_table.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert shipped() == module.installed(), "python plugins/peft/tests/peft_table.py"


def test_a_recipe_check_imports_nothing_heavy(arctic_home):
    (arctic_home / "recipe.yaml").write_text(RECIPE % "peft_type: lora, r: 4")
    code = (
        "import sys\nfrom arctic_training.plugins import create_plugin_manager\n"
        "from arctic_training.recipe import load_recipe\nfrom arctic_training.resolve import resolve\n"
        "from arctic_training.testing import tiny\nmanager = create_plugin_manager()\nmanager.register(tiny, 'tiny')\n"
        "config = resolve(load_recipe('recipe.yaml'), manager)\n"
        f"print(config.model.peft_config['r'], [name for name in {HEAVY} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "4 []\n"


@pytest.mark.parametrize("name", ["Lora", "LORA", "lora", "DoRA", "rsLoRA", "PiSSA", "OLoRA", "Ia3", "vera", "loha"])
def test_kinds_are_named_in_any_case(check, name):
    assert check(f"peft_type: {name}") == []


def test_shorthands_are_lora_with_a_key():
    assert kind_and_keys({"peft_type": "PiSSA", "r": 8}) == ("LORA", {"init_lora_weights": "pissa", "r": 8})
    assert kind_and_keys({"peft_type": "dora"}) == ("LORA", {"use_dora": True})
    assert not SHORTHANDS.keys() & shipped()["types"].keys()


def test_numbers_are_written_as_everywhere():
    assert kind_and_keys({"peft_type": "lora", "r": "2^4", "lora_dropout": "10%"})[1] == {"r": 16, "lora_dropout": 0.1}


MISTAKES = {
    "peft_type: lora, rank: 4": "34: model.peft_config.rank: LORA has no key 'rank'; its keys are alora_invocation",
    "peft_type: lora, lora_alfa: 4": "34: model.peft_config.lora_alfa: LORA has no key 'lora_alfa'; did you mean "
    "'lora_alpha'?",
    "peft_type: lorra": "28: model.peft_config.peft_type: peft has no 'lorra'; did you mean 'LORA'?",
    "r: 4": "16: model.peft_config: needs peft_type, the kind of adapter; one of ADALORA",
    "peft_type: lora, r: many": "37: model.peft_config.r: expected a whole number, found the text 'many'",
    "peft_type: lora, r: 4.5": "37: model.peft_config.r: expected a whole number, found the number 4.5",
    "peft_type: lora, r: -3": "37: model.peft_config.r: expected a number above 0, found the number -3",
    "peft_type: lora, r: 2, lora_dropout: 7": "54: model.peft_config.lora_dropout: expected a number from 0 to 1",
    "peft_type: lora, target_modules: 3": "50: model.peft_config.target_modules: expected a list or null or text",
    "peft_type: lora, use_dora: 1": "44: model.peft_config.use_dora: expected true or false",
    "peft_type: lora, inference_mode: true": "34: model.peft_config.inference_mode: LORA has no key",
    "peft_type: dora, use_dora: false": "44: model.peft_config.use_dora: DORA is LoRA with use_dora: true",
    "peft_type: prefix_tuning": "28: model.peft_config.peft_type: PREFIX_TUNING cannot be trained here",
    "peft_type: adalora": "28: model.peft_config.peft_type: ADALORA cannot be trained here",
    "peft_type: lora, init_lora_weights: eva": "53: model.peft_config.init_lora_weights: 'eva' begins with rows",
}


@pytest.mark.parametrize("adapter", MISTAKES)
def test_a_mistake_is_told_with_its_place(check, adapter):
    (message,) = check(adapter)
    assert message.startswith(f"recipe.yaml:6:{MISTAKES[adapter]}")


def test_random_weights_are_no_base(check):
    (message,) = check("peft_type: lora", **{"name_or_path: a-model": "name_or_path: a-model\n  init: random"})
    assert "recipe.yaml:6:9: model.init: an adapter is trained beside weights that can be had again" in message


def test_every_kind_that_is_refused_is_one_of_pefts():
    assert UNFIT.keys() <= shipped()["types"].keys()


def test_without_this_plugin_the_recipe_validates_and_a_run_says_what_to_install(monkeypatch, run_recipe, lora_recipe):
    from arctic_training.run import Run
    from arctic_training.testing import tiny

    manager = create_plugin_manager(block=["peft"])
    manager.register(tiny, "tiny")
    config = resolve(load_recipe(lora_recipe), manager)
    with pytest.raises(RecipeError, match=r"peft_config: needs arctic-plugin-peft.*; pip install"):
        Run(config).execute()


LINEAR = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
TARGETS = {"target_modules": ["q_proj"]}
MISSING = {
    "one of two": (
        {"target_modules": ["q_proj", "v_porj"]},
        "target_modules.1",
        "module 'v_porj'; did you mean 'v_proj'?",
    ),
    "none": ({"target_modules": ["to_q"]}, "target_modules.0", f"module 'to_q'; its modules are {LINEAR}"),
    "whole name": (
        {"target_modules": ["model.layers.7.self_attn.q_proj"]},
        "target_modules.0",
        "module 'model.layers.7.self_attn.q_proj'; did you mean 'model.layers.1.self_attn.q_proj'?",
    ),
    "pattern": ({"target_modules": r".*attention\.q"}, "target_modules", "module '.*attention"),
    "saved": (TARGETS | {"modules_to_save": ["head"]}, "modules_to_save.0", "module 'head'; did you mean 'lm_head'?"),
    "rank": (TARGETS | {"rank_pattern": {"k_prj": 8}}, "rank_pattern.k_prj", "module 'k_prj'; did you mean 'k_proj'?"),
    "layer": (TARGETS | {"layers_to_transform": [0, 9]}, "layers_to_transform.1", "layer 9; its layers are 0 to 1"),
}


@pytest.mark.parametrize(("adapter", "key", "expected"), MISSING.values(), ids=MISSING)
def test_layers_that_do_not_exist_are_told_with_the_nearest(run_recipe, with_adapter, adapter, key, expected):
    with pytest.raises(RecipeError) as caught:
        run_recipe(with_adapter(peft_type="lora", **adapter) | {"train_iters": 1})
    assert str(caught.value).startswith(f"model.peft_config.{key}: LlamaForCausalLM has no {expected}")
    assert caught.value.exit_code == 2


def test_layers_that_cannot_be_adapted_are_told(run_recipe, with_adapter):
    with pytest.raises(RecipeError, match=r"model\.peft_config: peft refuses it: Target module LlamaRMSNorm"):
        run_recipe(with_adapter(peft_type="lora", target_modules=["input_layernorm"]))


@pytest.mark.parametrize("targets", ["all-linear", r".*\.layers\.0\..*_proj", ["self_attn.q_proj"]])
def test_layers_may_be_named_in_every_way_of_pefts(build_run, with_adapter, targets):
    with build_run(with_adapter(peft_type="lora", r=2, target_modules=targets)) as run:
        assert any(parameter.requires_grad for parameter in run.trainer.model_unwrapped.parameters())


def test_what_peft_itself_refuses_is_told_before_data_is_prepared(run_recipe, with_adapter, hook_recorder):
    with pytest.raises(RecipeError, match=r"model\.peft_config: peft refuses it: .*lora_bias=True"):
        run_recipe(with_adapter(peft_type="lora", init_lora_weights="gaussian", lora_bias=True))
    assert "arctic_load_data" not in hook_recorder.names


WRONG_TASK = r"model\.peft_config\.task_type: %s is for CAUSAL_LM, not for SEQ_CLS; leave it out"


def test_a_task_that_is_not_the_model_s_is_told_before_data_is_prepared(run_recipe, with_adapter, hook_recorder):
    with pytest.raises(RecipeError, match=WRONG_TASK % "AutoModelForCausalLM"):
        run_recipe(with_adapter(peft_type="lora", target_modules=["q_proj"], task_type="SEQ_CLS"))
    assert "arctic_load_data" not in hook_recorder.names


@pytest.fixture
def own_recipe(with_adapter, tmp_path):
    """A function that gives the recipe with a model factory whose class does not tell what it builds."""
    (tmp_path / "own.py").write_text(
        "from arctic_huggingface.model import HFModelFactory\n\n\nclass OwnFactory(HFModelFactory):\n"
        '    name = "own"\n\n    def create_model(self, config):\n        return super().create_model(config)\n'
    )

    def own(**adapter):
        recipe = with_adapter(peft_type="lora", target_modules=["q_proj"], **adapter)
        return recipe | {"code": str(tmp_path / "own.py"), "model": recipe["model"] | {"type": "own"}}

    return own


def test_a_task_is_held_against_the_model_where_its_factory_builds_it_by_itself(build_run, own_recipe):
    with build_run(own_recipe(task_type="CAUSAL_LM")) as run:
        assert run.trainer.model.peft_config["default"].task_type == "CAUSAL_LM"
    with (
        pytest.raises(RecipeError, match=WRONG_TASK % "LlamaForCausalLM"),
        build_run(own_recipe(task_type="SEQ_CLS")),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("LlamaForCausalLM", "CAUSAL_LM"),
        ("LlamaForSequenceClassification", "SEQ_CLS"),
        ("LlamaModel", "FEATURE_EXTRACTION"),
        ("BertForMaskedLM", None),
    ],
)
def test_the_task_follows_from_the_class_where_its_name_tells(kind, task):
    import transformers

    from arctic_peft.building import _task_of

    family = kind.partition("For")[0].removesuffix("Model")
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}
    config = getattr(transformers, f"{family}Config")(vocab_size=16, **sizes)
    assert _task_of(getattr(transformers, kind)(config)) == task


def test_a_section_without_an_adapter_is_built_as_it_is(build_run, lora_recipe):
    with build_run(lora_recipe) as run:
        section = copy.copy(run.config.model)  # such as that of a reference model
        section.peft_config = None
        model = run.hook.arctic_build_model(model_config=run.model_config, config=section, run=run)
        assert not hasattr(model, "peft_config")
