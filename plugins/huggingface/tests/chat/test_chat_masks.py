"""Masks: what the assistant says is trained, for every template whose structure tells it; nothing is guessed.

``test_templates.py`` holds the table of templates and chats; here is one behaviour at a time.
"""

from __future__ import annotations

import pickle

import pytest
from chat_chats import encode, encode_row, refusal, trained_text, trained_texts, turns
from chat_templates import FAMILIES

from arctic_huggingface.chat.encoder import ChatEncoder
from arctic_training.errors import DataError

EMPTY_THINK = "<think>\n\n</think>\n\n"

# ---- tokens


def test_ids_are_those_of_the_whole_text_when_no_token_reaches_into_an_answer(tokenizer):
    chat = turns("One?", "Yes.", "Two?", "Yes.")
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
    tokenizer = make_tokenizer("chatml blocks")
    chat = turns("One?", "Yes.", "Two?", "Yes.")
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


def test_the_end_of_turn_is_trained_though_padding_is_the_same_token(make_tokenizer):
    tokenizer = make_tokenizer("chatml", pad_token="<|im_end|>")
    assert trained_text(tokenizer, turns("Hi", "Hello")) == "Hello<|im_end|>"


def test_a_token_that_cannot_be_parted_at_the_start_of_an_answer_is_an_error():
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate("▁Q:abc")}
    bpe = Tokenizer(models.BPE(vocab={**letters, ":a": len(letters)}, merges=[(":", "a")]))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="row 0: the token ':a' begins before the assistant's text") as caught:
        encode(tokenizer, turns("Q:", "abc"))
    assert caught.value.category == "no mask"


