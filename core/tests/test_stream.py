"""Streams of rows: what every source gives that can load its rows."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from arctic_training.data import DataSource, SourceConfig
from arctic_training.errors import BadRow, DataError
from arctic_training.stream import LoadedStream


class Rows:
    """Six rows, of which the third cannot be used."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 2:
            raise BadRow("it is odd", category="odd", where=self.where(index))
        return {"n": index}

    def where(self, index):
        return f"rows.txt:{index + 1}"


class Source(DataSource):
    """Loads them."""

    config: SourceConfig

    def load(self, config, split):
        assert split == "train"
        return Rows()


def shown(pairs):
    return [(row.category if isinstance(row, BadRow) else row["n"], place) for row, place in pairs]


@pytest.fixture
def stream():
    source = Source(SourceConfig(split="train"), SimpleNamespace())
    return lambda: source.stream(source.config, "train")


def test_a_source_that_loads_its_rows_streams_them_with_places_and_bad_rows_among_them(stream):
    expected = [(number if number != 2 else "odd", f"rows.txt:{number + 1}") for number in range(6)]
    assert shown(stream().read(100)) == expected
    reading = stream()
    assert shown(reading.read(2) + reading.read(3) + reading.read(3)) == expected
    assert reading.read(3) == []


def test_another_stream_goes_on_from_any_position_that_was_kept_as_json(stream):
    everything = shown(stream().read(6))
    for number in range(7):
        first, second = stream(), stream()
        first.read(number)
        second.seek(json.loads(json.dumps(first.position())))
        assert shown(second.read(6)) == everything[number:]


@pytest.mark.parametrize("position", [{"row": 7}, {"row": -1}, {"line": 1}])
def test_a_position_that_the_source_does_not_have_is_refused(stream, position):
    with pytest.raises(DataError, match="there is no position"):
        stream().seek(position)


def test_rows_without_places_are_told_by_their_number():
    assert LoadedStream([{"n": 1}, {"n": 2}]).read(5) == [({"n": 1}, "row 0"), ({"n": 2}, "row 1")]
