"""A small byte-level tokenizer and chat templates of several families, all made here, so that tests need no network."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "Write a function that adds two numbers.\n\ndef add(a, b):\n    return a + b\n",
    "user assistant system tool\n\n\n  Hello there, how are you today?  I am fine, thank you.",
    "First think, then answer: <think>\n\n</think>\n\n42.",
]
SPECIAL_TOKENS = [
    "<|pad|>", "<|begin|>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|end_header|>", "<|eot|>", "</s>",
]  # fmt: skip

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_FORGETFUL = (
    "{% for m in messages %}{% set c = m.content %}"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] | trim %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": _CHATML.replace("CONTENT", "m.content"),
    "chatml that strips": _CHATML.replace("CONTENT", "m.content | trim"),
    "chatml with a default system prompt": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        + _CHATML.replace("CONTENT", "m.content")
    ),
    "chatml with generation blocks": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "generation blocks with the line break": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{%- generation -%}{{ m.content + '<|im_end|>\n' }}{%- endgeneration -%}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    ),
    "headers": (
        "{{ bos_token }}{% for m in messages %}<|header|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot|>"
        "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
    ),
    "brackets": (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
        "{% else %}{{ bos_token }}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]{% endif %}{% endfor %}"
    ),
    "plain": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    ),
    "forgetful": _FORGETFUL,
    "forgetful with generation blocks": _FORGETFUL.replace(
        "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}",
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ c }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ c }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}",
    ),
    "another opening": _CHATML.replace("CONTENT", "m.content").replace(
        "assistant\n{% endif", "assistant\n<think>{% endif"
    ),
    "two beginnings": "{{ bos_token }}{{ bos_token }}" + _CHATML.replace("CONTENT", "m.content"),
    "only last generation": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    ),
    "blocks within an assignment": (
        "{% for m in messages %}{% set body %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endset %}{{ body }}{% endfor %}"
    ),
    "stripped blocks": (
        "{% for m in messages %}{% set body %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endset %}"
        "<|im_start|>{{ m.role }}\n{{ body | trim }}<|im_end|>\n{% endfor %}"
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
        vocab_size=420,
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
def tokenizer(make_tokenizer):
    """The tokenizer with a ChatML template."""
    return make_tokenizer("chatml")


@pytest.fixture
def make_factory(tokenizer):
    """A data factory with these keys of its section, in a run of nothing but a tokenizer."""
    from arctic_sft import SFTDataConfig, SFTDataFactory

    def make(tokenizer=tokenizer, model_max_length=None, **keys):
        run = SimpleNamespace(trainer=SimpleNamespace(tokenizer=tokenizer), model_max_length=model_max_length)
        return SFTDataFactory(SFTDataConfig(sources=[], **{"num_proc": 1, **keys}), run)

    return make
