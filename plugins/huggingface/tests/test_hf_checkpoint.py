"""Exported models: what plain transformers loads, and what is refused before it is written."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from arctic_huggingface.checkpoint import HFCheckpointEngine
from arctic_training.api import configure
from arctic_training.errors import CheckpointError
from arctic_training.state import TrainState
from arctic_training.trainer import Trainer


class Finished(SimpleNamespace):
    """What an export asks of a trainer."""

    units_of_loss = Trainer.units_of_loss


class Export:
    """An export of a model, with the tensors that an engine gives, perhaps changed on the way."""

    def __init__(self, run, tokenizer, directory):
        self.run, self.tokenizer, self.directory = run, tokenizer, directory
        run.last_evaluation, run.data_facts, run.tokenizer_sha256, run.fingerprint = {}, {}, "0" * 64, []

    def __call__(self, model, change=lambda name, tensor: tensor, rank=0, **keys):
        from arctic_training.distributed import World

        def full_parameters():
            for name, tensor in model.state_dict().items():
                tensor = change(name, tensor.detach().cpu())
                if tensor is not None:
                    self.given.append(name)
                    yield name, tensor

        self.given = []
        self.run.world = World(rank=rank, size=rank + 1)
        self.run.trainer = Finished(
            model_unwrapped=model,
            tokenizer=self.tokenizer,
            engine=SimpleNamespace(full_parameters=full_parameters),
            config=resolved(keys.pop("save_name", None)),
            state=TrainState(step=3, tokens=2_000, trained_tokens=1_000),
            run=self.run,
        )
        engine = HFCheckpointEngine(HFCheckpointEngine.config_class()(output_dir="out", **keys), self.run)
        engine.checkpoint_dir = self.directory
        engine.save(model)


def resolved(save_name):
    return configure(
        {
            "type": "tiny",
            "plugins": {"use": ["arctic_training.testing.tiny"]},
            "model": {"type": "huggingface", "name_or_path": "some-org/some-model", "save_name": save_name},
            "data": {"sources": [{"type": "tiny"}]},
            "skip_validation": True,
        }
    )


@pytest.fixture
def export(run, make_tokenizer, tmp_path):
    return Export(run, make_tokenizer(pad_token="<|pad|>"), tmp_path)


def tiny_llama(config, dtype="float32"):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def assert_loads_equal(path, model):
    import torch
    from transformers import AutoModelForCausalLM

    loaded, report = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.dtype == model.dtype
    ids = torch.arange(30)[None]
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_export_loads_with_all_weights_equal_logits_and_precision(export, tiny_config, tmp_path, dtype, tied):
    model = tiny_llama(tiny_config(tie_word_embeddings=tied), dtype)
    export(model)
    assert_loads_equal(tmp_path, model)


def test_large_models_are_written_in_shards(export, tiny_config, tmp_path):
    model = tiny_llama(tiny_config())
    export(model, max_shard_size=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards == sorted(set(index["weight_map"].values()))
    assert index["metadata"]["total_size"] == sum(4 * parameter.numel() for parameter in model.parameters())
    assert_loads_equal(tmp_path, model)


def test_master_weights_of_higher_precision_are_rounded_to_the_model_s(export, tiny_config, tmp_path):
    model = tiny_llama(tiny_config(), "bfloat16")
    export(model, lambda name, tensor: tensor.float())
    assert_loads_equal(tmp_path, model)


@pytest.mark.parametrize("architecture", ["GPT2Config", "Qwen3Config", "MixtralConfig", "Gemma3TextConfig"])
def test_other_architectures_are_exported_too(export, tmp_path, architecture):
    import transformers

    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    if architecture == "GPT2Config":
        sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4}
    if architecture == "MixtralConfig":
        sizes["num_local_experts"] = 4
    model = tiny_llama(getattr(transformers, architecture)(**sizes))
    export(model)
    assert_loads_equal(tmp_path, model)


def test_the_names_of_weights_are_those_that_transformers_writes(export, tmp_path):
    from safetensors.torch import load_file
    from transformers import MixtralConfig

    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = tiny_llama(MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4))
    export(model)
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_tokenizer_template_and_generation_settings_come_with_the_model(export, tiny_config, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    model = tiny_llama(tiny_config())
    model.generation_config = GenerationConfig(eos_token_id=0, temperature=0.7)  # contradictory: it does not sample
    export(model)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>hello<|end|>"
    assert (tmp_path / "chat_template.jinja").exists()
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.7


def test_settings_of_training_do_not_reach_the_export(make, export, model_dir, tmp_path):
    from arctic_huggingface.model import HFModelFactory

    factory = make(HFModelFactory, name_or_path=str(model_dir), dtype="fp32")
    model = factory.create_model(factory.create_config())
    export(model)
    written, original = (json.loads((path / "config.json").read_text()) for path in (tmp_path, model_dir))
    assert written == original


def test_the_save_name_stands_in_the_configuration(export, tiny_config, tmp_path):
    export(tiny_llama(tiny_config()), save_name="arctic-tiny")
    assert json.loads((tmp_path / "config.json").read_text())["_name_or_path"] == "arctic-tiny"


BROKEN = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor[:0], "is empty"),
        (lambda tensor: tensor.T, r"has the shape \[32, 64\], and the model's has the shape \[64, 32\]"),
        (
            lambda tensor: tensor.clone().index_put_((tensor.new_zeros(1).long(),), tensor.new_tensor(float("nan"))),
            "not finite",
        ),
        (lambda tensor: tensor / 0, "not finite"),
        (lambda tensor: None, "the engine gave no"),
    ],
)
def test_a_broken_tensor_is_refused_by_name_after_all_were_gathered(export, tiny_config, change, message):
    model = tiny_llama(tiny_config())
    with pytest.raises(CheckpointError, match=message) as caught:
        export(model, lambda name, tensor: change(tensor) if name == BROKEN else tensor)
    assert BROKEN in str(caught.value)
    assert set(model.state_dict()) - set(export.given) <= {BROKEN}


def test_a_full_disk_does_not_stop_the_gathering(export, tiny_config, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    model = tiny_llama(tiny_config())
    with pytest.raises(SafetensorError):
        export(model, max_shard_size=1)
    assert export.given == list(model.state_dict())


def test_other_ranks_gather_and_write_nothing(export, tiny_config, tmp_path):
    model = tiny_llama(tiny_config())
    export(model, lambda name, tensor: tensor[:0], rank=1)
    assert export.given == list(model.state_dict())
    assert list(tmp_path.iterdir()) == []


def test_training_cannot_go_on_from_an_export(run, tmp_path):
    engine = HFCheckpointEngine(HFCheckpointEngine.config_class()(output_dir="out"), run)
    engine.checkpoint_dir = tmp_path
    assert not engine.resumes
    with pytest.raises(CheckpointError, match="no optimizer state") as caught:
        engine.load(None)
    assert "model.name_or_path" in caught.value.remedy
