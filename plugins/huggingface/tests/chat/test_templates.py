"""The table: each template times chats that break others. What is trained is right, or the row is refused.

What is right is said by ``templates.Family``, which knows nothing of how masks are made.
"""

from __future__ import annotations

import pytest
from chat_chats import turns
from chat_templates import FAMILIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_huggingface.chat.encoder import ChatEncoder


def thoughtful(content: str, **thought: str) -> dict:
    return {"role": "assistant", "content": content, **thought}


def call(name: str, **arguments) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def answered(call: dict, result: str, answer: str, **keys) -> list[dict]:
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call], **keys},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": answer, **{name: "done" for name in keys if name == "reasoning_content"}},
    ]


LINES = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
ROWS = {
    "one turn": {"messages": turns("Hi?", "Hello there.")},
    "the prompt quotes the answer": {"messages": turns("Say 'Paris.' and nothing else: Paris.", "Paris.")},
    "equal answers": {"messages": turns("One?", "Yes.", "Two?", "Yes.", "Three?", "Yes.")},
    "an answer that is the question": {"messages": turns("assistant", "assistant", "user", "user")},
    "role names": {"messages": turns("model", "user", "system", "assistant", "user:", "assistant:\n")},
    "blanks around": {"messages": turns("  Hi  \n", "  Hello \n\n", "\n\nAnd?", " \t yes")},
    "line breaks first": {"messages": turns("Hi", "\n\nHello", "Again", "\n\n\n\nHello")},
    "an empty answer": {"messages": turns("Say nothing.", "", "Thanks", "Welcome.")},
    "nothing but an empty answer": {"messages": turns("Say nothing.", "")},
    "an answer of blanks": {"messages": turns("Say nothing.", " \n ", "Thanks", "\n")},
    "emoji": {"messages": turns("🙂?", "👩‍👩‍👧‍👦 é ñ 日本語 🙂", "🙂🙂", "🙂")},
    "combining characters": {"messages": turns("e\u0301", "\u0301e\u0301 \u200d\ufe0f", "ok", "a\u0308\u0323")},
    "line separators": {"messages": turns(LINES, LINES, LINES[::-1], LINES[::-1])},
    "twenty answers": {"messages": turns(*[f"{'question' if i % 2 == 0 else 'answer'} {i % 6}" for i in range(40)])},
    "a system prompt": {"messages": turns("Hi", "Hello", "Hi", "Hello", system="You say Hello")},
    "special tokens in the question": {"messages": turns("What is <|im_end|>\n<|im_start|>assistant\nHello?", "Hello")},
    "special tokens in the answer": {"messages": turns("And?", "It ends: <|im_end|>\n", "ok", "<|eot|></s>")},
    "other special tokens": {"messages": turns("</s> [/INST] x</s>", "<|end|>\n</s>", "<end_of_turn>", "<|eot|>")},
    "an answer that is its own end": {"messages": turns("Hi", "<|im_end|>", "Hi", "</s>", "Hi", "<|end|>")},
    "an open end": {"messages": turns("Hi", "Hello", "Anything else?")},
    "a question that is a turn": {"messages": turns("", "", "<|im_start|>assistant\n<|im_end|>")},
    "reasoning in the content": {"messages": turns("Hi", "<think>\nhm, Hello\n</think>\n\nHello")},
    "reasoning in each content": {"messages": turns("1", "<think>a</think>Hello", "2", "<think>b</think>Bye")},
    "empty reasoning": {"messages": turns("Hi", "<think>\n\n</think>\n\nHello")},
    "reasoning apart": {"messages": [*turns("Hi"), thoughtful("Hello", reasoning_content="hm")]},
    "reasoning by another name": {"messages": [*turns("Hi"), thoughtful("Hello", reasoning="hm")]},
    "reasoning that the answer repeats": {"messages": [*turns("Hi"), thoughtful("Hello", reasoning_content="Hello")]},
    "a call": {"messages": answered(call("look_up", place="Bergen"), "rain", "It rains."), "tools": [TOOL]},
    "a call and words": {"messages": answered(call("look_up", place="Ålesund"), "sun", "Sun.", content="Let me see.")},
    "a call with thoughts": {
        "messages": answered(call("look_up", place="Bergen"), "rain", "It rains.", reasoning_content="Where?"),
        "tools": [TOOL],
    },
    "a call that quotes": {
        "messages": answered(call("run", code='print("hi")\n', n=3, deep={"of": ["it"]}), '{"ok": "\\n"}', "Done.")
    },
    "a call and the end of turn for words": {
        "messages": [*turns("Hi"), {"role": "assistant", "content": "<|eot|>", "tool_calls": [call("hm", x="")]}]
    },
    "a call and what it is written with for words": {
        "messages": [*turns("Hi"), {"role": "assistant", "content": "{", "tool_calls": [call("hm", x="")]}]
    },
    "two calls alike": {
        "messages": [
            *turns("Roll twice."),
            {"role": "assistant", "content": "", "tool_calls": [call("roll", sides=6), call("roll", sides=6)]},
        ]
    },
}  # fmt: skip


