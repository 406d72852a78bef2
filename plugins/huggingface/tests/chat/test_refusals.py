"""Chats that cannot be trained on are refused with their row, the reason, and the word that they are counted under."""

from __future__ import annotations

import pytest
from chat_chats import encode, encode_row, refusal, trained_text, turns

from arctic_huggingface import faults
from arctic_huggingface.chat import refusals
from arctic_huggingface.chat.encoder import ChatEncoder
from arctic_training.errors import BadRow, DataError


@pytest.mark.parametrize(
    ("template", "message", "category"),
    [
        ("another opening", "the chat template's generation prompt is not how it begins message 1", "no mask"),
        ("chatml without a generation prompt", "the chat template writes '<|im_start|>assistant' before an", "no mask"),
        ("two beginnings", "the chat holds two <|begin|> tokens in a row", "two BOS"),
        ("only last generation", "the chat template has 1 generation blocks for 2 assistant messages", "no mask"),
        ("stripped blocks", "the chat template writes something else when its generation blocks", "no mask"),
        ("refusing", "the chat template refuses the chat: only tools here", "template refuses"),
        ("{{ messages[0].content }}", "the chat template does not write the content of message 1", "content lost"),
        ("{{ 1 // 0 }}", "the chat template refuses the chat: ", "template refuses"),
        ("{{ messages[0].content + 1 }}", "the chat template refuses the chat: ", "template refuses"),
    ],
)
def test_a_template_that_leaves_the_mask_open_is_refused_with_the_row(make_tokenizer, template, message, category):
    refused = refusal(make_tokenizer(template), turns("Hi", "Hello", "Hi", " Hello "))
    assert str(refused).startswith("row 3: " + message)
    assert refused.category == category


def test_two_beginnings_of_text_are_refused_wherever_they_stand(tokenizer, make_tokenizer):
    chat = turns("Hi", "Hello", "What is <|begin|><|begin|>?", "Two.")
    assert refusal(tokenizer, chat).category == "two BOS"
    trained_text(make_tokenizer("chatml", bos_token="<|im_end|>"), turns("Hi", "Hello", "<|im_end|>", "Hello"))
    rows = [{"messages": turns("<|begin|>Hi", "Hello<|begin|>")}] * 2
    assert not ChatEncoder(make_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}"))(rows, ["", ""]).refused


DROPPING = {
    "the last words": "m.content[:-1]",
    "all but the last line": "m.content.split('\n')[-1]",
    "line breaks": "m.content | replace('\n', ' ')",
    "capitals": "m.content | lower",
    "what follows a special token": "m.content.split('<|im_end|>')[0]",
    "everything": "''",
}


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("kept", DROPPING.values(), ids=DROPPING)
def test_a_template_that_changes_what_the_assistant_said_is_refused(make_tokenizer, kept, blocks):
    said = f"{{{{ {kept} if m.role == 'assistant' else m.content }}}}<|im_end|>"
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}BLOCK" + said + "END"
        "{% else %}" + said + "{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    for mark, tag in (("BLOCK", "{% generation %}"), ("END", "{% endgeneration %}")):
        template = template.replace(mark, tag if blocks else "")
    chat = turns("Say Hello.\nBye<|im_end|>Ok", "Hello.\nBye<|im_end|>Ok")
    for options in ({}, {"train_turns": "last"}, {"train_turns": "one_row_per_turn"}, {"mask_inputs": False}):
        refused = refusal(make_tokenizer(template), chat, **options)
        assert refused.message == "the chat template does not write the content of message 1 as it is"
        assert refused.category == "content lost"


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_a_template_that_drops_what_others_said_is_refused(make_tokenizer, role):
    tokenizer = make_tokenizer(
        make_tokenizer("chatml").chat_template.replace(
            "{{ m.content }}", f"{{% if m.role != '{role}' %}}{{{{ m.content }}}}{{% endif %}}"
        )
    )
    chat = [*turns("Why?", "Look.", system="Know."), {"role": "tool", "content": "It."}, *turns("", "Yes.")[1:]]
    assert refusal(tokenizer, chat).message.endswith(
        f"({role}) of message {['system', 'user', '', 'tool'].index(role)} as it is"
    )


@pytest.mark.parametrize(
    "given", [{"place": "Bergen"}, {"n": 3}, {"deep": [{"er": "x y"}]}, '{"place": "Bergen"}', None]
)
def test_a_template_that_drops_part_of_a_call_is_refused(make_tokenizer, given):
    template = make_tokenizer("chatml with calls").chat_template
    call = {"type": "function", "function": {"name": "look_up", "arguments": given}}
    chat = [*turns("Hi"), {"role": "assistant", "content": "Look.", "tool_calls": [call, call]}]
    assert trained_text(make_tokenizer(template), chat).count("look_up") == 2
    once = template.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
    nameless = template.replace("call.function |", "call.function.arguments |")
    bare = template.replace("call.function |", "call.function.name |")
    for dropping in [once, nameless] + [bare] * (given is not None):
        assert refusal(make_tokenizer(dropping), chat).category == "content lost"


def test_whole_chats_must_be_there_but_for_reasoning_before_the_last_answer(make_tokenizer):
    tokenizer = make_tokenizer("a thought dropped once more follows, as Qwen 3")
    chat = turns("Hi", "<think>a</think>Hello", "Hi", "<think>b</think>Bye")
    ids, labels = encode(tokenizer, chat, mask_inputs=False)
    assert labels[1:] == ids[1:]
    dropping = make_tokenizer("thoughts dropped, as DeepSeek")
    assert refusal(dropping, chat, mask_inputs=False).category == "content lost"


