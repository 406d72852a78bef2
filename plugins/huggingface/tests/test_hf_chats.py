"""The source ``huggingface_instruct``: rows of many shapes become chats with every role, in order."""

from __future__ import annotations

import pytest

from arctic_huggingface.source import HFInstructDataSource
from arctic_training.errors import DataError

ASK = {"role": "user", "content": "Two plus two?"}
ANSWER = {"role": "assistant", "content": "Four."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture
def chats(make, write_lines):
    def chats(*rows, split="train", **keys):
        source = make(HFInstructDataSource, name_or_path=str(write_lines(rows)), split=split, **keys)
        return source.load(source.config, split)

    return chats


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [SYSTEM, ASK, ANSWER]}, [SYSTEM, ASK, ANSWER]),
        ({"conversation": [ASK, ANSWER]}, [ASK, ANSWER]),
        (
            {"conversations": [{"from": "human", "value": "Two plus two?"}, {"from": "gpt", "value": "Four."}]},
            [ASK, ANSWER],
        ),
        (
            {"system": "Be brief.", "conversations": [{"from": "human", "value": "Two plus two?"}]},
            [SYSTEM, ASK],
        ),
        ({"instruction": "Two plus two?", "input": "", "output": "Four."}, [ASK, ANSWER]),
        (
            {"instruction": "Add.", "input": "2 2", "output": "Four.", "system": "Be brief."},
            [SYSTEM, {"role": "user", "content": "Add.\n\n2 2"}, ANSWER],
        ),
        (
            {"instruction": "Two plus two?", "output": "Four.", "history": [["One plus one?", "Two."]]},
            [{"role": "user", "content": "One plus one?"}, {"role": "assistant", "content": "Two."}, ASK, ANSWER],
        ),
        ({"instruction": "Two plus two?", "context": None, "response": "Four.", "category": "x"}, [ASK, ANSWER]),
        ({"prompt": "Two plus two?", "completion": "Four."}, [ASK, ANSWER]),
        ({"prompt": "Two plus two?", "response": "Four."}, [ASK, ANSWER]),
        ({"prompt": [SYSTEM, ASK], "completion": [ANSWER]}, [SYSTEM, ASK, ANSWER]),
        ({"question": "Two plus two?", "answer": "Four."}, [ASK, ANSWER]),
        ({"query": "Two plus two?", "response": "Four."}, [ASK, ANSWER]),
        ({"problem": "Two plus two?", "solution": "Four."}, [ASK, ANSWER]),
    ],
)
def test_known_shapes_need_no_mapping(chats, row, expected):
    assert chats(row)[0] == {"messages": expected}


def test_rows_of_different_shapes_may_stand_in_one_file(chats):
    rows = chats({"messages": [ASK, ANSWER]}, {"question": "Two plus two?", "answer": "Four."})
    assert [row["messages"] for row in rows] == [[ASK, ANSWER], [ASK, ANSWER]]


def test_the_order_and_every_role_of_a_long_chat_survive(chats):
    turns = [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("tool", "c"),
        ("tool", "d"),
        ("assistant", "e"),
        ("user", "f"),
    ]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert chats({"messages": messages})[0]["messages"] == messages


