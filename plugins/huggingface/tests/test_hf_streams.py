"""Streams of the sources: the same rows as loaded ones, in every format, from any position, also after a restart."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_huggingface import streams
from arctic_huggingface.json_lines import JsonLines
from arctic_huggingface.places import DataFile
from arctic_huggingface.source import HFDataSource, HFInstructDataSource
from arctic_huggingface.streams import LineStream
from arctic_training.errors import BadRow, DataError
from arctic_training.stream import LoadedStream

ROWS = [{"question": f"question {number}?", "answer": f"answer {number}"} for number in range(11)]
ROWS[3] = {"question": "nobody knows", "answer": None}
ROWS[5] = {"question": "ä", "answer": "two\nlines"}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("ARCTIC_HOME", str(tmp_path / "home"))


@pytest.fixture
def memory():
    import fsspec

    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/streams"):
        system.rm("/streams", recursive=True)


@pytest.fixture
def source(make):
    return lambda name, kind=HFDataSource, **keys: make(kind, name_or_path=str(name), **{"split": "train", **keys})


def parquet(rows):
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=3)
    return buffer.getvalue()


def lines(rows):
    return b"\n\n".join(json.dumps(row).encode() for row in rows)


def table(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.fixture
def written(tmp_path, memory):
    """Writes the rows in a format, in two files where there can be several, and gives the name to load them by."""

    def write(form):
        import datasets

        if form == "saved":
            datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
            return tmp_path / "saved"
        name, write = {
            "jsonl": ("jsonl", lines),
            "json": ("json", lambda rows: json.dumps(rows).encode()),
            "csv": ("csv", table),
            "parquet": ("parquet", parquet),
            "folder": ("parquet", parquet),
            "gz": ("jsonl.gz", lambda rows: gzip.compress(lines(rows))),
            "memory jsonl": ("jsonl", lines),
            "memory gz": ("jsonl.gz", lambda rows: gzip.compress(lines(rows))),
            "memory parquet": ("parquet", parquet),
        }[form]
        (tmp_path / "data").mkdir()
        for number, rows in enumerate((ROWS[:7], ROWS[7:])):
            (tmp_path / "data" / f"train-{number}.{name}").write_bytes(write(rows))
        if form == "folder":
            return tmp_path / "data"
        if form.startswith("memory"):
            for path in (tmp_path / "data").iterdir():
                memory.pipe(f"/streams/{path.name}", path.read_bytes())
            return f"memory://streams/*.{name}"
        return tmp_path / "data" / f"*.{name}"

    return write


FORMS = ["jsonl", "json", "csv", "parquet", "folder", "saved", "gz", "memory jsonl", "memory gz", "memory parquet"]


def shown(row):
    return row.category if isinstance(row, BadRow) else row


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [HFDataSource, HFInstructDataSource])
def test_a_stream_gives_the_rows_that_load_gives_and_goes_on_from_any_position(source, written, form, kind):
    made = source(written(form), kind)
    loaded = [shown(row) for row, _ in LoadedStream(made.load(made.config, "train")).read(100)]
    assert len(loaded) == 11
    reading = made.stream(made.config, "train")
    kept = [json.dumps(reading.position())]
    streamed = []
    while pairs := reading.read(1):
        streamed += pairs
        kept.append(json.dumps(reading.position()))
    assert [shown(row) for row, _ in streamed] == loaded
    for number, position in enumerate(kept):
        again = made.stream(made.config, "train")
        again.read(3)
        again.seek(json.loads(position))
        assert json.dumps(again.position()) == position
        rest = again.read(2) + again.read(100)
        assert [(shown(row), place) for row, place in rest] == [(shown(row), place) for row, place in streamed[number:]]
        assert again.read(1) == []


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder", "memory jsonl", "memory parquet"])
def test_large_sources_are_not_copied_to_be_streamed(source, written, form, tmp_path, monkeypatch):
    made = source(written(form))
    monkeypatch.setattr(HFDataSource, "_rows", None)
    assert len(made.stream(made.config, "train").read(100)) == 11
    assert not (tmp_path / "home").exists()


def test_places_of_streamed_rows_are_file_and_line(source, written, tmp_path):
    made = source(written("jsonl"), HFInstructDataSource)
    places = [place.rpartition("/")[2] for _, place in made.stream(made.config, "train").read(100)]
    assert places[:2] == ["train-0.jsonl:1", "train-0.jsonl:3"]
    assert places[7] == "train-1.jsonl:1"
    error = made.stream(made.config, "train").read(4)[3][0]
    assert error.where.endswith("train-0.jsonl:7")


def test_rows_of_parquet_are_those_of_the_library(source, tmp_path):
    import datetime

    import pyarrow
    import pyarrow.parquet

    rows = [
        {"a": [{"b": 1, "c": None}], "t": datetime.datetime(2026, 1, 2), "f": 0.5, "d": {"x": ["y"]}, "n": None},
        {"a": [], "t": None, "f": float("inf"), "d": None, "n": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    made = source(tmp_path / "rows.parquet")
    assert [row for row, _ in made.stream(made.config, "train").read(2)] == list(made.load(made.config, "train"))


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder", "csv", "memory jsonl"])
@pytest.mark.parametrize("split", ["train[:4]", "train[2:9]", "train[8:]"])
def test_rows_of_a_slice_that_counts_from_the_beginning_are_streamed(source, written, form, split):
    made = source(written(form), split=split)
    loaded = list(made.load(made.config, split))
    reading = made.stream(made.config, split)
    assert [row for row, _ in reading.read(1) + reading.read(100)] == loaded
    again = made.stream(made.config, split)
    again.read(1)
    position = json.loads(json.dumps(again.position()))
    third = made.stream(made.config, split)
    third.seek(position)
    assert [row for row, _ in third.read(100)] == loaded[1:]


@pytest.mark.parametrize("split", ["train[:50%]", "train[-3:]", "train[:2]+train[4:6]"])
def test_other_slices_are_loaded_here_and_refused_elsewhere(source, written, memory, split):
    made = source(written("jsonl"), split=split)
    assert [row for row, _ in made.stream(made.config, split).read(100)] == list(made.load(made.config, split))
    memory.pipe("/streams/rows.jsonl", b"{}")
    for name in ("memory://streams/*.jsonl", "somebody/something"):
        elsewhere = source(name, split=split)
        with pytest.raises(DataError, match="cannot be told before all rows are read"):
            elsewhere.stream(elsewhere.config, split)


def test_a_source_of_another_format_is_told_when_its_stream_begins(source, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{\n" + '{"headline": "a"}\n' * 30)
    made = source(tmp_path / "rows.jsonl", HFInstructDataSource)
    with pytest.raises(DataError, match="none of the first 20 rows can be used"):
        made.stream(made.config, "train")


def test_a_source_with_a_load_of_its_own_streams_what_that_gives(make, tmp_path):
    class Shouting(HFDataSource):
        """Loads texts in capitals."""

        name = "shouting"

        def load(self, config, split):
            return [{"text": row["text"].upper()} for row in super().load(config, split)]

    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    made = make(Shouting, name_or_path=str(tmp_path / "rows.jsonl"), split="train")
    assert [row for row, _ in made.stream(made.config, "train").read(5)] == [{"text": "A"}, {"text": "B"}]


def test_positions_of_other_files_are_refused(source, written, tmp_path):
    made = source(written("jsonl"))
    reading = made.stream(made.config, "train")
    reading.read(9)
    position = reading.position()
    for other in ({**position, "file": 7}, {**position, "name": "x.jsonl"}, {"row": 3}, {**position, "offset": None}):
        with pytest.raises(DataError, match="there is no position"):
            made.stream(made.config, "train").seek(other)
    (tmp_path / "data" / "train-1.jsonl").write_text("{}")
    again = made.stream(made.config, "train")
    again.seek(position)
    with pytest.raises(DataError, match=r"train-1\.jsonl: the file has changed: it is shorter"):
        again.read(1)


@pytest.mark.parametrize(
    ("name", "content"), [("rows.parquet", b"PAR1 but no more"), ("rows.jsonl.gz", gzip.compress(lines(ROWS))[:-9])]
)
def test_a_damaged_file_is_told_when_it_is_reached(source, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    made = source(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: it cannot be read"):
        made.stream(made.config, "train").read(100)


def test_a_split_that_is_not_there_is_refused_before_anything_is_read(source, written, tmp_path):
    made = source(written("folder"), split="test")
    with pytest.raises(DataError, match="no split 'test'; the splits are train"):
        made.stream(made.config, "test").read(1)
    made = source(tmp_path / "data/*.parquet", split="test_sft")
    with pytest.raises(DataError, match="no split 'test_sft'; all rows of a file are its split 'train'"):
        made.stream(made.config, "test_sft")


@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    contents=st.lists(
        st.lists(st.sampled_from([b'{"a": 1}', b"", b" \r", b"{", b'{"b": "' + b"x" * 40 + b'"}'])), min_size=1
    ),
    end=st.sampled_from([b"", b"\n", b"\n\n"]),
    begin=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    block=st.integers(1, 30),
    count=st.integers(1, 5),
)
def test_lines_are_told_apart_as_the_index_tells_them(tmp_path, monkeypatch, contents, end, begin, block, count):
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    paths = [tmp_path / f"{number}.jsonl" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(begin + b"\n".join(content) + end)
    files = [DataFile(str(path), str(path)) for path in paths]
    expected = [(shown(row), place) for row, place in LoadedStream(JsonLines(paths)).read(1000)]
    stream, read = LineStream(files), []
    while pairs := stream.read(count):
        read += [(shown(row), place) for row, place in pairs]
        position = stream.position()
        stream = LineStream(files)
        stream.seek(position)
    assert read == expected
