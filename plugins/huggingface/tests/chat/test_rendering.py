"""Chats are written as the tokenizer would write them, in whichever way."""

from __future__ import annotations

import pytest
from chat_chats import encode, encode_row, turns
from chat_templates import FAMILIES

from arctic_huggingface.chat.encoder import ChatEncoder
from arctic_huggingface.chat.rendering import ChatTemplate
from arctic_training.errors import BadRow


@pytest.mark.parametrize("family", FAMILIES)
def test_chats_are_written_as_transformers_writes_them(make_tokenizer, family):
    tokenizer = make_tokenizer(family)
    template = ChatTemplate(tokenizer, tokenizer.chat_template)
    for chat in (turns("Hi", "Hello"), turns(" a", "b ", "c", "d"), turns("e\n", "\nf", "🙂")):
        for messages, prompt in ((chat, False), (chat[:1], True), (chat[:2], True)):
            theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert template.text(messages, plain=True, prompt=prompt) == theirs


def absent(source, special_tokens):
    raise ImportError("no function of this name")


def different(source, special_tokens):
    return lambda messages, prompt: "something else"


@pytest.mark.parametrize("compiled", [absent, different])
def test_chats_are_written_the_same_where_the_template_cannot_be_used_by_itself(tokenizer, monkeypatch, compiled):
    chat = turns("Hi", "Hello", "Hi", "Bye")
    before = encode(tokenizer, chat)
    monkeypatch.setattr("arctic_huggingface.chat.rendering._compiled", compiled)
    assert encode(tokenizer, chat) == before


def test_a_tokenizer_that_writes_chats_in_its_own_way_is_asked(tokenizer, monkeypatch):
    theirs = type(tokenizer).apply_chat_template

    def apply_chat_template(self, messages, **options):
        return "Listen. " + theirs(self, messages, **options)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", apply_chat_template)
    ids, _ = encode(tokenizer, turns("Hi", "Hello"))
    assert tokenizer.decode(ids).startswith("Listen. <|im_start|>user")


def test_tools_reach_the_template(make_tokenizer):
    tokenizer = make_tokenizer("chatml with calls")
    chat = {"messages": turns("Hi", "Hello"), "tools": [{"name": "look_up"}]}
    ids, labels = encode_row(ChatEncoder(tokenizer), chat)
    assert tokenizer.decode(ids).startswith('<|im_start|>system\n{"name": "look_up"}<|im_end|>')
    assert tokenizer.decode([label for label in labels if label != -100]) == "Hello<|im_end|>"


def test_tools_that_the_template_does_not_write_are_an_error(tokenizer):
    with pytest.raises(BadRow, match="row 0: the row has tools, and the chat template does not write that") as caught:
        encode_row(ChatEncoder(tokenizer), {"messages": turns("Hi", "Hello"), "tools": [{"name": "look_up"}]})
    assert caught.value.category == "content lost"


def test_a_chat_with_tools_is_written_by_the_template_for_them(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    for_tools = FAMILIES["chatml with calls"].template
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": for_tools}
    encoder = ChatEncoder(tokenizer)
    with_tools, _ = encode_row(encoder, {"messages": turns("Hi", "Hello"), "tools": [{"name": "look_up"}]})
    without, _ = encode_row(encoder, {"messages": turns("Hi", "Hello")})
    assert "look_up" in tokenizer.decode(with_tools)
    assert tokenizer.decode(without).startswith("<|im_start|>user")
