"""Lets the tests of the plugins that are examples run where they lie. Where one is installed, that one is used."""

import sys
from importlib import import_module, util
from pathlib import Path

import pytest

PLUGINS = {"focal": "third-party-plugin", "neftune": "noisy-embeddings"}
"""The folder of each by its name."""

for name, folder in PLUGINS.items():
    if util.find_spec(f"arctic_{name}") is None:
        sys.path.append(str(Path(__file__).parent / folder / "src"))


@pytest.fixture
def plugin_manager(plugin_manager, request):
    """The manager of the kit, with the plugin whose test this is."""
    for name, folder in PLUGINS.items():
        known = [plugin.name for plugin in plugin_manager.plugins]
        if name not in known and folder in request.path.parts:
            plugin_manager.register(import_module(f"arctic_{name}.plugin"), name)
    return plugin_manager
