"""Writes the quickstart's tokenizer: byte-level BPE trained on its chats, with a chat template that marks the answers.

    python examples/quickstart/make_tokenizer.py

The files in model/ are the result of one run and are committed. The
model's config.json and generation_config.json beside them are written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
VOCABULARY_SIZE = 4096
PAD, TURN_START, TURN_END = SPECIAL_TOKENS = ("<|pad|>", "<|turn_start|>", "<|turn_end|>")

# The answer and the token that ends it stand between the generation tags: they are what training is about.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|turn_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] + '<|turn_end|>' }}
{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|turn_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|turn_start|>assistant\\n' }}
{%- endif %}
"""


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    model_dir = HERE / "model"
    tokenizer.save(str(model_dir / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": TURN_END,
        "additional_special_tokens": [TURN_START],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (model_dir / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (model_dir / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} words")


def texts() -> Iterator[str]:
    """What the tokenizer is trained on: the roles, which every chat repeats, and each message."""
    for line in (HERE / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            yield message["role"] + "\n"
            yield message["content"]


if __name__ == "__main__":
    main()
