"""Help, the list of plugins and validation never import what makes starts slow."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("measure_startup", Path(__file__).with_name("measure_startup.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
measure_startup = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(measure_startup)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["plugins"],
        ["plugins", "--json"],
        ["plugins", "hooks"],
        ["cache", "ls"],
        ["cache", "ls", "--json"],
        ["cache", "gc"],
        ["data", "--help"],
        ["validate", "RECIPE"],
        ["validate", "RECIPE", "-v"],
        ["validate", "RECIPE", "--json"],
        ["validate", "RECIPE", "modle=1"],
    ],
    ids=" ".join,
)
def test_no_heavy_module_is_imported(words, recipe):
    code, modules = measure_startup.modules_of(*(str(recipe) if word == "RECIPE" else word for word in words))
    assert code == (2 if "modle=1" in words else 0)
    assert set(measure_startup.HEAVY) & set(modules) == set()


def test_a_recipe_of_the_installed_plugins_is_validated_without_heavy_modules(arctic_home):
    recipe = arctic_home / "chats.yaml"
    recipe.write_text("model: {name_or_path: some/model}\ndata: {sources: [some/chats]}\ncheckpoint: []\n")
    code, modules = measure_startup.modules_of("validate", str(recipe))
    assert code in (0, 2)  # 2 where the plugins that it needs are not installed
    assert set(measure_startup.HEAVY) & set(modules) == set()


def test_help_does_not_load_the_plugin_manager_unless_a_plugin_brings_commands(monkeypatch):
    monkeypatch.setenv("ARCTIC_DISABLE_PLUGIN_AUTOLOAD", "1")
    code, modules = measure_startup.modules_of("--help")
    assert code == 0
    assert "arctic_training.plugins" not in modules
    assert "ruamel.yaml" not in modules
