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
    ("row", "category"),
    [
        ({"title": "a", "author": "b"}, faults.MISSING_COLUMN),
        ({"body": 4}, faults.WRONG_TYPE),
        ({"body": None}, faults.MISSING_TEXT),
        ({"body": ""}, faults.MISSING_TEXT),
    ],
)
def test_a_row_without_text_is_refused(row, category):
    with pytest.raises(Fault) as caught:
        TextReader("body")(row)
    assert caught.value.category == category
    assert "column: text" in (caught.value.remedy or "") or category == faults.MISSING_TEXT
