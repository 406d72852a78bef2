"""A package's names are imported when asked for, and others are missed as from any module."""

from __future__ import annotations

import importlib
import sys

import pytest

PACKAGE = """
from arctic_training.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(__name__, {"Bread": "bakery"})
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    (tmp_path / "corner_shop").mkdir()
    (tmp_path / "corner_shop/__init__.py").write_text(PACKAGE)
    (tmp_path / "corner_shop/bakery.py").write_text("class Bread: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("corner_shop")
    for name in [name for name in sys.modules if name.partition(".")[0] == "corner_shop"]:
        del sys.modules[name]


def test_a_module_is_imported_when_its_name_is_asked_for(shop):
    assert "Bread" in dir(shop)
    assert "corner_shop.bakery" not in sys.modules
    assert shop.Bread is sys.modules["corner_shop.bakery"].Bread


def test_a_name_that_is_not_there_is_missed_as_from_any_module(shop):
    with pytest.raises(AttributeError, match="module 'corner_shop' has no attribute 'Cheese'"):
        _ = shop.Cheese
    with pytest.raises(ImportError, match="Cheese"):
        exec("from corner_shop import Cheese")
