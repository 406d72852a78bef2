"""A small byte-level tokenizer with a ChatML template, made here, and a data factory in a run of nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def make_tokenizer():
    """Makes a tokenizer from a template; further arguments are its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["user assistant: hello there, how are you?"], trainer)

    def make(template=CHATML, **options):
        marks = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"} | options
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **marks)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def make_factory(tokenizer):
    """A data factory with these keys of its section, in a run of nothing but a tokenizer."""
    from arctic_sft import SFTDataConfig, SFTDataFactory
    from arctic_training.config import annotate

    def make(tokenizer=tokenizer, model_max_length=None, **keys):
        config = SFTDataConfig(sources=[], **{"num_proc": 1, **keys})
        annotate(config, given=frozenset(keys))
        run = SimpleNamespace(
            config=SimpleNamespace(tokenizer=SimpleNamespace(tokenize_kwargs={})),
            trainer=SimpleNamespace(tokenizer=tokenizer),
            model_max_length=model_max_length,
        )
        return SFTDataFactory(config, run)

    return make
