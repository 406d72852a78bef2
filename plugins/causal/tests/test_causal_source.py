"""The source of texts: the column that the recipe names, or the only one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from arctic_causal.source import TextReader
from arctic_huggingface import faults
from arctic_huggingface.faults import Fault

PAGE = (Path(__file__).parents[3] / "docs/data-sources.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", re.findall(r"^\| text \| `(\{.*\})` \|$", PAGE, re.MULTILINE))
def test_every_row_of_text_in_the_documentation_loads(row):
    assert TextReader()(json.loads(row)) == json.loads(row)


def test_text_comes_from_the_column_that_the_recipe_names_or_from_the_only_one():
    row = {"text": "web", "body": "news"}
    assert TextReader()(row) == {"text": "web"}
    assert TextReader("body")(row) == {"text": "news"}
    assert TextReader()({"body": "news"}) == {"text": "news"}


@pytest.mark.parametrize(
    ("row", "category", "remedy"),
    [
        ({"title": "a", "author": "b"}, faults.MISSING_COLUMN, "name the column that holds the text"),
        ({"body": 4}, faults.WRONG_TYPE, "correct the row, or remove it"),
        ({"body": 4, "title": "a"}, faults.WRONG_TYPE, "correct the row, or remove it"),
        ({"body": None}, faults.MISSING_TEXT, "correct the row, or remove it"),
        ({"body": ""}, faults.MISSING_TEXT, "correct the row"),
    ],
)
def test_a_row_without_text_is_refused_and_the_column_asked_for_only_where_there_is_none(row, category, remedy):
    with pytest.raises(Fault) as caught:
        TextReader("body")(row)
    assert caught.value.category == category
    assert (caught.value.remedy or "").startswith(remedy)
