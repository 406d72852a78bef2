"""Lets the tests of the third-party plugin run where they lie. Where it is installed, that one is used."""

import sys
from importlib import import_module, util
from pathlib import Path

import pytest

if util.find_spec("arctic_focal") is None:
    sys.path.append(str(Path(__file__).parent / "third-party-plugin/src"))


@pytest.fixture
def plugin_manager(plugin_manager):
    """The manager of the kit, with the third-party plugin."""
    if "focal" not in [plugin.name for plugin in plugin_manager.plugins]:
        plugin_manager.register(import_module("arctic_focal.plugin"), "focal")
    return plugin_manager
