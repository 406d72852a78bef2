"""Rows that cannot be used, in files of each kind and through a whole preparation: an error that names the place, or
counted, listed and left out."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path

import pytest

from arctic_training.api import get_config
from arctic_training.errors import BadRow, DataError
from arctic_training.run import Run

MODEL = Path(__file__).parents[1] / "examples/quickstart/model"
REFUSING_TEMPLATE = (
    "{% for m in messages %}{% if 'forbidden' in m.content %}{{ raise_exception('no such words') }}{% endif %}"
    "<|turn_start|>{{ m.role }}\n{{ m.content }}<|turn_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn_start|>assistant\n{% endif %}"
)


def chat(*contents, **more):
    messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return {"messages": messages, **more}


def lines(*rows):
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def speakers(*roles):
    return {"messages": [{"role": role, "content": f"said by {role}"} for role in roles]}


GOOD = chat("What is two plus two?", "Four.")
UNTRAINED = chat("Hi", "Hello")
UNTRAINED["messages"][1]["train"] = False


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Prepares files as a recipe would, and gives the prepared rows."""
    monkeypatch.setenv("ARCTIC_HOME", str(tmp_path / "home"))

    def prepare(*sources, template=None, **data):
        recipe = {
            "type": "sft",
            "model": {"name_or_path": str(MODEL), "init": "random", "dtype": "fp32"},
            "data": {"sources": list(sources), "max_length": 128, "num_proc": 1, "dl_num_workers": 0} | data,
            "engine": {"type": "torch"},
            "train_iters": 1,
            "run_dir": str(tmp_path / "run"),
        }
        if template:
            recipe["tokenizer"] = {"chat_template": template}
        run = Run(get_config(recipe))
        with run.only_preparing():
            return run.rows["train"]

    return prepare


