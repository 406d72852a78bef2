"""The page about data sources, held to the code: its example rows, and its table of what is wrong with a row."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from arctic_huggingface import faults
from arctic_huggingface.source import HFInstructDataSource
from arctic_huggingface.task_sources import HFLabelledDataSource, HFPairsDataSource, HFPreferenceDataSource

PAGE = (Path(__file__).parents[3] / "docs/data-sources.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\| `?(?!text)(\w+)`? \| `(\{.*\})` \|$", PAGE, re.MULTILINE)  # text is the causal plugin's


@pytest.mark.parametrize(("format", "row"), EXAMPLES)
def test_every_row_of_the_table_of_formats_loads(make, write_lines, format, row):
    kinds = {"preference": HFPreferenceDataSource, "labelled": HFLabelledDataSource, "pairs": HFPairsDataSource}
    source = make(
        kinds.get(format, HFInstructDataSource), name_or_path=str(write_lines([json.loads(row)])), split="train"
    )
    (loaded,) = source.load(source.config, "train")
    assert set(loaded) == {
        "preference": {"chosen", "rejected"},
        "labelled": {"messages", "label"},
        "pairs": {"query", "positive", "negatives"},
    }.get(format, {"messages"})
    if format not in kinds:
        made = make(HFInstructDataSource, name_or_path=source.config.name_or_path, split="train", format=format)
        assert made.load(made.config, "train")[0] == loaded


def test_every_format_that_a_recipe_can_name_has_a_row():
    from arctic_huggingface.chats import ChatFormat

    assert {format for format, _ in EXAMPLES} == {*ChatFormat.__args__, "labelled", "pairs"}


def test_the_page_lists_all_that_is_counted():
    listed = re.findall(r"^\| ([\w -]+) \|", PAGE.partition("| counted as |")[2], re.MULTILINE)
    assert sorted(listed) == sorted(value for name, value in vars(faults).items() if name.isupper())