def test_a_token_that_reaches_from_an_answer_without_end_of_turn_into_the_next_question_is_parted(make_tokenizer):
    tokenizer = make_tokenizer(
        "{% for m in messages %}{{ '\n' + m.content if loop.index0 else m.content }}{% endfor %}"
    )
    chat = turns("Hi", "Hello\n", "\nHi", "Hello")
    whole = tokenizer.convert_ids_to_tokens(tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"])
    assert "ĊĊ" in whole, "this chat must be one whose line breaks merge"
    assert trained_text(tokenizer, chat) == "\nHello\n\nHello"


def test_the_first_token_of_a_chat_has_no_label_though_everything_is_trained(tokenizer):
    ids, labels = encode(tokenizer, turns("Hi", "Hello"), mask_inputs=False)
    assert labels[0] == -100
    assert labels[1:] == ids[1:]


def test_special_tokens_that_a_tokenizer_reads_as_text_end_no_turn(make_tokenizer):
    tokenizer = make_tokenizer("chatml", split_special_tokens=True)
    assert trained_text(tokenizer, turns("Hi", "Hello")) == "Hello<|im_end|>\n"


@pytest.mark.parametrize("strips", ["lstrip", "rstrip"])
def test_an_end_of_turn_that_takes_white_space_along_is_found(make_tokenizer, strips):
    from tokenizers import AddedToken

    tokenizer = make_tokenizer("chatml")
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True, **{strips: True})], special_tokens=True)
    _, labels = encode(tokenizer, turns("Hi", "Hello \n", "Hi", "\n Hello"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [label for label in labels if label == end] == [end, end]
    assert tokenizer.decode([label for label in labels if label not in (-100, end)]).split() == ["Hello", "Hello"]


@pytest.mark.parametrize("family", FAMILIES)
def test_looking_at_boundaries_gives_what_looking_at_each_token_gives(make_tokenizer, family, monkeypatch):
    rows = [
        {"messages": chat}
        for chat in (
            turns("Hi", "Hello"),
            turns("  Hi", "\n\n Hello \n", "🙂", "🙂\n"),
            turns("Hi", "<think>\n\n</think>\n\n Hello", "<|im_end|>", "<|im_end|>"),
            turns("Hi", "", "Hi", " ", "Bye"),
        )
    ]
    places = [f"row {number}" for number in range(len(rows))]
    options = {"ignore_empty_think": True, "train_turns": "one_row_per_turn"}
    by_bytes = ChatEncoder(make_tokenizer(family), **options)
    by_offsets = ChatEncoder(make_tokenizer(family), **options)
    assert by_offsets.tokenise.byte_lengths
    by_offsets.tokenise.byte_lengths = None
    quick = [by_bytes(rows, places), by_offsets(rows, places)]
    monkeypatch.setattr("arctic_huggingface.chat.tokenise.quick_tokens", lambda *arguments: None)
    exact = ChatEncoder(make_tokenizer(family), **options)(rows, places)
    for name in ("input_ids", "labels"):
        for encoded in quick:
            assert encoded.columns[name].tolist() == exact.columns[name].tolist()


# ---- which turns


def test_only_the_last_answer_is_trained_on_demand_whatever_follows(tokenizer):
    chat = turns("One?", "Yes.", "Two?", "No.", "Three?")
    assert trained_text(tokenizer, chat, train_turns="last") == "No.<|im_end|>"


def test_each_answer_can_be_trained_in_a_row_of_its_own(tokenizer):
    chat = turns("One?", "Yes.", "Two?", "No.", "Three?", system="Be brief.")
    encoded = ChatEncoder(tokenizer, train_turns="one_row_per_turn")([{"messages": chat}], ["row 0"])
    assert trained_texts(tokenizer, chat, train_turns="one_row_per_turn") == ["Yes.<|im_end|>", "No.<|im_end|>"]
    first = tokenizer.apply_chat_template(chat[:3], tokenize=True, return_dict=True)["input_ids"]
    second = tokenizer.apply_chat_template(chat[:5], tokenize=True, return_dict=True)["input_ids"]
    assert encoded.lengths.tolist() == [len(first), len(second)]
    assert encoded.columns["input_ids"].tolist() == first + second


def test_a_message_with_train_false_is_not_trained_and_the_template_does_not_see_the_key(make_tokenizer):
    tokenizer = make_tokenizer(
        "{% for m in messages %}{% if 'train' in m %}{{ raise_exception('train') }}{% endif %}{% endfor %}"
        + make_tokenizer("chatml").chat_template
    )
    chat = turns("One?", "Yes.", "Two?", "No.")
    chat[1]["train"], chat[3]["train"] = False, True
    assert trained_text(tokenizer, chat) == "No.<|im_end|>"
    assert trained_texts(tokenizer, chat, train_turns="one_row_per_turn") == ["No.<|im_end|>"]
    ids, labels = encode(tokenizer, chat, mask_inputs=False)
    left_out = [token for token, label in zip(ids[1:], labels[1:], strict=True) if label == -100]
    assert tokenizer.decode(left_out) == "Yes.<|im_end|>"


@pytest.mark.parametrize("train_turns", [None, "last", "one_row_per_turn"])
def test_a_chat_of_which_nothing_is_to_be_trained_is_refused(tokenizer, train_turns):
    chat = turns("One?", "Yes.")
    chat[1]["train"] = False
    assert refusal(tokenizer, chat, train_turns=train_turns).category == "nothing to train on"


@pytest.mark.parametrize("train_turns", [None, "all"])
@pytest.mark.parametrize("way", ["", ", in blocks"])
def test_a_template_that_rewrites_history_asks_for_a_choice(make_tokenizer, way, train_turns):
    name = "a thought dropped once more follows" + (way or ", as Qwen 3")
    chat = turns("Hi", "<think>a</think>Hello", "Hi", "<think>b</think>Bye")
    refused = refusal(make_tokenizer(name), chat, train_turns=train_turns)
    assert refused.category == "history rewritten"
    assert str(refused).startswith("row 3: the chat template writes the chat up to message 1 differently once more")
    assert "data.train_turns: one_row_per_turn, or last" in refused.remedy


@pytest.mark.parametrize("way", ["", ", in blocks"])
def test_with_the_choice_made_history_may_be_rewritten(make_tokenizer, way):
    tokenizer = make_tokenizer("a thought dropped once more follows" + (way or ", as Qwen 3"))
    chat = turns("Hi", "<think>a</think>Hello", "Hi", "<think>b</think>Bye")
    one, two = "<think>\na\n</think>\n\nHello<|im_end|>", "<think>\nb\n</think>\n\nBye<|im_end|>"
    assert trained_text(tokenizer, chat, train_turns="last") == two
    assert trained_texts(tokenizer, chat, train_turns="one_row_per_turn") == [one, two]
    assert refusal(tokenizer, [*chat, *turns("Hi")], train_turns="last").category == "history rewritten"


def test_whole_chats_and_single_answers_contradict_each_other(tokenizer):
    with pytest.raises(DataError, match=r"train_turns: last trains single answers and data.mask_inputs: false all"):
        ChatEncoder(tokenizer, mask_inputs=False, train_turns="last")


# ---- reasoning


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


@pytest.mark.parametrize(
    ("answer", "trained"),
    [
        ("<think>\nhm\n</think>\n\nHello", "Hello"),
        ("\n<think>hm</think>Hello", "Hello"),
        ("<think></think>", ""),
        ("<think>hm</think>  \n ", ""),
        ("<think>a</think>b <think>c</think> d", "b <think>c</think> d"),
        ("Hello <think>hm</think>", "Hello <think>hm</think>"),
        ("<think>🙂</think>🙂", "🙂"),
    ],
)
def test_reasoning_at_the_start_of_an_answer_can_be_left_out(tokenizer, answer, trained):
    text = trained_text(tokenizer, turns("Hi", answer, "<think>Hi</think>", "Bye"), mask_reasoning=True)
    assert text == trained + "<|im_end|>Bye<|im_end|>"


def test_white_space_that_is_one_token_with_the_answer_stays(tokenizer):
    assert " Hello" not in (
        trained := trained_text(tokenizer, turns("Hi", "<think>a</think> ..."), mask_reasoning=True)
    )
    assert trained.lstrip() == "...<|im_end|>"
    text = trained_text(tokenizer, turns("Hi", "<think>a</think> you"), mask_reasoning=True)
    assert text == " you<|im_end|>", "the tokenizer must have one token for both"


def test_reasoning_that_a_message_holds_apart_is_trained_or_left_out(make_tokenizer):
    tokenizer = make_tokenizer("a thought dropped once more follows, as Qwen 3")
    chat = [*turns("Hi"), {"role": "assistant", "reasoning_content": "a </think> b", "content": "Hello"}]
    assert trained_text(tokenizer, chat) == "<think>\na </think> b\n</think>\n\nHello<|im_end|>"
    assert trained_text(tokenizer, chat, mask_reasoning=True) == "Hello<|im_end|>"


def test_reasoning_that_the_prompt_opens_can_be_left_out(make_tokenizer):
    tokenizer = make_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    chat = turns("Hi", "<think>\nhm\n</think>\n\nHello")
    assert trained_text(tokenizer, chat) == "hm\n</think>\n\nHello<|im_end|>"
    assert trained_text(tokenizer, chat, mask_reasoning=True) == "Hello<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chatml", {"content": "<think>hm, Hello"}),
        ("channels, as gpt-oss", {"content": "Hello", "reasoning_content": "hm"}),
    ],
)
def test_reasoning_whose_end_is_not_known_cannot_be_left_out(make_tokenizer, template, message):
    chat = [*turns("Hi"), {"role": "assistant", **message}]
    assert refusal(make_tokenizer(template), chat, mask_reasoning=True).category == "no mask"