@pytest.fixture
def write(tmp_path):
    def write(content, name="rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


def places(rows):
    return [(Path(fault["where"]).name, fault["category"]) for fault in rows.facts["refused"]]


BAD_LINES = {
    "malformed JSON": b'{"messages": [',
    "invalid UTF-8": b'{"messages": "\xff"}',
    "wrong type": {"messages": [{"role": "user", "content": 4}]},
    "unknown format": {"headline": "no column that a chat could be in"},
    "missing text": {"messages": [{"role": "user"}]},
    "empty chat": {"messages": []},
    "unknown role": speakers("user", "wizard"),
    "roles out of order": speakers("user", "user", "assistant"),
    "nothing to train on": UNTRAINED,
    "template refuses": chat("say forbidden words", "no"),
}


@pytest.mark.parametrize("category", BAD_LINES)
def test_a_bad_line_ends_the_run_with_file_line_and_exit_code_of_data_errors(prepare, write, category):
    path = write(lines(GOOD, GOOD, BAD_LINES[category], GOOD))
    with pytest.raises(BadRow) as caught:
        prepare(path, template=REFUSING_TEMPLATE)
    assert caught.value.exit_code == 4
    assert caught.value.category == category
    assert f"{path}:3" in str(caught.value).splitlines()[0]
    assert caught.value.remedy


@pytest.mark.parametrize("position", [0, 2, 4])
@pytest.mark.parametrize("category", BAD_LINES)
def test_a_bad_line_is_left_out_counted_and_listed_wherever_it_stands(prepare, write, category, position):
    rows = [GOOD] * 4
    rows.insert(position, BAD_LINES[category])
    prepared = prepare(write(lines(*rows)), template=REFUSING_TEMPLATE, on_bad_row="skip", max_bad_fraction=0.2)
    assert prepared.facts["counts"] == {"rows read": 5, f"rows refused, {category}": 1, "rows kept": 4}
    ((place, listed),) = places(prepared)
    assert listed == category
    assert place.startswith(f"rows.jsonl:{position + 1}")
    assert len(prepared) == 4


def test_the_error_is_that_of_the_first_bad_line_whatever_is_wrong_with_it(prepare, write):
    with pytest.raises(BadRow, match=r"rows\.jsonl:2 .*role user after user"):
        prepare(write(lines(GOOD, speakers("user", "user", "assistant"), b"{")))


def test_refused_rows_are_listed_in_the_order_of_the_file(prepare, write):
    path = write(lines(speakers("user", "user"), b"{", {"messages": []}, speakers("assistant"), b"}", *[GOOD] * 5))
    listed = places(prepare(path, on_bad_row="skip", max_bad_fraction=1))
    assert [place.partition(" ")[0] for place, _ in listed] == [f"rows.jsonl:{number}" for number in range(1, 6)]


def test_more_bad_rows_than_are_allowed_end_the_run_with_their_number_and_examples(prepare, write):
    path = write(lines(*[GOOD] * 17, b"{", {"messages": []}, speakers("user", "user", "assistant")))
    assert len(prepare(path, on_bad_row="skip", max_bad_fraction=0.15)) == 17
    with pytest.raises(DataError) as caught:
        prepare(path, on_bad_row="skip", max_bad_fraction=0.14)
    first, *examples, _ = str(caught.value).splitlines()
    assert first.startswith("3 of the first 20 rows cannot be used, more than data.max_bad_fraction (0.14) of 20")
    assert [f"rows.jsonl:{number}" in example for number, example in zip((18, 19, 20), examples, strict=True)] == [
        True
    ] * 3
    assert caught.value.exit_code == 4


def test_the_share_of_bad_rows_is_that_of_all_sources_together(prepare, write):
    good, bad = write(lines(*[GOOD] * 18)), write(lines(b"{", GOOD), "bad.jsonl")
    prepared = prepare(bad, good, on_bad_row="skip")
    assert prepared.facts["counts"] == {"rows read": 20, "rows refused, malformed JSON": 1, "rows kept": 19}


@pytest.mark.parametrize("num_proc", [1, 2])
def test_bad_rows_at_the_start_middle_and_end_are_found_whichever_process_meets_them(prepare, write, num_proc):
    rows = [GOOD] * 2101
    bad = {0: b"{", 999: {"messages": []}, 1000: speakers("user", "user"), 1500: b"\xff", 2100: UNTRAINED}
    for number, row in bad.items():
        rows[number] = row
    prepared = prepare(write(lines(*rows)), on_bad_row="skip", num_proc=num_proc)
    assert [place.partition(" ")[0] for place, _ in places(prepared)] == [f"rows.jsonl:{n + 1}" for n in bad]
    counts = prepared.facts["counts"]
    assert (counts["rows read"], counts["rows kept"]) == (2101, 2096)
    assert sum(number for name, number in counts.items() if name.startswith("rows refused")) == 5


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_bad_row_ends_the_run_whichever_process_meets_it(prepare, write, num_proc):
    path = write(lines(*[GOOD] * 2050, b"{", *[GOOD] * 50))
    with pytest.raises(BadRow, match=r"rows\.jsonl:2051"):
        prepare(path, num_proc=num_proc)


def test_bad_rows_of_csv_are_told_by_line(prepare, write):
    table = io.StringIO()
    csv.writer(table).writerows([["question", "answer"], ["a\nb", "c"], ["d"], ["e", "f"], ["g", "h", "i"], ["", ""]])
    prepared = prepare(write(table.getvalue().encode(), "rows.csv"), on_bad_row="skip", max_bad_fraction=1)
    assert prepared.facts["counts"] == {
        "rows read": 5,
        "rows refused, malformed CSV": 2,
        "rows refused, missing text": 1,
        "rows kept": 2,
    }
    assert places(prepared) == [
        ("rows.csv:4", "malformed CSV"),
        ("rows.csv:6", "malformed CSV"),
        ("rows.csv:7", "missing text"),
    ]


def test_bad_items_of_a_json_array_are_told_by_line(prepare, write):
    items = b",\n".join(
        [json.dumps(GOOD).encode(), b"4", b'{"messages": "\xe4"}', json.dumps(GOOD).encode(), b'{"messages": null}']
    )
    path = write(b"[\n" + items + b"\n]", "rows.json")
    with pytest.raises(BadRow, match=r"rows\.json:3"):
        prepare(path)
    prepared = prepare(path, on_bad_row="skip", max_bad_fraction=1)
    assert places(prepared) == [
        ("rows.json:3, row 1", "wrong type"),
        ("rows.json:4, row 2", "invalid UTF-8"),
        ("rows.json:6, row 4", "empty chat"),
    ]


def test_an_array_that_is_no_json_ends_the_run_at_its_line_whatever_is_skipped(prepare, write):
    path = write(b"[\n" + json.dumps(GOOD).encode() + b"\n{}]", "rows.json")
    with pytest.raises(DataError, match=r"rows\.json:3: this file is not JSON") as caught:
        prepare(path, on_bad_row="skip", max_bad_fraction=1)
    assert caught.value.exit_code == 4


def test_bad_rows_of_parquet_are_told_by_number(prepare, tmp_path):
    import pyarrow
    import pyarrow.parquet

    chats = [GOOD["messages"], [], None, speakers("user", "user")["messages"], GOOD["messages"]]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"messages": chats}), path)
    with pytest.raises(BadRow, match=r"rows\.parquet, row 1"):
        prepare(str(path))
    prepared = prepare(str(path), on_bad_row="skip", max_bad_fraction=1)
    assert places(prepared) == [
        ("rows.parquet, row 1", "empty chat"),
        ("rows.parquet, row 2", "empty chat"),
        ("rows.parquet, row 3", "roles out of order"),
    ]
    assert prepared.facts["counts"]["rows kept"] == 2


