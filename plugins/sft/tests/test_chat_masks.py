"""Masks: what the assistant says is trained, for every template whose structure tells it; nothing is guessed."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_sft.chat import ChatEncoder
from arctic_training.errors import DataError

EMPTY_THINK = "<think>\n\n</think>\n\n"

# template -> what it writes for an assistant's content, as far as it is trained
ANSWERS = {
    "chatml": lambda content: content + "<|im_end|>",
    "chatml that strips": lambda content: content.strip() + "<|im_end|>",
    "chatml with a default system prompt": lambda content: content + "<|im_end|>",
    "chatml with generation blocks": lambda content: content + "<|im_end|>",
    "generation blocks with the line break": lambda content: content + "<|im_end|>",
    "blocks within an assignment": lambda content: content + "<|im_end|>",
    "headers": lambda content: content.strip() + "<|eot|>",
    "brackets": lambda content: " " + content + "</s>",
    "plain": lambda content: content + "\n\n",
}


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    opening = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return opening + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def encode(tokenizer, chat, **options):
    return encode_row(ChatEncoder(tokenizer, **options), {"messages": chat})


def encode_row(encoder, row, place="row 0"):
    """Ids and labels of the one row; what refuses it is raised."""
    encoded = encoder([row], [place])
    for refusal in encoded.refused:
        raise refusal
    return encoded.columns["input_ids"].tolist(), encoded.columns["labels"].tolist()


def trained_text(tokenizer, chat, **options) -> str:
    return tokenizer.decode([label for label in encode(tokenizer, chat, **options)[1] if label != -100])


def answers(template: str, chat) -> str:
    return "".join(ANSWERS[template](m["content"]) for m in chat if m["role"] == "assistant")


CHATS = {
    "one turn": turns("Hi?", "Hello there."),
    "the prompt quotes the answer": turns("Say 'Paris.' and nothing else: Paris.", "Paris."),
    "equal answers": turns("One?", "Yes.", "Two?", "Yes.", "Three?", "Yes."),
    "the answer repeats the prompt": turns("assistant", "assistant", "user", "user"),
    "blanks around": turns("  Hi  \n", "  Hello \n\n", "\n\nAnd?", " \t yes"),
    "line breaks first": turns("Hi", "\n\nHello", "Again", "\n\n\n\nHello"),
    "an empty answer": turns("Say nothing.", "", "Thanks", "Welcome."),
    "emoji": turns("🙂?", "👩‍👩‍👧‍👦 é ñ 日本語 🙂", "🙂🙂", "🙂"),
    "many turns": turns(*[f"{'question' if i % 2 == 0 else 'answer'} {i % 6}" for i in range(24)]),
    "a system prompt": turns("Hi", "Hello", "Hi", "Hello", system="You say Hello"),
    "markers in the text": turns(
        "What is <|im_end|>\n<|im_start|>assistant\nHello?", "It ends: <|im_end|>\n", "ok", "Hello"
    ),
    "an open end": turns("Hi", "Hello", "Anything else?"),
}


@pytest.mark.parametrize("template", ANSWERS)
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_exactly_the_answers_are_trained(make_tokenizer, template, chat):
    if template == "plain" and "<|im_end|>" in str(chat):
        pytest.skip("without an end-of-turn token, one in the text is taken for it")
    tokenizer = make_tokenizer(template)
    assert trained_text(tokenizer, chat) == answers(template, chat)


@st.composite
def chats(draw):
    word = st.sampled_from(
        ["Hello", " there", "\n", "  ", "🙂", "é", "assistant", "<think>\n\n</think>\n\n", ".", "def f():\n    "]
    )
    content = st.one_of(st.lists(word, max_size=6).map("".join), st.text(max_size=12))
    contents = draw(st.lists(content, min_size=2, max_size=9))
    return turns(*contents, system=draw(st.one_of(st.none(), content)))


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("template", ANSWERS)
def test_exactly_the_answers_are_trained_in_any_chat(make_tokenizer, template, trim_offsets):
    tokenizer = make_tokenizer(template, trim_offsets=trim_offsets)
    encoder = ChatEncoder(tokenizer)

    @settings(max_examples=60, deadline=None)
    @given(chats())
    def holds(chat):
        ids, labels = encode_row(encoder, {"messages": chat})
        assert tokenizer.decode([label for label in labels if label != -100]) == answers(template, chat)
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(chat, tokenize=False)
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))

    holds()


def test_ids_are_those_of_the_whole_text_when_no_token_reaches_into_an_answer(tokenizer):
    chat = CHATS["equal answers"]
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert encode(tokenizer, chat)[0] == whole


def test_an_answer_is_tokenised_from_its_start_as_in_generation(tokenizer):
    chat = turns("Hi", "\n\n\nHello")
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=True, return_dict=True, add_generation_prompt=True)[
        "input_ids"
    ]
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert whole[: len(prompt)] != prompt, "this chat must be one whose line breaks merge"
    ids, labels = encode(tokenizer, chat)
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [-100] * len(prompt)


def test_generation_blocks_mean_what_they_mean_to_transformers(make_tokenizer):
    tokenizer = make_tokenizer("chatml with generation blocks")
    chat = CHATS["equal answers"]
    theirs = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    ids, labels = encode(tokenizer, chat)
    assert ids == theirs["input_ids"]
    assert [int(label != -100) for label in labels] == theirs["assistant_masks"]


def test_a_line_break_after_the_end_of_turn_is_not_trained(tokenizer):
    ids, labels = encode(tokenizer, turns("Hi", "Hello", "Hi", "Hello"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ends = [i for i, token in enumerate(ids) if token == end]
    assert [labels[i] for i in ends] == [-100, end, -100, end]
    assert all(labels[i + 1] == -100 for i in ends)


def test_a_token_that_cannot_be_parted_at_the_start_of_an_answer_is_an_error():
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate("▁Q:abc")}
    bpe = Tokenizer(models.BPE(vocab={**letters, ":a": len(letters)}, merges=[(":", "a")]))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="row 0: the token ':a' begins before the assistant's text"):
        encode(tokenizer, turns("Q:", "abc"))


def test_the_first_token_of_a_chat_has_no_label_though_everything_is_trained(tokenizer):
    ids, labels = encode(tokenizer, turns("Hi", "Hello"), mask_inputs=False)
    assert labels[0] == -100
    assert labels[1:] == ids[1:]


def test_an_empty_think_block_at_the_start_of_an_answer_can_be_left_out(tokenizer):
    chat = turns("Hi", EMPTY_THINK + "Hello", "What is " + EMPTY_THINK, "It is " + EMPTY_THINK + "!")
    assert trained_text(tokenizer, chat).startswith(EMPTY_THINK)
    without = trained_text(tokenizer, chat, ignore_empty_think=True)
    assert without == f"Hello<|im_end|>It is {EMPTY_THINK}!<|im_end|>"


def test_an_empty_think_block_can_be_left_out_of_whole_chats_too(tokenizer):
    chat = turns("Hi", EMPTY_THINK + "Hello")
    ids, labels = encode(tokenizer, chat, mask_inputs=False, ignore_empty_think=True)
    left_out = tokenizer.decode([token for token, label in zip(ids[1:], labels[1:], strict=True) if label == -100])
    assert left_out == EMPTY_THINK


def test_reasoning_that_holds_something_is_trained(tokenizer):
    chat = turns("Hi", "<think>\nhm\n</think>\n\nHello")
    assert trained_text(tokenizer, chat, ignore_empty_think=True) == "<think>\nhm\n</think>\n\nHello<|im_end|>"


def test_a_template_that_rewrites_history_is_refused_with_the_row(make_tokenizer):
    encoder = ChatEncoder(make_tokenizer("forgetful"))
    plain, reasoned = turns("Hi", "Hello", "Hi", "Hello"), turns("Hi", "<think>a</think>Hello", "Hi", "Hello")
    encoded = encoder([{"messages": plain}, {"messages": reasoned}], ["row 40", "row 41"])
    assert len(encoded.lengths) == 1
    [refusal] = encoded.refused
    assert str(refusal).startswith("row 41: the chat template writes the chat up to message 1 differently")
    assert "generation" in refusal.remedy


def test_a_template_that_rewrites_history_is_used_when_it_marks_what_is_generated(make_tokenizer):
    chat = turns("Hi", "<think>a</think>Hello", "Hi", "<think>b</think>Bye")
    text = trained_text(make_tokenizer("forgetful with generation blocks"), chat)
    assert text == "Hello<|im_end|><think>b</think>Bye<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("another opening", "the chat template's generation prompt is not how it begins message 1"),
        ("two beginnings", "the chat begins with two <|begin|> tokens"),
        ("only last generation", "the chat template has 1 generation blocks for 2 assistant messages"),
        ("stripped blocks", "the chat template writes something else when its generation blocks are marked"),
        ("refusing", "the chat template refuses the chat: only tools here"),
    ],
)
def test_a_template_that_leaves_the_mask_open_is_refused_with_the_row(make_tokenizer, template, message):
    with pytest.raises(DataError, match="row 7: " + re.escape(message)):
        encode_row(ChatEncoder(make_tokenizer(template)), {"messages": turns("Hi", "Hello", "Hi", " Hello ")}, "row 7")


BAD_CHATS = {
    "an unknown role": ([{"role": "gpt", "content": "a"}], "message 0 has the role 'gpt'"),
    "no role": ([{"content": "a"}], "message 0 has the role None"),
    "no content": ([{"role": "user", "content": None}], "message 0 (user) has no content"),
    "content in parts": ([{"role": "user", "content": ["a"]}], "the content of message 0 (user) is a list"),
    "an answer first": ([{"role": "assistant", "content": "a"}], "message 0 has the role assistant at the beginning"),
    "two questions": (turns("a") + turns("b", "c"), "message 1 has the role user after user"),
    "a late system prompt": (turns("a", "b") + turns("c", "d", system="e"), "message 2 has the role system after"),
    "a tool nobody called": (turns("a") + [{"role": "tool", "content": "b"}], "message 1 has the role tool after user"),
    "no answer": (turns("a"), "the chat has no assistant message"),
    "no messages": ([], "the chat has no messages"),
    "text": ("user: hi", "messages is a str"),
    "lists": ([["user", "hi"]], "message 0 is a list"),
}


@pytest.mark.parametrize(("chat", "message"), BAD_CHATS.values(), ids=BAD_CHATS)
def test_a_chat_without_meaning_is_refused_with_the_row(tokenizer, chat, message):
    with pytest.raises(DataError, match="row 3: " + re.escape(message)):
        encode_row(ChatEncoder(tokenizer), {"messages": chat}, "row 3")


def test_messages_with_tool_results_stand_between_answers(tokenizer):
    chat = [*turns("Weather?", "call"), {"role": "tool", "content": "sun"}, {"role": "assistant", "content": "Sunny."}]
    assert trained_text(tokenizer, chat) == "call<|im_end|>Sunny.<|im_end|>"


def test_tools_reach_the_template(make_tokenizer):
    template = "{% for tool in tools or [] %}<|im_start|>tool {{ tool.name }}<|im_end|>\n{% endfor %}"
    tokenizer = make_tokenizer(template + make_tokenizer("chatml").chat_template)
    chat = {"messages": turns("Hi", "Hello"), "tools": [{"name": "look_up"}]}
    ids, labels = encode_row(ChatEncoder(tokenizer), chat)
    assert tokenizer.decode(ids).startswith("<|im_start|>tool look_up<|im_end|>")
    assert tokenizer.decode([label for label in labels if label != -100]) == "Hello<|im_end|>"


def test_an_answer_of_which_the_template_writes_nothing_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="row 0: the chat has no token to train on"):
        encode(tokenizer, turns("Hi", ""))


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


def test_no_rows_give_empty_columns(tokenizer):
    encoded = ChatEncoder(tokenizer)([], [])
    assert encoded.columns["input_ids"].tolist() == encoded.columns["labels"].tolist() == encoded.lengths.tolist() == []


def test_an_encoder_that_was_sent_to_another_process_encodes_the_same(tokenizer):
    encoder = ChatEncoder(tokenizer)
    row = {"messages": turns("Hi", "Hello")}
    assert encode_row(pickle.loads(pickle.dumps(encoder)), row) == encode_row(encoder, row)


def test_a_row_that_is_refused_leaves_the_others_of_its_batch(tokenizer):
    rows = [{"messages": turns("Hi", "Hello")}, {"messages": None}, "text", {"messages": turns("Hi", "Bye")}]
    encoded = ChatEncoder(tokenizer)(rows, [f"row {number}" for number in range(4)])
    assert len(encoded.lengths) == 2
    assert len(encoded.columns["input_ids"]) == len(encoded.columns["labels"]) == encoded.lengths.sum()
    assert [(refusal.where, refusal.category) for refusal in encoded.refused] == [
        ("row 1", "wrong type"),
        ("row 2", "wrong type"),
    ]
