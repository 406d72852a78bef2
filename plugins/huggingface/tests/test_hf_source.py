"""The source ``huggingface``: rows as they were written, from files of every format and from saved folders."""

from __future__ import annotations

import csv
import json
import pickle

import pytest

from arctic_huggingface.source import HFDataSource
from arctic_training.errors import DataError

ROWS = [{"number": number, "text": f"text {number}"} for number in range(10)]


@pytest.fixture
def load(make):
    def load(path, split="train", **keys):
        source = make(HFDataSource, name_or_path=str(path), split=split, **keys)
        return source.load(source.config, split)

    return load


def numbers(rows):
    return [int(row["number"]) for row in rows]


def write(path, form):
    if form == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif form == "json":
        path.write_text(json.dumps(ROWS))
    elif form == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["number", "text"], delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("train[:30%]", range(3)),
        ("train[2:5]", range(2, 5)),
        ("train[-2:]", range(8, 10)),
        ("train[:1]+train[90%:]", [0, 9]),
    ],
)
def test_files_of_every_format_load_whole_and_in_slices(load, tmp_path, form, split, expected):
    rows = load(write(tmp_path / f"rows.{form}", form), split)
    assert numbers(rows) == list(expected)
    assert rows[0]["text"] == f"text {expected[0]}"


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
def test_a_glob_loads_its_files_in_the_order_of_their_names(load, tmp_path, form):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.{form}", form)
    assert numbers(load(tmp_path / f"*.{form}")) == [*range(10), *range(10)]