def test_bytes_of_parquet_that_are_no_text_are_a_fault_of_their_row(prepare, tmp_path):
    import pyarrow
    import pyarrow.parquet

    answers = pyarrow.array([b"a", b"b", b"\xff", b"d"] * 30).view(pyarrow.string())
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q"] * 120, "answer": answers}), path)
    with pytest.raises(BadRow, match=r"rows\.parquet, row 2.*not UTF-8"):
        prepare(str(path))
    prepared = prepare(str(path), on_bad_row="skip", max_bad_fraction=0.25)
    assert prepared.facts["counts"] == {"rows read": 120, "rows refused, invalid UTF-8": 30, "rows kept": 90}


def test_a_column_that_the_recipe_names_and_a_row_lacks_is_a_missing_column(prepare, write):
    path = write(lines({"a": "no q"}, *[{"q": "two plus two", "a": "four"}] * 9))
    source = {"name_or_path": path, "role_mapping": {"user": "q", "assistant": "a"}}
    with pytest.raises(BadRow, match=r"rows\.jsonl:1.*'q'"):
        prepare(source)
    prepared = prepare(source, on_bad_row="skip", max_bad_fraction=0.1)
    assert places(prepared) == [("rows.jsonl:1", "missing column")]


def test_a_first_row_without_messages_does_not_end_a_run_that_skips_whatever_the_source(prepare, write):
    source = {"type": "huggingface", "name_or_path": write(lines({"text": "web"}, *[GOOD] * 9))}
    with pytest.raises(BadRow, match=r"rows\.jsonl:1.*no column `messages`"):
        prepare(source)
    prepared = prepare(source, on_bad_row="skip", max_bad_fraction=0.1)
    assert places(prepared) == [("rows.jsonl:1 (row 0)", "missing column")]


def test_a_source_without_messages_is_told_before_anything_is_tokenised(prepare, write):
    source = {"type": "huggingface", "name_or_path": write(lines(*[{"text": "web"}] * 30))}
    with pytest.raises(DataError, match="chats need a column `messages`; found text"):
        prepare(source, on_bad_row="skip", max_bad_fraction=1)


def test_a_run_in_which_every_row_is_bad_says_what_was_wrong_with_them(prepare, write):
    path = write(lines(*[speakers("user", "user")] * 3))
    with pytest.raises(DataError, match="no train rows are left") as caught:
        prepare(path, on_bad_row="skip", max_bad_fraction=1)
    assert "3 rows refused, roles out of order" in caught.value.remedy


TOKENS = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
BAD_TOKENS = {
    "malformed JSON": b"{",
    "missing column": {"input_ids": [5, 6]},
    "wrong type": {"input_ids": [5, "six"], "labels": [5, 6]},
    "columns of different lengths": {"input_ids": [5, 6], "labels": [5]},
    "no tokens": {"input_ids": [], "labels": []},
    "nothing to train on": {"input_ids": [5, 6], "labels": [5, -100]},
}


@pytest.mark.parametrize("category", BAD_TOKENS)
def test_a_bad_row_of_tokens_is_told_or_skipped_like_any_other(prepare, write, category):
    source = {"name_or_path": write(lines(BAD_TOKENS[category], *[TOKENS] * 9)), "process": False}
    with pytest.raises(BadRow) as caught:
        prepare(source)
    assert "rows.jsonl:1" in caught.value.where
    prepared = prepare(source, on_bad_row="skip", max_bad_fraction=0.1)
    assert prepared.facts["counts"] == {"rows read": 10, f"rows refused, {category}": 1, "rows kept": 9}
    assert places(prepared)[0][1] == category


def test_rows_of_tokens_without_labels_in_a_table_are_refused_by_number(prepare, tmp_path):
    import datasets

    bad = {"input_ids": [5, 6], "labels": [5, -100]}
    datasets.Dataset.from_list([TOKENS, bad, TOKENS]).save_to_disk(str(tmp_path / "saved"))
    source = {"name_or_path": str(tmp_path / "saved"), "process": False}
    with pytest.raises(BadRow, match="row 1"):
        prepare(source)
    prepared = prepare(source, on_bad_row="skip", max_bad_fraction=0.5)
    assert prepared.facts["counts"] == {"rows read": 3, "rows refused, nothing to train on": 1, "rows kept": 2}


def test_what_was_refused_is_said_with_the_first_places(prepare, write, caplog, capsys):
    with caplog.at_level(logging.WARNING):
        prepare(write(lines(b"{", *[GOOD] * 20)), on_bad_row="skip")
    said = capsys.readouterr()
    assert "1 row refused, malformed JSON" in said.out + said.err
    assert "rows.jsonl:1: this line is not JSON" in said.out + said.err


def test_plain_text_for_a_trainer_of_chats_is_told_which_trainer_takes_it(prepare, write):
    with pytest.raises(DataError, match=r"rows\.jsonl:1: holds plain text.*the columns text") as caught:
        prepare(write(lines(*[{"text": "web"}] * 30)), on_bad_row="skip")
    assert "type: causal" in caught.value.remedy
    assert caught.value.exit_code == 4