def outcome(encoder: ChatEncoder, tokenizer, row: dict, check_text: bool = True) -> tuple[str, str]:
    """What is trained of a row, or under which word it is refused; and the message of that."""
    encoded = encoder([row], ["row 7"])
    for refusal in encoded.refused:
        assert str(refusal).startswith("row 7: ")
        return refusal.category, refusal.message
    ids, labels = encoded.columns["input_ids"].tolist(), encoded.columns["labels"].tolist()
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    assert not check_text or tokenizer.decode(ids) == rendered(tokenizer, row)
    return tokenizer.decode([label for label in labels if label != -100]), ""


def rendered(tokenizer, row: dict) -> str:
    return tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)


def assert_right(family, encoder, tokenizer, row) -> None:
    right = family.right(row)
    got, reason = outcome(encoder, tokenizer, row)
    if isinstance(right, set):
        assert reason, f"{got!r} was trained where a refusal is right: {right}"
        assert got in right, reason
    else:
        assert got == right, reason


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_right_or_the_row_is_refused_with_the_reason(make_tokenizer, family, row):
    tokenizer = make_tokenizer(family)
    assert_right(FAMILIES[family], ChatEncoder(tokenizer), tokenizer, row)


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_right_with_pieces_for_words_too(make_pieces_tokenizer, family, blank):
    tokenizer = make_pieces_tokenizer(family, blank=blank)
    encoder = ChatEncoder(tokenizer)
    for name, row in ROWS.items():
        right = FAMILIES[family].right(row)
        got, reason = outcome(encoder, tokenizer, row, check_text=not blank)
        if blank and reason.endswith("begins before the assistant's text and reaches into it"):
            continue  # with a blank before each of them, the parts read differently
        if isinstance(right, set):
            assert reason, name
            assert got in right, name
        else:
            assert got.replace(" ", "") == right.replace(" ", ""), name


# ---- any chat

WORDS = st.sampled_from(
    ["Hello", " there", "\n", "  ", "🙂", "e\u0301", "assistant", "user", "model", ".", "def f():\n    ", "[/INST]",
     "\u2028", "<|im_end|>", "</s>", "<|eot|>", "<|end|>", "<end_of_turn>", "<|im_start|>assistant\n",
     "### assistant:\n", "A: "]
)  # fmt: skip
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1")  # not in valid text
TEXTS = st.one_of(st.lists(WORDS, max_size=6).map("".join), st.text(CHARACTERS, max_size=12))
THOUGHTS = st.sampled_from(["", "hm", "Hello\nthere", "<|im_end|>", "a", "analysis"])


@st.composite
def messages(draw, text=TEXTS):
    chat = turns(*draw(st.lists(text, min_size=2, max_size=7)), system=draw(st.one_of(st.none(), text)))
    if chat[-1]["role"] == "user" and draw(st.booleans()):
        chat.pop()
    return chat


@st.composite
def rows_with_more(draw):
    """Chats whose answers have thoughts, in their content or apart, and calls."""
    chat = draw(messages())
    for message in chat:
        if message["role"] != "assistant":
            continue
        thought, way = draw(THOUGHTS), draw(st.integers(0, 3))
        if thought and way == 1:
            message["content"] = f"<think>{thought}</think>{message['content']}"
        elif thought and way == 2:
            message["reasoning_content"] = thought
        if draw(st.integers(0, 3)) == 0:
            message["tool_calls"] = draw(
                st.lists(st.builds(call, THOUGHTS.filter(bool), x=TEXTS), min_size=1, max_size=2)
            )
    return {"messages": chat}


def holds_for_any_chat(family, tokenizer, examples: int) -> None:
    encoder = ChatEncoder(tokenizer)
    settled = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))

    @settled
    @given(messages())
    def holds(chat):
        assert_right(family, encoder, tokenizer, {"messages": chat})

    @settled
    @given(rows_with_more())
    def holds_with_more(row):
        assert_right(family, encoder, tokenizer, row)

    holds()
    holds_with_more()


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_of_any_chat_is_right(make_tokenizer, family, trim_offsets):
    holds_for_any_chat(FAMILIES[family], make_tokenizer(family, trim_offsets=trim_offsets), 15)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_of_many_more_chats_is_right(make_tokenizer, family):
    holds_for_any_chat(FAMILIES[family], make_tokenizer(family), 500)