# ---- batches


def test_no_rows_give_empty_columns(tokenizer):
    encoded = ChatEncoder(tokenizer)([], [])
    assert encoded.columns["input_ids"].tolist() == encoded.columns["labels"].tolist() == encoded.lengths.tolist() == []
    assert {values.dtype.name for values in (*encoded.columns.values(), encoded.lengths)} == {"int32"}


@pytest.mark.parametrize("options", [{}, {"train_turns": "last"}, {"mask_inputs": False}, {"mask_reasoning": True}])
def test_an_encoder_that_was_sent_to_another_process_encodes_the_same(tokenizer, options):
    encoder = ChatEncoder(tokenizer, **options)
    row = {"messages": turns("Hi", "<think>a</think>Hello", "Hi", "Bye")}
    assert encode_row(pickle.loads(pickle.dumps(encoder)), row) == encode_row(encoder, row)


def test_a_row_that_is_refused_leaves_the_others_of_its_batch(tokenizer):
    good, empty = {"messages": turns("Hi", "Hello")}, {"messages": turns("<|begin|><|begin|>", "Hello")}
    rows = [good, {"messages": None}, "text", empty, {"messages": turns("Hi", "Bye")}]
    encoded = ChatEncoder(tokenizer)(rows, [f"row {number}" for number in range(5)])
    assert len(encoded.lengths) == 2
    assert len(encoded.columns["input_ids"]) == len(encoded.columns["labels"]) == encoded.lengths.sum()
    assert [(refused.where, refused.category) for refused in encoded.refused] == [
        ("row 1", "wrong type"),
        ("row 2", "wrong type"),
        ("row 3", "two BOS"),
    ]


def test_a_chat_is_refused_as_a_whole_though_only_one_of_its_rows_is_bad(tokenizer):
    chat = turns("Hi", "Hello", "<|begin|><|begin|>", "Bye")
    encoded = ChatEncoder(tokenizer, train_turns="one_row_per_turn")([{"messages": chat}], ["row 0"])
    assert encoded.lengths.tolist() == []
    assert [refused.where for refused in encoded.refused] == ["row 0"]


def test_the_thousandth_chat_is_masked_as_the_first(make_tokenizer):
    """After many chats whose text was the same with and without marks, it is taken from what has them."""
    tokenizer = make_tokenizer("chatml blocks")
    chats = [{"messages": turns(f"What is {n}?", f"It is {n}.", "Sure?", f"Yes, {n}.")} for n in range(300)]
    chats[250]["messages"][1]["content"] = "It is \ufdd0."
    chats[260]["messages"][0]["content"] = "What is \ufdd1?"
    encoded = ChatEncoder(tokenizer)(chats, [f"row {n}" for n in range(300)])
    assert [row.where for row in encoded.refused] == ["row 250", "row 260"]
    for number in (0, 150, 299):
        alone = ChatEncoder(tokenizer)([chats[number]], ["row"])
        place = number - sum(number > bad for bad in (250, 260))
        begin = int(encoded.lengths[:place].sum())
        end = begin + int(encoded.lengths[place])
        for name in ("input_ids", "labels"):
            assert encoded.columns[name][begin:end].tolist() == alone.columns[name].tolist()
