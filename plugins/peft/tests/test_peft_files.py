"""The adapter as files: plain peft loads them, merged they are the model that was trained, and no pickle is read."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from arctic_huggingface.export import command
from arctic_training.errors import CheckpointError
from arctic_training.hookspecs import hookimpl
from arctic_training.testing.contracts.common import KeepsWeights

KINDS = {
    "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"], "bias": "none"},
    "dora": {"r": 4, "target_modules": "all-linear"},
    "rslora": {"r": 8, "target_modules": ["q_proj"]},
    "pissa": {"r": 4, "target_modules": ["q_proj", "down_proj"]},
    "ia3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
}
MORE = {
    "olora": {"r": 4, "target_modules": ["q_proj"]},
    "loha": {"r": 4, "target_modules": ["q_proj"]},
    "lokr": {"r": 4, "target_modules": ["q_proj"]},
    "vera": {"r": 16, "target_modules": ["q_proj"]},
    "oft": {"target_modules": ["q_proj"]},
    "boft": {"target_modules": ["q_proj"]},
    "hra": {"target_modules": ["q_proj"]},
    "ln_tuning": {},
    "randlora": {"target_modules": ["q_proj"]},
    "delora": {"target_modules": ["q_proj"]},
    "hira": {"target_modules": ["q_proj"]},
    "tinylora": {"target_modules": ["q_proj", "v_proj"]},
    "unilora": {"target_modules": ["q_proj"]},
    "trainable_tokens": {"token_indices": [1, 2, 3]},
}
IDS = [[7, 30, 12, 99, 200, 3, 40, 41]]


class Logits:
    """Keeps what the model says when training ends."""

    @hookimpl
    def arctic_train_end(self, trainer, error):
        import torch

        model = trainer.model_unwrapped.eval()
        with torch.no_grad():
            self.logits = model(input_ids=torch.tensor(IDS)).logits


@pytest.fixture
def trained(run_recipe, with_adapter, plugin_manager):
    """A function that trains an adapter, and gives the logits and the folder of its checkpoints of both kinds."""

    def train(kind, tokens=(), **keys):
        plugin_manager.register(KeepsWeights(), "keeps weights")
        logits = Logits()
        plugin_manager.register(logits, "logits")
        entries = [
            {"output_dir": "kept", "save_end_of_training": True},
            {"type": "huggingface", "output_dir": "exported", "save_end_of_training": True},
        ]
        recipe = with_adapter(peft_type=kind, **keys) | {"train_iters": 6, "checkpoint": entries}
        recipe["tokenizer"] = recipe["tokenizer"] | {"added_tokens": list(tokens)}
        run_recipe(recipe | {"optimizer": {"type": "adamw", "learning_rate": 0.05}})
        return logits.logits

    return train


def export(*arguments, trust=False):
    result = CliRunner().invoke(command, [str(each) for each in arguments], obj=SimpleNamespace(block=(), trust=trust))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def logits_of(model):
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(IDS)).logits


def loaded_with_peft(base, folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), folder)


def whole(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def differ(one, other):
    return float((one - other).abs().max())


def _check(trained, tiny_model, arctic_home, kind, keys):
    logits = trained(kind, **keys)
    base = logits_of(whole(tiny_model))
    assert differ(base, logits) > 1e-4, "nothing was learned"
    export("kept", "adapter")
    for folder in ("adapter", "exported/global_step_6"):
        assert differ(logits_of(loaded_with_peft(tiny_model, arctic_home / folder)), logits) < 1e-4
    export("kept", "merged", "--merge")
    export("exported", "merged-too", "--merge")
    for folder in ("merged", "merged-too"):
        assert not list((arctic_home / folder).glob("adapter*"))
        assert differ(logits_of(whole(arctic_home / folder)), logits) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_loads_it_and_merged_it_says_the_same(trained, tiny_model, arctic_home, kind):
    _check(trained, tiny_model, arctic_home, kind, KINDS[kind])


def test_merging_says_what_was_written_and_shows_no_bars(trained):
    trained("lora", r=4, target_modules=["q_proj"])
    said = export("kept", "merged", "--merge").output
    assert "merged" in said
    assert "%|" not in said


@pytest.mark.parametrize("trained_too", [[], ["embed_tokens", "lm_head"]])
def test_tokens_that_were_added_are_in_the_merged_model_and_in_a_resized_base(
    trained, tiny_model, arctic_home, trained_too
):
    from peft import PeftModel
    from transformers import AutoTokenizer

    keys = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": trained_too or None}
    logits = trained("lora", tokens=["<tool>", "</tool>"], **keys)
    export("kept", "merged", "--merge")
    merged = whole(arctic_home / "merged")
    rows = len(whole(tiny_model).get_input_embeddings().weight)
    assert len(merged.get_input_embeddings().weight) == rows + 2
    assert len(AutoTokenizer.from_pretrained(arctic_home / "merged")) == rows + 2
    assert differ(logits_of(merged), logits) < 1e-4
    if trained_too:  # plain peft makes no room itself
        base = whole(tiny_model)
        base.resize_token_embeddings(rows + 2)
        assert differ(logits_of(PeftModel.from_pretrained(base, arctic_home / "exported/global_step_6")), logits) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE)
def test_the_rest_of_peft_does_so_too(trained, tiny_model, arctic_home, kind):
    _check(trained, tiny_model, arctic_home, kind, MORE[kind])


def test_its_folder_is_pefts_own_with_tokenizer_and_card(trained, tiny_model, arctic_home):
    trained("lora", r=4, target_modules=["v_proj", "q_proj"])
    export("kept", "adapter")
    for folder in (arctic_home / "adapter", arctic_home / "exported/global_step_6"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tiny_model)
        assert (config["peft_type"], config["task_type"], config["inference_mode"]) == ("LORA", "CAUSAL_LM", True)
        assert not list(folder.glob("model*.safetensors"))
        assert (folder / "tokenizer.json").is_file()
        card = (folder / "README.md").read_text()
        assert "library_name: peft" in card
        assert f"LORA adapter beside LlamaForCausalLM `{tiny_model}`" in card
        assert (folder / "adapter_model.safetensors").stat().st_size < 10_000


def test_a_process_without_arctic_loads_it(trained, tiny_model, arctic_home):
    logits = trained("lora", r=4, target_modules=["q_proj"])
    code = (
        "import sys, torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({str(tiny_model)!r}, dtype='float32')\n"
        "model = PeftModel.from_pretrained(base, 'exported/global_step_6').eval()\n"
        f"torch.save(model(input_ids=torch.tensor({IDS})).logits.detach(), 'logits.pt')\n"
        "assert not [name for name in sys.modules if name.startswith('arctic')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    import torch

    assert differ(torch.load("logits.pt"), logits) < 1e-5


def test_a_base_that_was_replaced_is_not_merged_into(trained, tiny_model, arctic_home):
    from arctic_training.testing.tiny_llama import make_tiny_llama

    trained("lora", r=4, target_modules=["q_proj"])
    make_tiny_llama(tiny_model, seed=5)
    with pytest.raises(CheckpointError, match="are not those that the adapter was trained beside"):
        export("kept", "merged", "--merge")
    assert not (arctic_home / "merged").exists()


def test_a_whole_model_is_not_merged(run_recipe, lora_recipe):
    lora_recipe["model"].pop("peft_config")
    run_recipe(lora_recipe | {"train_iters": 1, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}})
    with pytest.raises(Exception, match="holds a whole model and no adapter"):
        export("kept", "merged", "--merge")


def test_without_peft_merging_says_what_to_install(trained, monkeypatch):
    trained("lora", r=4, target_modules=["q_proj"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CheckpointError, match="pip install arctic-plugin-peft"):
        export("kept", "merged", "--merge")


def test_weights_that_are_pickles_are_never_read(trained, arctic_home):
    import torch

    from arctic_huggingface.adapters import merged_model

    trained("lora", r=4, target_modules=["q_proj"])
    export("kept", "adapter")
    folder = arctic_home / "adapter"

    class Trap:
        def __reduce__(self):
            return open, (str(arctic_home / "trap"), "w")

    torch.save({"x": Trap()}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"there is no adapter_model\.safetensors"):
        merged_model(folder)
    assert not (arctic_home / "trap").exists()


def test_text_is_generated_by_an_adapter_beside_its_base(trained, arctic_home):
    from arctic_huggingface.generate import command as generate

    trained("lora", r=4, target_modules=["q_proj"])
    arguments = ["exported", "eins", "--raw", "--max-new-tokens", "3"]
    result = CliRunner().invoke(generate, arguments, obj=SimpleNamespace(trust=False))
    assert result.exception is None, result.output
