"""Documents become tokens: what begins and ends them, where they are cut, what is trained, what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from arctic_causal.documents import DocumentEncoder
from arctic_training.loss import IGNORE_INDEX


def made(**special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the river runs to the sea"] * 3, trainer)
    if "bos_token" in special:  # as many tokenizers do, whose documents would then begin twice
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


BOTH = made(bos_token="<s>", eos_token="</s>")
ONE_FOR_BOTH = made(bos_token="</s>", eos_token="</s>")
END_ONLY = made(eos_token="</s>")
NEITHER = made()


def encode(tokenizer, *texts, **arguments):
    encoder = pickle.loads(pickle.dumps(DocumentEncoder(tokenizer, arguments)))
    encoded = encoder([{"text": text} for text in texts], [f"row {number}" for number in range(len(texts))])
    rows = np.split(encoded.columns["input_ids"], np.cumsum(encoded.lengths)[:-1])
    labels = np.split(encoded.columns["labels"], np.cumsum(encoded.lengths)[:-1])
    return [row.tolist() for row in rows], [row.tolist() for row in labels], encoded.refused


@pytest.mark.parametrize(
    ("tokenizer", "begin", "end"),
    [(BOTH, [0], [1]), (ONE_FOR_BOTH, [1], [1]), (END_ONLY, [], [1]), (NEITHER, [], [])],
    ids=["both", "one for both", "end only", "neither"],
)
@given(texts=st.lists(st.text(alphabet="the river\n é🙂", min_size=2), min_size=1, max_size=5))
def test_a_document_is_its_text_between_its_beginning_and_its_end(tokenizer, begin, end, texts):
    ids, labels, refused = encode(tokenizer, *texts)
    expected = [begin + tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts]
    assert ids == [row for row in expected if len(row) > 1] or not ids[0]
    assert len(refused) == sum(len(row) == 1 for row in expected)
    for row, of_row in zip(ids, labels, strict=True):
        assert of_row == [IGNORE_INDEX, *row[1:]] or not row


def test_a_text_that_brings_its_own_beginning_is_refused_unless_it_is_read_as_text():
    ids, _, [refused] = encode(BOTH, "the river", "<s>the sea")
    assert len(ids) == 1
    assert (refused.where, refused.category) == ("row 1", "two BOS")
    assert "split_special_tokens" in refused.remedy
    (ids,), _, refused = encode(BOTH, "<s>the sea", split_special_tokens=True)
    assert not refused
    assert (ids.count(0), BOTH.decode(ids)) == (1, "<s><s>the sea</s>")


@pytest.mark.parametrize(
    ("row", "category"),
    [
        ({"text": ""}, "missing text"),
        ({"text": None}, "missing text"),
        ({"title": "the sea"}, "missing text"),
        ({"text": ["the sea"]}, "wrong type"),
        ({"text": "the \ud800 sea"}, "invalid text"),
        ("the sea", "missing text"),
    ],
)
def test_a_row_without_text_is_refused_and_the_others_are_not(row, category):
    encoded = DocumentEncoder(BOTH)([{"text": "the river"}, row, {"text": "runs"}], ["row 0", "row 1", "row 2"])
    assert len(encoded.lengths) == 2
    assert [(bad.where, bad.category) for bad in encoded.refused] == [("row 1", category)]


def test_a_document_of_one_token_has_nothing_to_train_on():
    _, _, [refused] = encode(NEITHER, "t")
    assert refused.category == "nothing to train on"
