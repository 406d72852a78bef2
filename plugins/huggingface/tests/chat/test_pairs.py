"""Preference pairs as rows of two documents: one prompt, labels on the answers, cuts and refusals with their counts."""

from __future__ import annotations

import pickle

import pytest

from arctic_huggingface import faults
from arctic_huggingface.chat.pairs import PairDataConfig, PairEncoder

ASK = {"role": "user", "content": "Two plus two, or three?"}
FOUR = {"role": "assistant", "content": "Four."}
FIVE = {"role": "assistant", "content": "Five, maybe six."}
PAIR = {"chosen": [ASK, FOUR], "rejected": [ASK, FIVE]}
LONG = {"chosen": [ASK, FOUR], "rejected": [ASK, {**FIVE, "content": "Five. " * 50}]}


@pytest.fixture
def encode(tokenizer):
    """Encodes rows with these options; gives what came of them, and the documents of each row."""

    def encode(*rows, tokenizer=tokenizer, **options):
        encoder = PairEncoder(tokenizer, **{"max_length": 512, **options})
        encoded = encoder(rows, [f"row {number}" for number in range(len(rows))])
        documents, end = [], 0
        for length in encoded.lengths.tolist():
            begin, end = end, end + length
            columns = {name: values[begin:end] for name, values in encoded.columns.items()}
            [first, second] = (columns["position_ids"] == 0).nonzero()[0]
            assert first == 0
            documents.append(
                [
                    {name: values[part].tolist() for name, values in columns.items()}
                    for part in (slice(second), slice(second, None))
                ]
            )
        return encoded, documents

    return encode


def said(tokenizer, document):
    """The prompt and the trained text of a document."""
    first = next(number for number, label in enumerate(document["labels"]) if label != -100)
    trained = [label for label in document["labels"] if label != -100]
    return tokenizer.decode(document["input_ids"][:first]), tokenizer.decode(trained)


def test_a_pair_is_one_row_of_two_documents_with_labels_on_the_answers(encode, tokenizer):
    _, [[chosen, rejected]] = encode(PAIR)
    prompt = "<|im_start|>user\nTwo plus two, or three?<|im_end|>\n<|im_start|>assistant\n"
    assert said(tokenizer, chosen) == (prompt, "Four.<|im_end|>")
    assert said(tokenizer, rejected) == (prompt, "Five, maybe six.<|im_end|>")
    for document in (chosen, rejected):
        assert document["position_ids"] == list(range(len(document["input_ids"])))


def test_earlier_answers_of_the_assistant_are_part_of_the_prompt(encode, tokenizer):
    history = [{"role": "system", "content": "Count."}, ASK, {"role": "assistant", "content": "Which?"}, ASK]
    _, [[chosen, _]] = encode({"chosen": [*history, FOUR], "rejected": [*history, FIVE]})
    prompt, answer = said(tokenizer, chosen)
    assert answer == "Four.<|im_end|>"
    assert "Count." in prompt
    assert "Which?" in prompt


def test_chats_that_part_earlier_are_trained_on_all_that_the_assistant_said_from_there_on(encode, tokenizer):
    _, [[chosen, rejected]] = encode({"chosen": [ASK, FOUR, ASK, FIVE], "rejected": [ASK, FIVE, ASK, FIVE]})
    assert said(tokenizer, chosen)[1] == "Four.<|im_end|>Five, maybe six.<|im_end|>"
    assert said(tokenizer, rejected)[1] == "Five, maybe six.<|im_end|>Five, maybe six.<|im_end|>"


def test_rows_as_data_sets_have_them_and_tools_give_the_same_pairs(encode):
    _, [plain] = encode(PAIR)
    _, [raw] = encode({"prompt": ASK["content"], "chosen": "Four.", "rejected": "Five, maybe six."})
    assert raw == plain


@pytest.mark.parametrize(("mode", "kept"), [("keep_start", slice(9)), ("keep_end", slice(-9, None))])
def test_a_long_prompt_loses_its_end_or_its_start_and_is_counted(encode, mode, kept):
    _, [whole] = encode(PAIR)
    encoded, [cut] = (
        encode(PAIR, PAIR, max_prompt_length=9, truncation=mode)[0],
        encode(PAIR, max_prompt_length=9, truncation=mode)[1],
    )
    prompt = next(n for n, label in enumerate(whole[0]["labels"]) if label != -100)
    for before, after in zip(whole, cut, strict=True):
        assert after["input_ids"] == before["input_ids"][:prompt][kept] + before["input_ids"][prompt:]
        assert after["labels"] == [-100] * 9 + before["labels"][prompt:]
    assert encoded.counts == {"prompts cut to max_prompt_length": 2}


