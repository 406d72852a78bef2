"""A BERT small enough for tests, and rows of texts that belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = ("river", "sea", "snow", "town", "bread", "light", "stone", "garden", "winter", "road", "song", "glass")


def make_tiny_bert(path: Path, *, dropout: float = 0.0) -> Path:
    """Write a BERT with random weights and a byte tokenizer into ``path``, which puts [CLS] and [SEP] around a text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["[PAD]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=64
    )
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=0,
    )
    state = torch.get_rng_state()
    torch.manual_seed(0)
    BertModel(config).save_pretrained(path)
    torch.set_rng_state(state)
    fast.save_pretrained(path)
    return path


def rows_of_texts(count: int = 24) -> list[dict]:
    """Rows with none to two negatives, all texts different."""
    rows = []
    for number in range(count):
        word, other = WORDS[number % 12], WORDS[(number * 5 + number // 12 + 1) % 12]
        negatives = [f"no {other} at {number}.{each}" for each in range(number % 3)]
        rows.append({"query": f"{word} {number}?", "positive": f"the {word} of {other}", "negatives": negatives})
    return rows


@pytest.fixture(autouse=True)
def only_what_this_plugin_needs(monkeypatch):
    """Whatever else is installed has no say here."""
    monkeypatch.setenv("ARCTIC_PLUGINS", "huggingface,embed")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder with a BERT without dropout."""
    return make_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def dropping_bert(tmp_path_factory):
    """A folder with a BERT that drops a fifth of its units."""
    return make_tiny_bert(tmp_path_factory.mktemp("dropping-bert"), dropout=0.2)


@pytest.fixture
def write_pairs(tmp_path):
    """Writes rows as JSONL."""

    def write(rows: list[dict], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def embed_recipe(tiny_bert, write_pairs):
    """Training of a tiny encoder on a few rows with the torch engine."""
    return {
        "type": "embed",
        "model": {"name_or_path": str(tiny_bert), "dtype": "fp32"},
        "data": {"sources": [str(write_pairs(rows_of_texts()))], "dl_num_workers": 0, "num_proc": 1, "max_length": 32},
        "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 4,
        "train_log_iter_interval": 0,
    }
