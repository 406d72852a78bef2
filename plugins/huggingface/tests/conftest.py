"""A tiny model, tokenizer and data, made here, so that no test needs a network; and a run that is just large enough."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = ["what does this function do", "it returns the sum of its arguments", "a list of words and their lengths"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def build_tokenizer(**special):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    marks = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=marks, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(WORDS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{"eos_token": "<|end|>", **special})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_config(**changes):
    from transformers import LlamaConfig

    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**{**sizes, **changes})


@pytest.fixture
def make_tokenizer():
    """Makes a byte-level tokenizer with a chat template; special tokens by name."""
    return build_tokenizer


@pytest.fixture
def tiny_config():
    """Makes the configuration of a tiny Llama; changes by name."""
    return build_config


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """Folder of a tiny Llama with weights and tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(build_config()).save_pretrained(path)
    build_tokenizer(pad_token="<|pad|>").save_pretrained(path)
    return path


class FakeRun(SimpleNamespace):
    """What components read of a run."""

    def say(self, text):
        self.said.append(text)

    warn = say


@pytest.fixture
def run():
    import torch

    from arctic_training.distributed import World

    said = []
    trainer = SimpleNamespace(tokenizer=None, training_horizon=100)
    config = SimpleNamespace(seed=42, recipe=None, trusted=False)
    return FakeRun(config=config, world=World(), device=torch.device("cpu"), trainer=trainer, said=said, remote_code={})


@pytest.fixture
def make(run):
    """Makes a component with the keys of its section."""

    def make(component, **keys):
        config = component.config_class()(**keys)
        if component.kind in ("model", "tokenizer", "data"):
            setattr(run.config, component.kind, config)
        return component(config, run)

    return make


@pytest.fixture
def write_lines(tmp_path):
    """Writes rows as JSON lines and gives the path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
