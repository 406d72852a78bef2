"""JSON lines of any size: an index that stays small, rows read where they lie, selections that hold numbers alone."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import threading
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_huggingface import json_lines
from arctic_huggingface.json_lines import OPEN_FILES, JsonLines
from arctic_huggingface.source import HFInstructDataSource
from arctic_training.errors import BadRow, DataError
from arctic_training.stream import LoadedStream

LINES = [
    b'{"a": 1}',
    b"",
    b"  ",
    b"\t\r",
    b"{",
    b' {"b": "\xc3\xa4"}',
    b'{"c": [1, 2]} ',
    b"   \x0b ",
    b'{"d": "' + b"x" * 50 + b'"}',
]


@pytest.fixture
def lines(tmp_path):
    def lines(*contents):
        paths = [tmp_path / f"{number}.jsonl" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return JsonLines(paths)

    return lines


@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    files=st.lists(st.lists(st.sampled_from(LINES)), min_size=1, max_size=3),
    ending=st.sampled_from([b"\n", b"\r\n"]),
    begin=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    end=st.booleans(),
    block=st.integers(1, 40),
)
def test_rows_and_places_are_those_of_reading_line_by_line(lines, monkeypatch, files, ending, begin, end, block):
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", block)
    contents = [begin + ending.join(file) + (ending if end else b"") for file in files]
    rows = lines(*contents)
    expected = [
        ("no JSON" if line.strip() == b"{" else json.loads(line), f"{path}:{number}")
        for path, content in zip(rows.files.names, contents, strict=True)
        for number, line in enumerate(content.removeprefix(begin).split(b"\n"), 1)
        if line.strip()
    ]
    read = [("no JSON" if isinstance(row, BadRow) else row, place) for row, place in LoadedStream(rows).read(1000)]
    assert read == expected


def test_a_million_rows_take_less_than_forty_megabytes_while_they_are_counted_and_less_than_twenty_after(lines):
    content = b"".join([b'{"text": "%d"}\n' % number for number in range(1_000_000)])
    content = content.replace(b"\n", b"\n\n", 1)  # a blank line, so that numbers of lines are held too
    gc.collect()
    tracemalloc.start()
    try:
        rows = lines(content)
        held, peak = tracemalloc.get_traced_memory()
        halves = rows.select(range(0, 1_000_000, 2)), rows[500_000:]
        assert tracemalloc.get_traced_memory()[0] - held < 10_000
    finally:
        tracemalloc.stop()
    assert held < 20e6
    assert peak < 40e6
    assert rows[999_999] == {"text": "999999"}
    assert rows.where(999_999).endswith(":1000001")
    assert halves[0][3] == {"text": "6"}
    assert halves[1][-1] == {"text": "999999"}


def test_reading_rows_does_not_add_to_the_memory_of_the_process(lines):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("this system does not tell the memory of a process")
    rows = lines(b'{"text": "%s"}\n' % (b"x" * 100_000) * 1000)
    rows[0]
    before = resident()
    assert all(len(row["text"]) == 100_000 for row in rows)
    assert resident() - before < 20e6  # of 100


def test_a_selection_of_a_selection_keeps_order_numbers_and_places(lines):
    rows = lines(b'{"n": 0}\n{"n": 1}\n\n{"n": 2}\n', b'{"n": 3}\n{"n": 4}\n')
    chosen = rows[1:].select([3, 0, 2])[1:]
    assert [row["n"] for row in chosen] == [1, 3]
    assert [int(number) for number in chosen.numbers] == [1, 3]
    assert [chosen.where(index).rpartition("/")[2] for index in range(2)] == ["0.jsonl:2", "1.jsonl:1"]
    assert [row["n"] for row in rows[::-2]] == [4, 2, 0]
    assert [row["n"] for row in rows.select([-1, -5])] == [4, 0]
    assert len(rows[3:3]) == 0
    with pytest.raises(IndexError):
        rows.select([5])
    with pytest.raises(IndexError):
        rows[5]


def test_selections_stay_arrays_and_ranges(lines):
    import numpy as np

    rows = lines(b'{"n": 0}\n' * 100)
    assert rows[10:90].select(range(0, 80, 4))[::-1].numbers == range(86, 6, -4)
    assert isinstance(rows.select(list(range(0, 100, 7))).numbers, np.ndarray)
    assert rows.select(np.arange(50)).numbers.itemsize == 4


def test_rows_are_read_in_forked_processes_and_threads_alike(lines):
    rows = lines(*[b'{"n": %d}\n' % number * 20 for number in range(OPEN_FILES + 20)])
    expected = [row["n"] for row in rows]
    results = {}

    def read(name):
        results[name] = [rows[index]["n"] for index in range(len(rows))]

    threads = [threading.Thread(target=read, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[name] == expected for name in range(4))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(rows.__getitem__, range(len(rows))) == list(rows)


@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.lists(st.integers(0, 39), max_size=60), ahead=st.integers(1, 60))
def test_rows_are_the_same_in_whatever_order_they_are_asked_for(lines, monkeypatch, order, ahead):
    monkeypatch.setattr(json_lines, "AHEAD_BYTES", ahead)
    rows = lines(*[b"".join(b'{"n": %d}\r\n' % (20 * file + row) for row in range(20)) for file in range(2)])
    assert [rows[number]["n"] for number in order] == order


def test_lines_that_are_asked_for_one_after_the_other_are_read_together(lines, monkeypatch):
    rows, reads = lines(b'{"n": 1}\n' * 1000), []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: reads.append(arguments[1]) or pread(*arguments))
    list(rows)
    assert len(reads) == 2
    again = JsonLines(rows.readers.paths)
    reads.clear()
    for number in range(0, 1000, 10):
        again[number]
    assert len(reads) == 100
    assert max(reads) < 10


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system does not list open files")
def test_few_files_are_open_at_a_time_and_none_after(lines):
    rows = lines(*[b'{"n": 1}\n'] * (OPEN_FILES + 20))
    before = len(os.listdir("/proc/self/fd"))
    assert len(list(rows)) == OPEN_FILES + 20
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN_FILES
    del rows
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_file_that_changes_while_it_is_read_is_told(lines):
    rows = lines(b'{"n": 1}\n{"n": 2}\n')
    path = rows.readers.paths[0]
    path.write_bytes(b'{"m": 1}\n')
    with pytest.raises(DataError, match="has changed since"):
        rows[0]
    again = JsonLines([path])
    again[0]
    path.write_bytes(b"")
    with pytest.raises(DataError, match="has changed since"):
        again[0]


def test_rows_are_sent_to_other_processes_as_paths_and_places(lines):
    rows = lines(b'{"text": "%s"}\n' % (b"x" * 10_000) * 20)
    rows[0]
    sent = pickle.dumps(rows)
    assert len(sent) < 5_000
    assert list(pickle.loads(sent)) == list(rows)


def test_a_field_that_first_appears_in_row_50_000_is_there_and_nowhere_else(make, tmp_path):
    ask, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    late = {"messages": [ask, {**answer, "tool_calls": [call], "reasoning_content": "c"}], "tools": [{"name": "add"}]}
    content = json.dumps({"messages": [ask, answer]}) + "\n"
    (tmp_path / "rows.jsonl").write_text(content * 50_000 + json.dumps(late) + "\n" + content)
    source = make(HFInstructDataSource, name_or_path=str(tmp_path / "rows.jsonl"), split="train")
    rows = source.load(source.config, "train")
    with open(tmp_path / "rows.jsonl", encoding="utf-8") as file:
        assert all(row == json.loads(line) for row, line in zip(rows, file, strict=True))
