"""Human numbers: the vectors of the recipe's documentation, and properties that hold for every number."""

from __future__ import annotations

import contextlib
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.human_numbers import convert_leaves, parse_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1K", 1000),
        ("32Ki", 32768),
        ("1.5k", 1500),
        ("2^20", 1048576),
        ("1_000_000", 1000000),
        ("-1K", -1000),
        ("1gi", 1073741824),
        ("1.25k", 1250),
        ("7b", 7_000_000_000),
        ("2T", 2_000_000_000_000),
        ("1Mi", 1 << 20),
        ("1Ti", 1 << 40),
        ("1e3", 1000),
        ("100%", 1),
        ("2.0", 2),
        (" 5 ", 5),
        (5, 5),
        (5.0, 5),
    ],
)
def test_a_whole_number_is_read_as_people_write_it(text, number):
    result = parse_number(text, whole=True)
    assert result == number
    assert type(result) is int


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10%", 0.1),
        ("1e-5", 1e-5),
        ("3e-4", 3e-4),
        ("0.1k", 100.0),
        (".5", 0.5),
        ("2^10", 1024.0),
        ("-.5e1", -5.0),
        (1, 1.0),
        ("0.3%", 0.003),
        ("inf", math.inf),
        (".inf", math.inf),
    ],
)
def test_a_fraction_is_the_nearest_double(text, number):
    result = parse_number(text, whole=False)
    assert result == number
    assert type(result) is float


@pytest.mark.parametrize(
    "value",
    ["1k5", "1g", "1tb", "", "k", "1 000", "1__0", "_1", "1_", "0x10", "one", "2^", "2^-1", "2^2^2", "1e", "e5", "--1"]
    + [
        "10%%",
        "1,5",
        "1kk",
        "2^99999",
        "2^9999",
        True,
        False,
        None,
        [],
        {},
        "true",
        "１０",
        "1\n2",
        "1 k",
        "1k\u0131",
        "1K\u0130",
    ],
)
def test_what_is_no_number_is_refused(value):
    for whole in (True, False):
        with pytest.raises(ValueError):
            parse_number(value, whole=whole)


@pytest.mark.parametrize("value", ["1.5", 1.5, "10%", "1e-5", "1.2345k", math.inf, math.nan, "inf"])
def test_a_fraction_is_refused_where_a_whole_number_is_meant(value):
    with pytest.raises(ValueError, match="whole number"):
        parse_number(value, whole=True)


def test_a_number_beyond_the_doubles_is_refused_not_rounded_to_infinity():
    with pytest.raises(ValueError, match="too large"):
        parse_number("1e999", whole=False)


def test_a_whole_number_that_python_would_not_write_down_is_refused():
    with pytest.raises(ValueError, match="too large"):
        parse_number("1E4300", whole=True)


@given(st.integers())
def test_every_whole_number_reads_back_exactly(number):
    assert parse_number(str(number), whole=True) == number
    assert parse_number(f"{number:_}", whole=True) == number
    assert parse_number(number, whole=True) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_reads_back_exactly(number):
    assert parse_number(repr(number), whole=False) == number


@given(st.integers(-(10**12), 10**12), st.integers(0, 6), st.sampled_from("kmbt"))
def test_a_suffix_scales_without_rounding(digits, places, suffix):
    decimal = Decimal(digits).scaleb(-places)
    exact = decimal * 1000 ** ("kmbt".index(suffix) + 1)
    text = f"{decimal:f}{suffix}"
    if exact == exact.to_integral_value():
        assert parse_number(text, whole=True) == int(exact)
    assert parse_number(text.upper(), whole=False) == float(exact)


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert isinstance(parse_number(text, whole=False), (int, float))


def test_leaves_that_are_numbers_are_converted_at_every_depth_and_others_left_alone():
    section = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "5e8", "sizes": ["32Ki", "auto", "1_000"]},
        "optimizer": {"type": "Adam", "params": {"lr": "3e-4", "fused": True}},
        "ratio": "10%",
        "nothing": None,
        "inf": "inf",
        "huge": "2^9999",
    }
    converted = convert_leaves(section)
    assert converted == {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "sizes": [32768, "auto", 1000]},
        "optimizer": {"type": "Adam", "params": {"lr": 3e-4, "fused": True}},
        "ratio": 0.1,
        "nothing": None,
        "inf": "inf",
        "huge": "2^9999",
    }
    assert type(converted["zero_optimization"]["sizes"][0]) is int
    assert section["zero_optimization"]["reduce_bucket_size"] == "5e8"