def test_fields_of_a_message_beside_role_and_content_survive(chats):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    messages = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        {"role": "assistant", "content": "Four.", "name": None},
    ]
    loaded = chats({"messages": messages})[0]["messages"]
    assert loaded[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert loaded[2] == messages[2]
    assert loaded[3] == ANSWER


def test_tools_that_a_row_offers_come_with_the_chat(chats):
    row = {"conversations": [{"from": "human", "value": "Two plus two?"}], "tools": '[{"name": "add"}]'}
    assert chats(row)[0]["tools"] == [{"name": "add"}]
    assert "tools" not in chats({"messages": [ASK], "tools": ""})[0]


def test_a_mapping_from_roles_to_columns(chats):
    rows = chats(
        {"hint": "Be brief.", "q": "Two plus two?", "a": "Four."},
        {"hint": "", "q": "Two plus two?", "a": "Four."},
        role_mapping={"system": "hint", "user": "q", "assistant": "a"},
    )
    assert [row["messages"] for row in rows] == [[SYSTEM, ASK, ANSWER], [ASK, ANSWER]]


def test_a_mapping_from_roles_to_values_of_a_field_keeps_the_order_and_roles_it_does_not_name(chats):
    spoken = [
        ("system", "Be brief."),
        ("human", "Hello"),
        ("human", "Two plus two?"),
        ("bot7", "Four."),
        ("tool", "done"),
    ]
    rows = chats(
        {"talk": [{"who": who, "said": said} for who, said in spoken]},
        role_mapping={"user": "talk.who.human", "assistant": "talk.who.bot7"},
        content_key="said",
    )
    assert rows[0]["messages"] == [
        SYSTEM, {"role": "user", "content": "Hello"}, ASK, ANSWER, {"role": "tool", "content": "done"},
    ]  # fmt: skip


def test_a_mapping_may_join_a_column_and_a_list(chats):
    rows = chats(
        {"hint": "Be brief.", "talk": [{"from": "q", "value": "Two plus two?"}, {"from": "a", "value": "Four."}]},
        role_mapping={"system": "hint", "user": "talk.from.q", "assistant": "talk.from.a"},
    )
    assert rows[0]["messages"] == [SYSTEM, ASK, ANSWER]


def test_a_mapping_may_reach_into_a_column(chats):
    rows = chats({"x": {"q": "Two plus two?"}, "y.z": "Four."}, role_mapping={"user": "x.q", "assistant": "y.z"})
    assert rows[0]["messages"] == [ASK, ANSWER]


CALL = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'}


def test_a_call_of_a_function_becomes_a_tool_call_where_the_template_knows_them(chats, run):
    row = {"conversations": [{"from": "human", "value": "Two plus two?"}, CALL, {"from": "observation", "value": "4"}]}
    run.trainer.tokenizer = type("Tokenizer", (), {"chat_template": "{{ message.tool_calls }}"})
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    assert chats(row)[0]["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
    ]
    assert list(chats(row)[0]["messages"][1]["tool_calls"][0]["function"]) == ["name", "arguments"]  # as it was written
    run.trainer.tokenizer = type("Tokenizer", (), {"chat_template": "{{ message.content }}"})
    assert chats(row)[0]["messages"][1] == {"role": "assistant", "content": CALL["value"]}


def test_a_call_of_a_function_is_refused_where_the_template_would_leave_it_out(chats, run):
    run.trainer.tokenizer = type("Tokenizer", (), {"chat_template": "{{ message.content }}"})
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}
    with pytest.raises(
        DataError, match=r"calls a function in messages\[1\], and the chat template writes no tool_calls"
    ):
        chats({"messages": [ASK, call]})


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]},
        {"tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2}'}}]},
        {"tool_calls": [{"name": "add", "arguments": {"a": 2}}]},
        {"tool_calls": '[{"name": "add", "arguments": {"a": 2}}]'},
        {"function_call": {"name": "add", "arguments": '{"a": 2}'}},
    ],
)
def test_calls_are_given_to_the_template_in_one_form_with_arguments_as_an_object(chats, fields):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    loaded = chats({"messages": [ASK, {"role": "assistant", "content": None, **fields}]})[0]["messages"][1]
    assert loaded == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_what_a_table_fills_in_is_taken_out_of_tools_and_calls(make, tmp_path):
    import datasets

    calls = [{"name": "add", "arguments": {"a": 2}}, {"name": "say", "arguments": {"text": "four"}}]
    messages = [ASK, *({"role": "assistant", "content": "", "tool_calls": [call]} for call in calls)]
    tools = [{"name": "add", "parameters": {"a": {"type": "number"}}}, {"name": "say", "parameters": {"text": {}}}]
    datasets.Dataset.from_list([{"messages": messages, "tools": tools}]).save_to_disk(str(tmp_path / "saved"))
    source = make(HFInstructDataSource, name_or_path=str(tmp_path / "saved"), split="train")
    chat = source.load(source.config, "train")[0]
    assert [message["tool_calls"][0]["function"] for message in chat["messages"][1:]] == calls
    assert chat["tools"][0] == tools[0]


def test_reasoning_and_other_fields_of_a_message_are_kept(chats):
    answer = {**ANSWER, "reasoning_content": "2 + 2 = 4", "reasoning": "2 + 2 = 4", "train": False}
    assert chats({"messages": [ASK, answer]})[0]["messages"] == [ASK, answer]


def test_content_in_parts_of_text_is_their_text(chats):
    parts = [{"type": "text", "text": "Two plus "}, {"type": "text", "text": "two?"}]
    assert chats({"messages": [{"role": "user", "content": parts}, ANSWER]})[0]["messages"] == [ASK, ANSWER]


