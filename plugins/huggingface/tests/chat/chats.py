"""Chats, and what an encoder makes of them: shared by the tests beside this file."""

from __future__ import annotations

from arctic_huggingface.chat.encoder import ChatEncoder
from arctic_training.errors import BadRow


def turns(*contents: str, system: str | None = None) -> list[dict]:
    opening = [] if system is None else [{"role": "system", "content": system}]
    return opening + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def encode(tokenizer, chat, **options):
    return encode_row(ChatEncoder(tokenizer, **options), {"messages": chat})


def encode_row(encoder, row, place="row 0"):
    """Ids and labels of the one row; what refuses it is raised."""
    encoded = encoder([row], [place])
    for refusal in encoded.refused:
        raise refusal
    return encoded.columns["input_ids"].tolist(), encoded.columns["labels"].tolist()


def trained_texts(tokenizer, chat, **options) -> list[str]:
    """What is trained of each row that a chat makes."""
    encoded = ChatEncoder(tokenizer, **options)([{"messages": chat}], ["row 0"])
    for refusal in encoded.refused:
        raise refusal
    ends = encoded.lengths.cumsum().tolist()
    labels = [encoded.columns["labels"][end - length : end] for end, length in zip(ends, encoded.lengths, strict=True)]
    return [tokenizer.decode([label for label in row.tolist() if label != -100]) for row in labels]


def trained_text(tokenizer, chat, **options) -> str:
    [text] = trained_texts(tokenizer, chat, **options)
    return text


def refusal(tokenizer, chat, **options) -> BadRow:
    encoded = ChatEncoder(tokenizer, **options)([{"messages": chat}], ["row 3"])
    assert not len(encoded.lengths)
    [refused] = encoded.refused
    return refused