def test_a_relative_path_starts_beside_the_recipe_and_else_in_the_working_directory(load, tmp_path, run, monkeypatch):
    from types import SimpleNamespace

    for name in ("recipe", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    run.config.recipe = SimpleNamespace(directory=tmp_path / "recipe", path=tmp_path / "recipe" / "recipe.yaml")
    write(tmp_path / "work" / "rows.jsonl", "jsonl")
    assert len(load("rows.jsonl")) == 10
    (tmp_path / "recipe" / "rows.jsonl").write_text('{"number": 1}\n')
    assert len(load("rows.jsonl")) == 1


def test_fields_that_some_rows_lack_or_give_another_type_survive(load, write_lines):
    rows = [{"a": 1}, {"a": "one", "b": [1, "two", None]}, {"c": {"d": None}}, {"a": None}]
    assert list(load(write_lines(rows))) == rows


def test_text_in_csv_stays_text(load, tmp_path):
    (tmp_path / "rows.csv").write_text('code,text\n007,"two\nlines"\nNA,\n')
    assert list(load(tmp_path / "rows.csv")) == [{"code": "007", "text": "two\nlines"}, {"code": "NA", "text": ""}]


def test_csv_takes_a_delimiter(load, tmp_path):
    (tmp_path / "rows.csv").write_text("a;b\n1;2\n")
    assert list(load(tmp_path / "rows.csv", kwargs={"delimiter": ";"})) == [{"a": "1", "b": "2"}]


def test_json_lines_under_the_ending_json_load(load, tmp_path):
    (tmp_path / "rows.json").write_text('{"number": 1}\n{"number": 2}\n')
    assert numbers(load(tmp_path / "rows.json")) == [1, 2]


def test_empty_lines_and_a_byte_order_mark_are_no_rows(load, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"number": 1}\r\n\r\n  \n{"number": 2}')
    assert numbers(load(tmp_path / "rows.jsonl")) == [1, 2]


def test_an_empty_file_has_no_rows(load, tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    assert len(load(tmp_path / "rows.jsonl")) == 0


def test_rows_of_a_file_go_to_worker_processes_without_their_content(load, write_lines):
    rows = load(write_lines([{"text": "x" * 10_000}] * 20))
    sent = pickle.dumps(rows)
    assert len(sent) < 5_000
    assert list(pickle.loads(sent)) == list(rows)


def test_a_saved_dataset_loads(load, tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert numbers(load(tmp_path / "saved", "train[:4]")) == [0, 1, 2, 3]


def test_the_splits_of_a_saved_dataset_load_by_name_and_by_mapping(load, tmp_path):
    import datasets

    splits = {"train_sft": datasets.Dataset.from_list(ROWS[:6]), "test_sft": datasets.Dataset.from_list(ROWS[6:])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert numbers(load(tmp_path / "saved", "test_sft")) == [6, 7, 8, 9]
    assert numbers(load(tmp_path / "saved", "train[:2]", split_mapping={"train": "train_sft"})) == [0, 1]
    with pytest.raises(DataError, match="no split 'train'; the splits are train_sft, test_sft") as caught:
        load(tmp_path / "saved")
    assert "split_mapping: {train: NAME}" in caught.value.remedy


def test_a_folder_of_data_files_loads_by_the_library_s_rules(load, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00001.parquet", "parquet")
    write(tmp_path / "data" / "test-00000-of-00001.parquet", "parquet")
    assert numbers(load(tmp_path, "test[:2]")) == [0, 1]
    with pytest.raises(DataError, match="no split 'eval'"):
        load(tmp_path, "eval")


def test_a_folder_with_a_file_that_is_broken_is_refused_with_how_to_be_told_more(load, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.json").write_text("not JSON")
    (tmp_path / "data" / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"data '.*data': ") as caught:
        load(tmp_path / "data", "train")
    assert "told by file and line" in caught.value.remedy


def test_known_datasets_have_their_splits_mapped(make, monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **kwargs: asked.append((name, kwargs)) or ROWS)
    for split in ("train[:5%]", "eval"):
        source = make(
            HFDataSource, name_or_path="HuggingFaceH4/ultrachat_200k", split=split, kwargs={"revision": "main"}
        )
        source.load(source.config, split)
    assert [kwargs for _, kwargs in asked] == [
        {"split": "train_sft[:5%]", "revision": "main"},
        {"split": "test_sft", "revision": "main"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"a": 1}\n{"a": \n', r"rows\.jsonl:2: this line is not JSON"),
        ("rows.jsonl", '{"a": 1}\n\n[1, 2]\n', r"rows\.jsonl:3: a row must be an object"),
        ("rows.json", "[1, 2", "not JSON"),
        ("rows.json", '{\n"a": 1\n}', "must hold a list of objects"),
        ("rows.json", "[1]", "row 0: a row must be an object"),
        ("rows.csv", "a,b\n1\n", r"rows\.csv:2: this line has fewer fields"),
        ("rows.csv", "a,b\n1,2,3\n", r"rows\.csv:2: this line has more fields"),
        ("rows.parquet", "no parquet", "cannot be read as Parquet"),
        ("rows.txt", "text", "files ending in '.txt' cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_place(load, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(load(tmp_path / name))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing/*.jsonl", "missing.csv"])
def test_a_file_that_is_not_there_is_refused(load, name):
    with pytest.raises(DataError, match="there is no file"):
        load(name)


def test_a_hub_name_without_network_says_what_to_do(load):
    with pytest.raises(DataError, match="data 'nobody/nothing'"):
        load("nobody/nothing")


@pytest.mark.parametrize("name", ["train_sft", "validation", "test", "all"])
def test_a_split_that_files_do_not_have_is_refused_unless_it_is_mapped(load, write_lines, name):
    path = write_lines(ROWS)
    with pytest.raises(DataError, match=f"no split {name!r}; all rows of a file are its split 'train'"):
        load(path, f"train[:3]+{name}")
    assert numbers(load(path, f"{name}[4:6]", split_mapping={name: "train"})) == [4, 5]


def test_the_split_that_evaluation_asks_for_is_none_of_a_file_to_train_on(make, write_lines):
    from arctic_training.config import annotate

    source = make(HFDataSource, name_or_path=str(write_lines(ROWS)), split="eval")
    annotate(source.config, section_path=("data", "eval_sources", 0))
    assert numbers(source.load(source.config, "eval")) == [*range(10)]
    annotate(source.config, section_path=("data", "sources", 0))
    with pytest.raises(DataError, match="no split 'eval'"):
        source.load(source.config, "eval")


def test_a_saved_dataset_without_splits_has_the_name_it_was_saved_under(load, tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(ROWS, split="test")
    rows.save_to_disk(str(tmp_path / "saved"))
    assert numbers(load(tmp_path / "saved", "test[:2]")) == [0, 1]
    with pytest.raises(DataError, match="no split 'validation'; the splits are train, eval, test"):
        load(tmp_path / "saved", "validation")


def test_arguments_that_do_nothing_are_refused(load, write_lines):
    with pytest.raises(DataError, match="kwargs has revision"):
        load(write_lines(ROWS), kwargs={"revision": "main"})


def test_files_of_different_formats_are_refused(load, tmp_path):
    write(tmp_path / "a.csv", "csv")
    write(tmp_path / "b.jsonl", "jsonl")
    with pytest.raises(DataError, match="differ in format"):
        load(tmp_path / "*")


def test_the_fingerprint_is_that_of_content_and_options_not_of_the_path(make, tmp_path):
    def fingerprint(name, split="train", text='{"a": 1}\n'):
        (tmp_path / name).write_text(text)
        return make(HFDataSource, name_or_path=str(tmp_path / name), split=split).fingerprint()

    first = fingerprint("a.jsonl")
    assert fingerprint("b.jsonl") == first
    assert len({first, fingerprint("a.jsonl", text='{"a": 2}\n'), fingerprint("a.jsonl", split="train[:1]")}) == 3


def test_the_names_of_files_within_a_folder_count_and_where_the_folder_lies_does_not(make, tmp_path):
    def fingerprint(folder, name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text('{"a": 1}\n')
        return make(HFDataSource, name_or_path=str(tmp_path / folder), split="train").fingerprint()

    first = fingerprint("one", "train.jsonl")
    assert fingerprint("other", "train.jsonl") == first
    assert fingerprint("third", "test.jsonl") != first


def test_the_fingerprint_holds_what_a_known_name_means_and_no_credentials(make, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')

    def parts(**keys):
        return make(HFDataSource, name_or_path=str(tmp_path / "a.jsonl"), **keys).fingerprint_parts()

    assert parts(split="train", split_mapping={"train": "train[:5]"})["split"] == "train[:5]"
    assert parts(kwargs={"token": "a", "storage_options": {"key": "b"}}) == parts()
    assert parts(kwargs={"delimiter": ";"}) != parts()


def test_only_a_commit_makes_a_hub_name_certain(make):
    def fingerprint(**kwargs):
        return make(HFDataSource, name_or_path="nobody/nothing", split="train", kwargs=kwargs).fingerprint()

    assert fingerprint() is None
    assert fingerprint(revision="main") is None
    assert fingerprint(revision="0" * 40) != fingerprint(revision="1" * 40)


def test_a_source_that_names_a_folder_is_known_by_its_files(make, tmp_path):
    import datasets

    def fingerprint(rows):
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
        return make(HFDataSource, name_or_path=str(tmp_path / "saved"), split="train").fingerprint()

    assert fingerprint(ROWS) != fingerprint(ROWS[:3])
