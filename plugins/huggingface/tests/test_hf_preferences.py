"""The sources for other objectives than learning chats: pairs of answers, answers with a label, plain text."""

from __future__ import annotations

import json

import pytest

from arctic_huggingface import faults
from arctic_huggingface.source import HFInstructDataSource
from arctic_huggingface.task_sources import HFLabelledDataSource, HFPreferenceDataSource
from arctic_training.errors import BadRow, DataError

ASK = {"role": "user", "content": "Two plus two?"}
FOUR = {"role": "assistant", "content": "Four."}
FIVE = {"role": "assistant", "content": "Five."}
SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = {"chosen": [ASK, FOUR], "rejected": [ASK, FIVE]}


@pytest.fixture
def load(make, write_lines):
    def load(source, *rows, **keys):
        made = make(source, name_or_path=str(write_lines(rows)), split="train", **keys)
        return made.load(made.config, "train")

    return load


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five."}, PAIR),
        ({"question": "Two plus two?", "chosen": "Four.", "rejected": "Five.", "score": 4}, PAIR),
        (
            {"instruction": "Add.", "input": "2 2", "chosen": "Four.", "rejected": "Five."},
            {
                "chosen": [{"role": "user", "content": "Add.\n\n2 2"}, FOUR],
                "rejected": [{"role": "user", "content": "Add.\n\n2 2"}, FIVE],
            },
        ),
        (
            {"system": "Be brief.", "prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five."},
            {"chosen": [SYSTEM, ASK, FOUR], "rejected": [SYSTEM, ASK, FIVE]},
        ),
        ({"prompt": [ASK], "chosen": [FOUR], "rejected": [FIVE]}, PAIR),
        ({"prompt": [ASK], "chosen": "Four.", "rejected": [FIVE]}, PAIR),
        ({"messages": [ASK], "chosen": FOUR, "rejected": FIVE}, PAIR),
        ({"chosen": [ASK, FOUR], "rejected": [ASK, FIVE]}, PAIR),
        ({"prompt": "Two plus two?", "chosen": [ASK, FOUR], "rejected": [ASK, FIVE], "messages": [ASK, FOUR]}, PAIR),
        (
            {"system": "Be brief.", "chosen": [ASK, FOUR], "rejected": [ASK, FIVE]},
            {"chosen": [SYSTEM, ASK, FOUR], "rejected": [SYSTEM, ASK, FIVE]},
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Two plus two?"}],
                "chosen": {"from": "gpt", "value": "Four."},
                "rejected": {"from": "gpt", "value": "Five."},
            },
            PAIR,
        ),
        (
            {"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five.", "tools": '[{"name": "add"}]'},
            {**PAIR, "tools": [{"name": "add"}]},
        ),
    ],
)
def test_preference_rows_of_every_format_become_two_chats_with_one_prompt(load, row, expected):
    assert load(HFPreferenceDataSource, row)[0] == expected


def test_columns_may_have_other_names(load):
    row = {"q": "Two plus two?", "better": "Four.", "worse": "Five."}
    mapping = {"prompt": "q", "chosen": "better", "rejected": "worse"}
    assert load(HFPreferenceDataSource, row, column_mapping=mapping)[0] == PAIR
    config = HFPreferenceDataSource.config_class()(name_or_path="x", split="train", column_mapping={"best": "better"})
    assert [key for key, _ in config.check()] == ["column_mapping"]


def test_a_prompt_of_a_csv_file_may_be_messages_as_text(make, tmp_path):
    messages = json.dumps([SYSTEM, ASK]).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'messages,chosen,rejected\n"{messages}",Four.,Five.\n')
    source = make(HFPreferenceDataSource, name_or_path=str(tmp_path / "rows.csv"), split="train")
    assert source.load(source.config, "train")[0]["rejected"] == [SYSTEM, ASK, FIVE]


@pytest.mark.parametrize(
    ("row", "category"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, faults.EQUAL_ANSWERS),
        ({"prompt": "a", "chosen": "b"}, faults.MISSING_COLUMN),
        ({"chosen": "b", "rejected": "c"}, faults.MISSING_COLUMN),
        ({"prompt": "a", "chosen": "b", "rejected": None}, faults.MISSING_TEXT),
        ({"prompt": "a", "chosen": "b", "rejected": 4}, faults.WRONG_TYPE),
        ({"prompt": "a", "chosen": [], "rejected": "b"}, faults.EMPTY_CHAT),
        ({"chosen": [ASK, FOUR], "rejected": [{**ASK, "content": "Three?"}, FIVE]}, faults.OTHER_PROMPT),
        ({"chosen": [ASK, FOUR], "rejected": [ASK, FOUR, ASK, FIVE]}, faults.OTHER_PROMPT),
        ({"messages": [ASK, FOUR], "chosen": "Four.", "rejected": "Five."}, faults.OTHER_PROMPT),
        ({"chosen": [ASK, FOUR], "rejected": [ASK]}, faults.NO_ANSWER),
    ],
)
def test_a_row_that_is_no_pair_is_refused(load, row, category):
    rows = load(HFPreferenceDataSource, {"prompt": "a", "chosen": "b", "rejected": "c"}, row)
    with pytest.raises(BadRow, match=f"the row has the columns {', '.join(row)}") as caught:
        rows[1]
    assert caught.value.category == category
    assert caught.value.where.endswith("rows.jsonl:2")