def test_a_prompt_that_two_limits_cut_is_counted_once_under_the_narrower(encode):
    _, [whole] = encode(PAIR)
    longest = max(len(document["input_ids"]) for document in whole)
    encoded, _ = encode(PAIR, max_length=longest - 4, max_prompt_length=longest - 12 if longest > 12 else 1)
    assert sum(encoded.counts.values()) == 1
    encoded, _ = encode(PAIR, max_length=longest - 4, max_prompt_length=4096)
    assert encoded.counts == {"prompts cut to what the answers leave of max_length": 1}


def test_answers_are_never_cut_when_max_length_is_below_max_prompt_length(encode, tokenizer):
    _, [whole] = encode(PAIR)
    answer = max(sum(label != -100 for label in document["labels"]) + 1 for document in whole)  # and a line break
    for max_length in range(2, 60):
        encoded, documents = encode(PAIR, max_length=max_length, max_prompt_length=4096)
        if max_length <= answer:
            assert encoded.counts == {"rows dropped, with an answer that fills max_length": 1}
            continue
        [cut] = documents
        assert max(len(document["input_ids"]) for document in cut) <= max_length
        assert [said(tokenizer, document)[1] for document in cut] == [
            said(tokenizer, document)[1] for document in whole
        ]


def test_an_answer_that_leaves_no_prompt_is_dropped_or_refused_as_the_recipe_says(encode):
    encoded, documents = encode(LONG, PAIR, max_length=64)
    assert encoded.counts["rows dropped, with an answer that fills max_length"] == 1
    assert encoded.num_left_out == 1
    assert len(documents) == 1
    encoded, documents = encode(LONG, PAIR, max_length=64, drop_over_long=False)
    [refused] = encoded.refused
    assert refused.where == "row 0"
    assert "leaves no room for a prompt within the max_length of 64" in refused.message
    assert len(documents) == 1


@pytest.mark.parametrize(
    ("row", "category"),
    [
        ({"prompt": "a", "chosen": "b"}, faults.MISSING_COLUMN),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, faults.MISSING_TEXT),
        ({"chosen": [ASK, FOUR], "rejected": [ASK, {**FOUR, "content": ""}]}, faults.EMPTY_ANSWER),
        ({"chosen": [ASK, {**FOUR, "content": "\n"}], "rejected": [ASK, FIVE]}, faults.EMPTY_ANSWER),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, faults.EQUAL_ANSWERS),
        ({"chosen": [ASK, FOUR], "rejected": [{**ASK, "content": "Three?"}, FIVE]}, faults.OTHER_PROMPT),
        ({"chosen": [ASK, ASK, FOUR], "rejected": [ASK, ASK, FIVE]}, "roles out of order"),
        ("text", faults.WRONG_TYPE),
    ],
)
def test_a_row_that_is_no_pair_is_refused_with_place_and_reason_and_the_others_stay(encode, row, category):
    encoded, documents = encode(PAIR, row, PAIR)
    [refused] = encoded.refused
    assert (refused.where, refused.category) == ("row 1", category)
    assert len(documents) == 2


def test_a_template_that_writes_both_answers_the_same_is_refused(encode, make_tokenizer):
    trimming = make_tokenizer("chatml").chat_template.replace("m.content", "m.content | trim")
    row = {"chosen": [ASK, FOUR], "rejected": [ASK, {**FOUR, "content": "Four. "}]}
    encoded, _ = encode(row, tokenizer=make_tokenizer(trimming))
    assert [error.category for error in encoded.refused] == [faults.EQUAL_ANSWERS]


def test_the_encoder_may_be_sent_to_other_processes(tokenizer, encode):
    encoder = pickle.loads(pickle.dumps(PairEncoder(tokenizer, max_length=512)))
    assert encoder([PAIR], ["row 0"]).columns["input_ids"].tolist() == encode(PAIR)[0].columns["input_ids"].tolist()


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({"over_long": "split"}, {"over_long"}),
        ({"over_long": "truncate_left"}, {"over_long"}),
        ({"pack_samples": True, "always_max_length": True}, {"always_max_length"}),
        ({"pack_samples": True, "fuse_positions_prob": 0.5}, {"fuse_positions_prob"}),
        ({"over_long": "error"}, set()),
    ],
)
def test_keys_that_would_cut_or_part_a_pair_are_refused(keys, wrong):
    config = PairDataConfig(sources=[], **keys)
    assert {name for name, _ in PairDataConfig.check(config) if name != "sources"} == wrong
