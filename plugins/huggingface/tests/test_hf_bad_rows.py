"""Rows that cannot be used: each is told by itself, with its place and what it is counted under; the others load."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_huggingface import faults
from arctic_huggingface.source import HFDataSource, HFInstructDataSource
from arctic_training.encoding import EncodedRows, encode_batches
from arctic_training.errors import BadRow, DataError

ASK = {"role": "user", "content": "Two plus two?"}
ANSWER = {"role": "assistant", "content": "Four."}
GOOD = {"messages": [ASK, ANSWER]}


@pytest.fixture
def load(make, tmp_path):
    def load(content, name="rows.jsonl", source=HFInstructDataSource, split="train", **keys):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        made = make(source, name_or_path=str(tmp_path / name), split=split, **keys)
        return made.load(made.config, split)

    return load


def outcome(rows):
    """For each row None, or the file, line and category of its fault."""
    outcomes = []
    for number in range(len(rows)):
        try:
            rows[number]
        except BadRow as error:
            assert error.message
            assert error.remedy
            outcomes.append((error.where.rpartition("/")[2], error.category))
        else:
            outcomes.append(None)
    return outcomes


@pytest.mark.parametrize(
    ("line", "category"),
    [
        (b'{"messages": [', faults.MALFORMED_JSON),
        (b"[" * 100_000, faults.MALFORMED_JSON),
        (b'{"messages": ' + b"9" * 5000 + b"}", faults.MALFORMED_JSON),
        (b"\xff\xfe{}", faults.INVALID_UTF8),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', faults.INVALID_UTF8),
        (b'{"messages": [{"role": "user", "content": "\\uD83D x"}]}', faults.INVALID_UTF8),
        (b"[1, 2]", faults.WRONG_TYPE),
        (b'"text"', faults.WRONG_TYPE),
        (b"null", faults.WRONG_TYPE),
        (b'{"messages": 4}', faults.WRONG_TYPE),
        (b'{"messages": {"role": "user"}}', faults.WRONG_TYPE),
        (b'{"messages": ["hello"]}', faults.WRONG_TYPE),
        (b'{"messages": [{"role": "user", "content": 4}]}', faults.WRONG_TYPE),
        (b'{"messages": [{"role": "user", "content": []}]}', faults.WRONG_TYPE),
        (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', faults.WRONG_TYPE),
        (b'{"instruction": "a", "output": "b", "history": [["c"]]}', faults.WRONG_TYPE),
        (b'{"question": "a", "answer": 4}', faults.WRONG_TYPE),
        (b'{"messages": [{"role": "user", "content": "a"}], "tools": 4}', faults.WRONG_TYPE),
        (b'{"messages": [{"role": "user", "content": "a"}], "tools": "["}', faults.MALFORMED_JSON),
        (b'{"messages": [{"role": "assistant", "tool_calls": [{"name": 4}]}]}', faults.WRONG_TYPE),
        (
            b'{"messages": [{"role": "assistant", "tool_calls": [{"name": "a", "arguments": "{"}]}]}',
            faults.MALFORMED_JSON,
        ),
        (b'{"messages": []}', faults.EMPTY_CHAT),
        (b'{"messages": null}', faults.EMPTY_CHAT),
        (b'{"messages": [{"role": "user", "content": null}]}', faults.MISSING_TEXT),
        (b'{"messages": [{"role": "user"}]}', faults.MISSING_TEXT),
        (b'{"prompt": "a", "completion": null}', faults.MISSING_TEXT),
        (b'{"messages": [{"role": "wizard", "content": "a"}]}', faults.UNKNOWN_ROLE),
        (b'{"messages": [{"role": ["user"], "content": "a"}]}', faults.UNKNOWN_ROLE),
        (b'{"messages": [{"content": "a"}]}', faults.UNKNOWN_ROLE),
        (b'{"text": "web"}', faults.UNKNOWN_FORMAT),
        (b"{}", faults.UNKNOWN_FORMAT),
    ],
)
def test_a_bad_row_is_told_with_file_line_and_category_and_the_others_load(load, line, category):
    good = json.dumps(GOOD).encode()
    rows = load(b"\n".join([good, b"", line, good]))
    assert outcome(rows) == [None, ("rows.jsonl:3", category), None]
    assert rows[2] == GOOD


def test_bytes_that_are_no_utf8_are_told_with_their_offset_in_the_line(load):
    rows = load(b'{"a": 1}\n{"a": "\xc3\xa4\xe4"}\n', source=HFDataSource)
    with pytest.raises(BadRow, match=r"rows\.jsonl:2: byte 9 of the line, from 0, is not UTF-8: 0xe4"):
        rows[1]


def test_a_missing_column_is_told_where_the_recipe_names_it(load):
    rows = load('{"q": "a", "a": "b"}\n{"a": "b"}\n', role_mapping={"user": "q", "assistant": "a"})
    assert outcome(rows) == [None, ("rows.jsonl:2", faults.MISSING_COLUMN)]
    rows = load('{"messages": [{"role": "user", "content": "a"}]}\n{"q": "b"}\n', format="messages")
    assert outcome(rows) == [None, ("rows.jsonl:2", faults.MISSING_COLUMN)]


def test_a_record_of_csv_with_too_many_or_too_few_fields_is_a_fault_of_that_row(load):
    content = 'question,answer\n"a\nb",c\nd\n\ne,f,g\n"h"i,j\n"k\nl",m\n'
    rows = load(content, "rows.csv")
    bad = faults.MALFORMED_CSV
    assert outcome(rows) == [None, ("rows.csv:4", bad), ("rows.csv:6", bad), ("rows.csv:7", bad), None]
    assert rows.where(4).endswith("rows.csv:8")
    assert rows[4]["messages"][0]["content"] == "k\nl"


def test_a_quote_of_csv_that_never_ends_ends_the_run_at_its_line(load):
    with pytest.raises(DataError, match=r"rows\.csv:3: a quote that is opened in this row is never closed") as caught:
        load('question,answer\na,b\n"c,d\ne,f\n', "rows.csv")
    assert not isinstance(caught.value, BadRow)


def test_csv_of_another_encoding_is_a_fault_of_the_rows_that_hold_it_unless_it_is_named(load):
    content = "question,answer\na,b\nä,b\n".encode("latin-1")
    rows = load(content, "rows.csv")
    assert outcome(rows) == [None, ("rows.csv:3", faults.INVALID_UTF8)]
    assert load(content, "rows.csv", kwargs={"encoding": "latin-1"})[1]["messages"][0]["content"] == "ä"


def test_a_field_of_csv_may_be_as_long_as_a_book(load):
    assert load(f"question,answer\na,{'b' * 300_000}\n", "rows.csv")[0]["messages"][1]["content"] == "b" * 300_000


def test_two_columns_of_one_name_are_refused(load):
    with pytest.raises(DataError, match=r"rows\.csv:1: two columns are named 'a'"):
        load("a,a\n1,2\n", "rows.csv")


def test_an_item_of_a_json_array_is_told_with_line_and_number(load):
    content = b'[\n{"messages": [{"role": "user", "content": "a"}]},\n 4,\n\n{"a": "\xe4"}, {"a": "\\ud83d"}]'
    rows = load(content, "rows.json", source=HFDataSource)
    invalid = faults.INVALID_UTF8
    assert outcome(rows) == [
        None,
        ("rows.json:3, row 1", faults.WRONG_TYPE),
        ("rows.json:5, row 2", invalid),
        ("rows.json:5, row 3", invalid),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"a": 1},\n{"a": }]', r"rows\.json:3: this file is not JSON"),
        ('[{"a": 1}\n{"a": 2}]', r"rows\.json:2: this file is not JSON: expected ',' or ']'"),
        ('[{"a": 1}]\n]', r"rows\.json:2: this file is not JSON: something follows the list"),
        ('[\n{"a": 1}', r"rows\.json:2: this file is not JSON"),
        ("", r"rows\.json:1: this file is not JSON"),
        ("[1,\n" + "[" * 100_000, r"rows\.json:[12]: this file cannot be read as JSON"),
        ('{\n"a": 1\n}', r"rows\.json: a JSON file must hold a list of objects"),
    ],
)
def test_a_json_array_that_does_not_parse_ends_the_run_at_its_line(load, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load(content, "rows.json")
    assert not isinstance(caught.value, BadRow)


def test_one_bad_row_at_the_beginning_does_not_end_a_run_that_skips_bad_rows(load):
    rows = load("{\n" * 19 + json.dumps(GOOD))
    assert len(rows) == 20
    assert rows[19] == GOOD


def test_a_source_of_another_format_is_told_before_anything_is_tokenised_with_columns_and_remedy(load):
    content = "{\n" + '{"headline": "a", "body": "b"}\n' * 30
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: .*the columns headline, body; none of the first 20 rows"
    ) as caught:
        load(content)
    assert "role_mapping" in caught.value.remedy
    assert not isinstance(caught.value, BadRow)


def test_rows_of_a_table_are_told_with_source_and_number(make, tmp_path):
    import datasets

    datasets.Dataset.from_list([GOOD, {"messages": []}, GOOD, {"messages": []}]).save_to_disk(str(tmp_path / "saved"))
    for split, places in (("train", ["saved, row 1", "saved, row 3"]), ("train[2:]", ["saved:train[2:], row 1"])):
        source = make(HFInstructDataSource, name_or_path=str(tmp_path / "saved"), split=split)
        found = [place for place in outcome(source.load(source.config, split)) if place]
        assert found == [(place, faults.EMPTY_CHAT) for place in places]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_every_row_is_encoded_or_refused_whatever_the_number_of_processes(load, num_proc):
    lines = [json.dumps(GOOD), "{", '{"messages": []}', json.dumps(GOOD)] * 600
    results = list(encode_batches(load("\n".join(lines)), count_messages, num_proc))
    assert sum(count for count, _ in results) == len(lines)
    assert sum(len(encoded.lengths) for _, encoded in results) == 1200
    refused = [(error.category, error.where.rpartition(":")[2]) for _, encoded in results for error in encoded.refused]
    assert len(refused) == 1200
    assert refused[:2] == [(faults.MALFORMED_JSON, "2"), (faults.EMPTY_CHAT, "3")]


def count_messages(rows, places):
    import numpy as np

    lengths = np.array([len(row["messages"]) for row in rows], np.int64)
    return EncodedRows({"input_ids": np.zeros(lengths.sum(), np.int32)}, lengths)


KEYS = ["messages", "conversations", "role", "from", "content", "value", "prompt", "completion", "tools", "tool_calls",
        "function", "name", "arguments", "history", "instruction", "output", "chosen", "rejected", "label"]  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["user", "gpt", "function_call", "[]", '{"name": "a"}', ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    row=VALUES,
    keys=st.sampled_from(
        [{}, {"format": "alpaca"}, {"content_key": "value"}, {"role_mapping": {"user": "messages.from.gpt"}},
         {"role_mapping": {"user": "prompt.value", "assistant": "completion"}}]
    ),
)  # fmt: skip
def test_whatever_a_row_holds_it_is_a_chat_or_a_bad_row(load, row, keys):
    good = {**GOOD, "prompt": {"value": "a"}, "completion": "b", "instruction": "a", "output": "b"}
    if keys.get("content_key"):
        good["messages"] = [{"role": "user", "value": "a"}]
    elif "messages.from.gpt" in str(keys):
        good["messages"] = [{"from": "gpt", "value": "a"}]
    rows = load(json.dumps(good) + "\n" + json.dumps(row), **keys)
    try:
        chat = rows[1]
    except BadRow as error:
        assert error.where.endswith("rows.jsonl:2")
        return
    assert chat["messages"]
    assert all(isinstance(message["role"], str) and isinstance(message["content"], str) for message in chat["messages"])