def test_chats_are_made_of_preference_rows_only_where_the_recipe_says_so(load):
    row = {"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five."}
    with pytest.raises(DataError) as caught:
        load(HFInstructDataSource, row)
    assert "format: preference" in caught.value.remedy
    assert load(HFInstructDataSource, row, format="preference")[0] == {"messages": [ASK, FOUR]}
    assert load(HFInstructDataSource, {**row, "rejected": "Four."}, format="preference")[0] == {"messages": [ASK, FOUR]}


def test_a_prompt_in_messages_beside_two_answers_is_not_taken_for_a_chat(load):
    sharegpt = {"conversations": [{"from": "human", "value": "a"}], "chosen": FOUR, "rejected": FIVE}
    for row in (sharegpt, {"messages": [ASK], "chosen": FOUR, "rejected": FIVE}):
        with pytest.raises(DataError, match="two answers, chosen and rejected"):
            load(HFInstructDataSource, row)
    whole = {"messages": [ASK, FOUR], "chosen": [ASK, FOUR], "rejected": [ASK, FIVE]}
    assert load(HFInstructDataSource, whole)[0] == {"messages": [ASK, FOUR]}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, FOUR], "label": True},
        {"conversations": [{"from": "human", "value": "Two plus two?"}, {"from": "gpt", "value": "Four."}], "label": 1},
        {"prompt": "Two plus two?", "completion": "Four.", "label": True},
        {"prompt": [ASK], "completion": [FOUR], "label": "true"},
    ],
)
def test_labelled_rows_of_every_format_become_a_chat_and_a_label(load, row):
    assert load(HFLabelledDataSource, row)[0] == {"messages": [ASK, FOUR], "label": True}


def test_the_label_may_stand_in_another_column_and_the_chat_in_mapped_ones(load):
    row = {"q": "Two plus two?", "a": "Five.", "thumb": False}
    rows = load(HFLabelledDataSource, row, label_column="thumb", role_mapping={"user": "q", "assistant": "a"})
    assert rows[0] == {"messages": [ASK, FIVE], "label": False}


@pytest.mark.parametrize(
    ("row", "category"),
    [
        ({"messages": [ASK, FOUR]}, faults.MISSING_COLUMN),
        ({"messages": [ASK, FOUR], "label": None}, faults.WRONG_TYPE),
        ({"messages": [ASK, FOUR], "label": 0.5}, faults.WRONG_TYPE),
        ({"messages": [ASK], "label": True}, faults.NO_ANSWER),
        ({"messages": [], "label": True}, faults.EMPTY_CHAT),
        ({"messages": [ASK, {"role": "assistant", "content": " "}], "label": True}, faults.EMPTY_ANSWER),
    ],
)
def test_a_row_without_answer_or_label_is_refused(load, row, category):
    rows = load(HFLabelledDataSource, {"messages": [ASK, FOUR], "label": False}, row)
    with pytest.raises(BadRow) as caught:
        rows[1]
    assert caught.value.category == category


def test_a_pair_is_no_labelled_answer_and_the_trainers_of_pairs_are_named(load):
    row = {"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five."}
    with pytest.raises(DataError, match="two answers, chosen and rejected") as caught:
        load(HFLabelledDataSource, row)
    for trainer in ("its label", "type: dpo", "type: reward"):
        assert trainer in caught.value.remedy
    assert "format: preference" not in caught.value.remedy
    told = HFLabelledDataSource.config_class()(name_or_path="rows.jsonl", format="preference").check()
    assert ("format", f"rows with two answers have no label: {caught.value.remedy}") in list(told)


def test_answers_that_are_labelled_bad_are_not_learnt_unless_the_recipe_says_so(load):
    row = {"messages": [ASK, FIVE], "label": False}
    with pytest.raises(DataError, match="whose label says") as caught:
        load(HFInstructDataSource, row)
    assert "huggingface_labelled" in caught.value.remedy
    assert load(HFInstructDataSource, row, format="messages")[0] == {"messages": [ASK, FIVE]}
    assert load(HFInstructDataSource, {**row, "label": "science"})[0] == {"messages": [ASK, FIVE]}
