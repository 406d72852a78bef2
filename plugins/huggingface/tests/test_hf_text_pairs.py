"""Rows of texts that belong together: what is wrong with one, and what to do about it."""

from __future__ import annotations

import pytest

from arctic_huggingface.text_pairs import PairEncoder


@pytest.fixture
def refused(make_tokenizer):
    """A function that gives why a row of texts is refused, by a tokenizer that puts nothing around a text, and for
    which some characters are nothing."""
    from tokenizers import normalizers

    def reason(**row):
        tokenizer = make_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
        encoded = PairEncoder(tokenizer, 32, False)([row, {"query": "q", "positive": "two words"}], ["here", "there"])
        assert len(encoded.lengths) == 2 - len(encoded.refused)
        return [f"{bad.where}: {bad.message}; {bad.remedy}" for bad in encoded.refused]

    return reason


def test_a_text_without_a_token_is_told_from_texts_of_one_token_each(refused):
    (reason,) = refused(query="what is it?", positive="~")
    assert reason == "here: the tokenizer makes no token of a text; correct the row, or remove it"
    (reason,) = refused(query="a", positive="b", negatives=["c"])
    assert reason == (
        "here: its texts have one token each, and the first of a text has no label: nothing is left to train on; "
        "correct the row, or remove it"
    )
    assert refused(query="a", positive="b", negatives=["a longer one"]) == []


WRONG = "here: holds a number in %r, not text; the row has the columns %s; correct the row, or remove it"


@pytest.mark.parametrize(
    ("row", "column"),
    [({"query": 1, "positive": "b"}, "query"), ({"query": "a", "positive": "b", "negatives": [1]}, "negatives")],
)
def test_a_value_of_a_wrong_kind_is_to_be_corrected_and_its_column_is_not_asked_for(refused, row, column):
    assert refused(**row) == [WRONG % (column, ", ".join(row))]


def test_of_a_column_that_is_missing_the_name_is_asked_for(refused):
    (reason,) = refused(query="a", answer="b")
    assert "has no column 'positive'" in reason
    assert "name the columns in column_mapping" in reason