def test_messages_of_a_csv_file_are_text(make, tmp_path):
    text = '[{""role"": ""user"", ""content"": ""Two plus two?""}]'
    (tmp_path / "rows.csv").write_text(f'messages\n"{text}"\n')
    source = make(HFInstructDataSource, name_or_path=str(tmp_path / "rows.csv"), split="train")
    assert source.load(source.config, "train")[0] == {"messages": [ASK]}


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("messages", "a"),
        ("sharegpt", "b"),
        ("alpaca", "c"),
        ("prompt_completion", "d"),
        ("question_answer", "e"),
        ("preference", "d"),
    ],
)
def test_the_recipe_may_name_the_format_of_rows_that_have_the_columns_of_several(chats, format, expected):
    row = {
        "messages": [{"role": "user", "content": "a"}, ANSWER],
        "conversations": [{"from": "human", "value": "b"}, {"from": "gpt", "value": "Four."}],
        "instruction": "c",
        "output": "Four.",
        "prompt": "d",
        "completion": "Four.",
        "question": "e",
        "answer": "Four.",
        "chosen": "Four.",
        "rejected": "Five.",
    }
    assert chats(row, format=format)[0]["messages"] == [{"role": "user", "content": expected}, ANSWER]


def test_a_format_beside_a_mapping_is_told_before_anything_is_loaded():
    config = HFInstructDataSource.config_class()(
        name_or_path="x", split="train", role_mapping={"user": "q"}, format="alpaca"
    )
    assert [key for key, _ in config.check()] == ["format"]


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({"text": "web"}, {}, "none of the chats that are known; the row has the columns text"),
        ({"messages": []}, {}, "holds no messages in 'messages'"),
        ({"messages": [{"content": "x"}]}, {}, r"whose message messages\[0\] is: its fields are content"),
        ({"messages": [{"role": "user"}]}, {}, r"no text in messages\[0\]"),
        ({"messages": [{"role": "user", "content": None}]}, {}, r"no text in messages\[0\]"),
        ({"messages": [ASK, {"role": "wizard", "content": "x"}]}, {}, r"unknown role 'wizard' in messages\[1\]"),
        ({"messages": ["hello"]}, {}, r"holds text in messages\[0\]"),
        ({"question": "x", "answer": 4}, {}, "holds a number in 'answer', not text"),
        ({"q": "x", "a": "y"}, {"role_mapping": {"user": "p", "assistant": "a"}}, "no column 'p'"),
        ({"q": "x", "a": None}, {"role_mapping": {"user": "q", "assistant": "a"}}, "holds nothing in 'a'"),
        ({"messages": [ASK]}, {"content_key": "said"}, "which content_key names"),
        ({"messages": [ASK], "tools": "{"}, {}, "'tools' that is not JSON"),
    ],
)
def test_a_row_that_is_no_chat_is_refused_with_its_place(chats, row, keys, message):
    with pytest.raises(DataError, match=message) as caught:
        list(chats({"messages": [ASK]}, row, **keys) if not keys else chats(row, **keys))
    assert caught.value.where.endswith(f"rows.jsonl:{1 if keys else 2}")


def test_a_value_that_is_no_text_is_to_be_corrected_and_no_mapping_asked_for_unless_one_is_given(chats):
    row = {"prompt": 5, "completion": "four"}
    with pytest.raises(DataError) as caught:
        chats(row)[0]
    assert caught.value.remedy == "correct the row, or remove it"
    with pytest.raises(DataError) as caught:
        chats(row, role_mapping={"user": "prompt", "assistant": "completion"})[0]
    assert "role_mapping" in caught.value.remedy


def test_the_place_of_a_row_survives_slices_and_selections(chats):
    rows = chats({"messages": [ASK]}, {"messages": [ASK]}, {"text": "web"}, split="train[1:]").select([0, 1])
    with pytest.raises(DataError) as caught:
        rows[1]
    assert caught.value.where.endswith("rows.jsonl:3")


def test_rows_of_a_columnar_source_are_named_by_number_and_lose_their_empty_fields(make, tmp_path):
    import datasets

    rows = [{"messages": [ASK, {**ANSWER, "name": "robot"}]}, {"messages": [{"role": "user", "content": None}]}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    source = make(HFInstructDataSource, name_or_path=str(tmp_path / "saved"), split="train")
    loaded = source.load(source.config, "train")
    assert loaded[0]["messages"] == [ASK, {**ANSWER, "name": "robot"}]
    with pytest.raises(DataError, match="row 1: "):
        loaded.select([1])[0]


def test_rows_that_are_prepared_already_are_left_alone(chats):
    row = {"input_ids": [1, 2], "labels": [-100, 2]}
    assert chats(row, process=False)[0] == row


def test_preference_data_is_read_for_its_chats(make, monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, **keys: asked.append(keys["split"]) or [{"messages": [ASK]}]
    )
    source = make(HFInstructDataSource, name_or_path="HuggingFaceH4/ultrafeedback_binarized", split="train")
    source.load(source.config, "train")
    assert asked == ["train_sft"]


def test_a_mapping_with_an_empty_part_is_told_before_anything_is_loaded():
    config = HFInstructDataSource.config_class()(name_or_path="x", split="train", role_mapping={"user": "a..b"})
    assert [key for key, _ in config.check()] == ["role_mapping"]