def test_half_a_character_is_refused_with_its_row(tokenizer):
    rows = [{"messages": turns("Hi", text)} for text in ("Hello", "\ud83d", "Bye")]
    encoded = ChatEncoder(tokenizer)(rows, ["row 0", "row 1", "row 2"])
    assert len(encoded.lengths) == 2
    assert [(refused.where, refused.category) for refused in encoded.refused] == [("row 1", "invalid text")]


def test_the_code_points_that_mark_blocks_are_refused(make_tokenizer):
    assert refusal(make_tokenizer("chatml blocks"), turns("\ufdd0", "Hello\ufdd1")).category == "invalid text"


CALL = {"function": {"name": "f", "arguments": {}}}
BAD_CHATS = {
    "an unknown role": ([{"role": "gpt", "content": "a"}], "message 0 has the role 'gpt'", "unknown role"),
    "no role": ([{"content": "a"}], "message 0 has the role None", "unknown role"),
    "no content": ([{"role": "user", "content": None}], "message 0 (user) has no content", "no content"),
    "content in parts": (
        [{"role": "user", "content": ["a"]}], "the content of message 0 (user) is a list", "wrong type"
    ),
    "an answer first": (
        [{"role": "assistant", "content": "a"}], "message 0 has the role assistant at the", "roles out of order"
    ),
    "two questions": (turns("a") + turns("b", "c"), "message 1 has the role user after user", "roles out of order"),
    "a late system prompt": (
        turns("a", "b") + turns("c", "d", system="e"), "message 2 has the role system after", "roles out of order"
    ),
    "a tool nobody called": (
        turns("a") + [{"role": "tool", "content": "b"}], "message 1 has the role tool after user", "roles out of order"
    ),
    "no answer": (turns("a"), "the chat has no assistant message", "nothing to train on"),
    "no messages": ([], "the chat has no messages", "empty chat"),
    "nothing": (None, "messages is a NoneType", "wrong type"),
    "text": ("user: hi", "messages is a str", "wrong type"),
    "lists": ([["user", "hi"]], "message 0 is a list", "wrong type"),
    "a role in a list": ([{"role": ["user"], "content": "a"}], "message 0 has the role ['user']", "unknown role"),
    "a number for reasoning": (
        [*turns("a"), {"role": "assistant", "content": "b", "reasoning": 1}], "the reasoning of message 1", "wrong type"
    ),
    "two reasonings": (
        [*turns("a"), {"role": "assistant", "content": "b", "reasoning": "c", "thinking": "d"}],
        "message 1 (assistant) holds reasoning twice", "wrong type",
    ),
    "train as text": (
        [*turns("a"), {"role": "assistant", "content": "b", "train": "false"}],
        "the train of message 1 (assistant) is a str, not true or false", "wrong type",
    ),
    "train on a question": (
        [{"role": "user", "content": "a", "train": True}, *turns("", "b")[1:]],
        "message 0 (user) has the key train", "wrong type",
    ),
    "a call of text": (
        [*turns("a"), {"role": "assistant", "tool_calls": "f()"}], "the tool_calls of message 1", "wrong type"
    ),
    "a call without a name": (
        [*turns("a"), {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}],
        "the tool_calls of message 1", "wrong type",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("chat", "message", "category"), BAD_CHATS.values(), ids=BAD_CHATS)
def test_a_chat_without_meaning_is_refused_with_the_row(tokenizer, chat, message, category):
    refused = refusal(tokenizer, chat)
    assert str(refused).startswith("row 3: " + message)
    assert refused.category == category


@pytest.mark.parametrize("tools", ["look_up", ["look_up"], {"name": "look_up"}])
def test_tools_that_are_no_list_of_mappings_are_refused(make_tokenizer, tools):
    with pytest.raises(BadRow, match=r"row 0: tools is a (str|list|dict), not a list of mappings") as caught:
        encode_row(ChatEncoder(make_tokenizer("chatml with calls")), {"messages": turns("a", "b"), "tools": tools})
    assert caught.value.category == "wrong type"


def test_every_refusal_is_counted_under_a_word_of_the_list():
    words, shared = ({value for name, value in vars(of).items() if name.isupper()} for of in (refusals, faults))
    assert {category for *_, category in BAD_CHATS.values()} <= words | shared
    assert not words & shared


def test_messages_with_tool_results_stand_between_answers(tokenizer):
    chat = [*turns("Weather?", "call"), {"role": "tool", "content": "sun"}, {"role": "assistant", "content": "Sunny."}]
    assert trained_text(tokenizer, chat) == "call<|im_end|>Sunny.<|im_end|>"


def test_keys_without_a_value_are_as_good_as_absent(tokenizer):
    empty = {"tool_calls": None, "reasoning_content": None, "train": None}
    chat = [{**message, **empty} for message in turns("Hi", "Hello")]
    assert encode(tokenizer, chat) == encode(tokenizer, turns("Hi", "Hello"))


def test_an_answer_of_which_the_template_writes_nothing_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert refusal(tokenizer, turns("Hi", "")).message == "the chat has no token to train on"


def test_a_tokenizer_without_template_is_refused(make_tokenizer):
    with pytest.raises(DataError, match="no chat template") as caught:
        ChatEncoder(make_tokenizer(None))
    assert "tokenizer.chat_template" in caught.value.remedy


def test_a_tokenizer_without_offsets_is_refused_unless_everything_is_trained(tokenizer):
    class WithoutOffsets:
        is_fast = False

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, *arguments, return_offsets_mapping=False, **options):
            assert not return_offsets_mapping
            return tokenizer(*arguments, **options)

    slow = WithoutOffsets()
    with pytest.raises(DataError, match="WithoutOffsets cannot tell which text a token stands for"):
        ChatEncoder(slow)
    ids, labels = encode(slow, turns("Hi", "Hello"), mask_inputs=False)
    assert labels[1:] == ids[1:]
