"""Which answer stands beside a prompt to estimate the baseline with."""

from __future__ import annotations

from itertools import pairwise

import pytest

from arctic_huggingface.chat.labelled import CUT, DESIRABLE, KIND, MISMATCHED, UNDESIRABLE, WITHOUT, LabelledEncoder


@pytest.fixture
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def encode(tokenizer):
    """A function that encodes rows and gives (prompt and answer, prompt and other answer) of each, as text."""

    def encode(rows, **options):
        encoded = LabelledEncoder(tokenizer, **({"max_length": 512} | options))(
            rows, [f"row {n}" for n in range(len(rows))]
        )
        texts, begin = [], 0
        for length in encoded.lengths.tolist():
            ids, positions, kinds = (
                encoded.columns[name][begin : begin + length] for name in ("input_ids", "position_ids", KIND)
            )
            begins = [*(positions == 0).nonzero()[0].tolist(), length]
            documents = [ids[first:last] for first, last in pairwise(begins)]
            texts.append(
                [tokenizer.decode(document) for document in documents] + [tokenizer.decode(ids[kinds == MISMATCHED])]
            )
            begin += length
        return encoded, texts

    return encode


def row(question, answer, label=True):
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "label": label,
    }


def rendered(question, answer):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


def test_the_other_answer_is_that_of_the_next_row_with_another_prompt(encode):
    rows = [row("a", "1"), row("a", "2", False), row("b", "3"), row("c", "4")]
    encoded, texts = encode(rows)
    others = ["3", "3", "4", "1"]
    for text, given, other in zip(texts, rows, others, strict=True):
        question, answer = (message["content"] for message in given["messages"])
        assert text == [rendered(question, answer), rendered(question, other), f"{other}<|im_end|>"]
    begins = encoded.lengths.cumsum() - encoded.lengths
    assert encoded.columns[KIND][begins].tolist() == [DESIRABLE, UNDESIRABLE, DESIRABLE, DESIRABLE]


def test_a_row_among_no_others_has_none_and_that_is_counted(encode):
    encoded, texts = encode([row("a", "1"), row("a", "2")])
    assert [len(text) for text in texts] == [2, 2]
    assert encoded.counts == {WITHOUT: 2}
    assert encode([row("a", "1")])[0].counts == {WITHOUT: 1}


def test_a_refused_row_lends_no_answer(encode):
    encoded, texts = encode([row("a", "1"), {"messages": [], "label": True}, row("b", "2", "no"), row("c", "3")])
    assert [text[-1] for text in texts] == ["3<|im_end|>", "1<|im_end|>"]
    assert [error.where for error in encoded.refused] == ["row 1", "row 2"]


def test_the_other_answer_is_cut_where_it_would_be_too_long(encode, tokenizer):
    rows = [row("a longer question", "1"), row("b", "a longer answer")]
    room = max(
        len(tokenizer(rendered(*text))["input_ids"]) for text in (("a longer question", "1"), ("b", "a longer answer"))
    )
    encoded, _ = encode(rows, max_length=room)
    assert encoded.counts == {CUT: 1}
    assert len(encoded.lengths) == 2
    assert max(encoded.columns["position_ids"]) < room


def test_only_the_last_answer_of_a_chat_is_labelled(encode):
    chat = row("a", "1")
    chat["messages"] += row("b", "2")["messages"]
    encoded, _ = encode([chat, row("c", "3")])
    first = slice(0, int(encoded.lengths[0]))
    trained = encoded.columns["labels"][first] != -100
    assert trained.sum() == 2


def test_processes_do_not_change_which_answer_it_is(build_run, kto_recipe, write, chat):
    path = write([chat(number, number % 3 > 0) for number in range(1001)], "many.jsonl")
    found = []
    for processes in (1, 2):
        recipe = kto_recipe | {"data": kto_recipe["data"] | {"sources": [str(path)], "use_data_cache": False}}
        with build_run(recipe, f"data.num_proc={processes}") as run:
            rows = run.rows["train"]
            found.append([rows[number]["input_ids"].tolist() for number in (0, 1, 999, 1000)])
            assert rows.facts["counts"][WITHOUT] == 1
    assert found[0] == found[1]
