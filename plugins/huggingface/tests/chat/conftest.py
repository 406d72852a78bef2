"""A small byte-level tokenizer with any template of the table, all made here, so that tests need no network."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "Write a function that adds two numbers.\n\ndef add(a, b):\n    return a + b\n",
    "user assistant system tool\n\n\n  Hello there, how are you today?  I am fine, thank you.",
    "First think, then answer: <think>\n\n</think>\n\n42.",
]
SPECIAL_TOKENS = [
    "<|pad|>", "<|begin|>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|end_header|>", "<|eot|>", "</s>",
    "<|user|>", "<|assistant|>", "<|end|>", "<start_of_turn>", "<end_of_turn>",
    "<|start|>", "<|channel|>", "<|message|>", "<|return|>",
]  # fmt: skip


def _shared(name: str):
    """A file beside this one, which test modules then import by the name ``chat_<file>``."""
    spec = importlib.util.spec_from_file_location(f"chat_{name}", Path(__file__).parent / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_shared("chats")
templates = _shared("templates")
TEMPLATES = {
    **{name: family.template for name, family in templates.FAMILIES.items()},
    "another opening": templates.chatml().replace("assistant\n{% endif", "assistant\n<think>{% endif"),
    "only last generation": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    ),
    "stripped blocks": (
        "{% for m in messages %}{% set body %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endset %}"
        "<|im_start|>{{ m.role }}\n{{ body | trim }}<|im_end|>\n{% endfor %}"
    ),
    "blocks within an assignment": (
        "{% for m in messages %}{% set body %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endset %}{{ body }}{% endfor %}"
    ),
    "refusing": "{{ raise_exception('only tools here') }}",
}


@pytest.fixture(scope="session")
def make_tokenizer():
    """From the name of a template to a tokenizer that has it; ``trim_offsets`` as some published tokenizers have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=429,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES * 3, trainer)

    def make(template: str | None, *, trim_offsets: bool = False, **options):
        copy = Tokenizer.from_str(bpe.to_str())
        copy.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=copy,
            **{"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"} | options,
            additional_special_tokens=SPECIAL_TOKENS,
        )
        tokenizer.chat_template = TEMPLATES.get(template, template) if template else None
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_pieces_tokenizer():
    """Like ``make_tokenizer``, with words in the manner of SentencePiece: blanks are letters, and one may stand before
    each text (``blank``), what is not in the vocabulary is spelled in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE(byte_fallback=True))
    pieces.normalizer = normalizers.Replace(" ", "▁")
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=letters + SPECIAL_TOKENS, show_progress=False)
    pieces.train_from_iterator(SENTENCES * 3, trainer)
    described = json.loads(pieces.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in SPECIAL_TOKENS]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]

    def make(template: str, *, blank: bool):
        copy = Tokenizer.from_str(json.dumps(described))
        if blank:
            copy.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), copy.normalizer])
        copy.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * blank)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=copy,
            bos_token="<|begin|>",
            eos_token="<|im_end|>",
            additional_special_tokens=SPECIAL_TOKENS,
        )
        tokenizer.chat_template = TEMPLATES[template]
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    """The tokenizer with a ChatML template."""
    return make_tokenizer("chatml")
