"""The plugin manager: plugins are found, blocked, loaded, required and put in order; one that fails stops no other."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from arctic_training import hookimpl
from arctic_training.errors import PluginError
from arctic_training.plugins import PluginManager, create_plugin_manager
from arctic_training.provenance import Broken
from arctic_training.testing.distributions import write_distribution

LOSS_PLUGIN = """
from arctic_training import hookimpl

@hookimpl
def arctic_register_components(components):
    components.loss({name!r}, "{module}:Loss")

@hookimpl
def arctic_build_loss(config):
    return {name!r}
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that installs a plugin of this test's own: ``install("focal", source)``."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)

    def install(
        name: str,
        source: str | None = None,
        *,
        distribution: str = "",
        version: str = "1.0",
        target: str = "",
        **rest: Any,
    ) -> Path:
        module = f"{(distribution or name).replace('-', '_').replace('.', '_')}_plugin"
        write_distribution(
            folder,
            distribution or f"arctic-test-{name}",
            version=version,
            entry_points={name: target.format(module=module) or module},
            modules={module: LOSS_PLUGIN.format(name=name, module=module) if source is None else source},
            **rest,
        )
        return folder / f"{module}.py"

    yield install
    for module in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


def managed(environment: Mapping[str, str] | None = None, **options: Any) -> PluginManager:
    """A manager that sees only what the environment given here says."""
    return create_plugin_manager(environment=environment or {}, **options)


def own(manager: PluginManager) -> dict[str, str]:
    """Name and status of the plugins that a test installed."""
    return {info.name: info.status for info in manager.plugins if info.distribution.startswith("arctic-test")}


def only_broken(manager: PluginManager, name: str) -> Broken:
    (broken,) = [broken for broken in manager.broken if broken.name == name]
    return broken


# ---- discovery


def test_core_comes_first_then_installed_plugins_by_name(install: Install) -> None:
    for name in ("zeta", "alpha", "mid"):
        install(name)
    manager = managed()
    assert manager.plugins[0].name == "core"
    assert list(own(manager)) == ["alpha", "mid", "zeta"]
    names = [info.name for info in manager.plugins[1:]]
    assert names == sorted(names)
    alpha = next(info for info in manager.plugins if info.name == "alpha")
    assert (alpha.distribution, alpha.version, alpha.summary) == (
        "arctic-test-alpha",
        "1.0",
        "arctic-test-alpha, a test.",
    )
    assert alpha.components == [("loss", "alpha")]
    assert alpha.hooks == ["arctic_build_loss", "arctic_register_components"]
    assert manager.ask("arctic_build_loss", str, config=None, run=None) == "zeta"


def test_each_manager_is_its_own(install: Install) -> None:
    first, second = managed(), managed()
    first.register(types.ModuleType("empty"), "mine")
    assert "mine" in [info.name for info in first.plugins]
    assert "mine" not in [info.name for info in second.plugins]


def test_the_fingerprint_names_every_active_plugin_with_its_version_in_order(install: Install) -> None:
    install("beta", version="2.1")
    install("alpha")
    install("gone", "raise RuntimeError")
    lines = managed().fingerprint()
    assert lines[0].startswith("core arctic-core ")
    own_lines = [line for line in lines if "arctic-test" in line]
    assert own_lines == ["alpha arctic-test-alpha 1.0", "beta arctic-test-beta 2.1"]


# ---- blocking


@pytest.mark.parametrize("name", ["focal", "arctic-test-focal", "Arctic_Test.Focal"])
def test_a_blocked_plugin_is_never_imported(install: Install, name: str) -> None:
    path = install("focal", "raise SystemExit('imported')")
    manager = managed(block=[name])
    assert own(manager) == {"focal": "blocked"}
    assert not [broken for broken in manager.broken if broken.name == "focal"]
    assert path.stem not in sys.modules


def test_what_the_recipe_blocks_is_never_imported(install: Install) -> None:
    path = install("focal", "raise SystemExit('imported')")
    manager = managed(recipe_plugins={"block": ["focal"]})
    assert own(manager) == {"focal": "blocked"}
    assert path.stem not in sys.modules


def test_a_plugin_blocked_after_it_was_loaded_is_taken_back(install: Install) -> None:
    install("focal")
    manager = managed()
    assert "focal" in manager.registry.names("loss")
    manager.load_recipe_plugins({"block": ["focal"]})
    assert own(manager) == {"focal": "blocked"}
    assert "focal" not in manager.registry.names("loss")
    assert "focal" not in [name for name, _, _ in manager.implementations("arctic_build_loss")]


def test_a_misspelt_block_is_told_and_one_of_an_absent_plugin_is_not(install: Install) -> None:
    install("focal")
    manager = managed(block=["focla", "something-else"])
    assert "did you mean 'focal'?" in only_broken(manager, "focla").error.message
    assert not [broken for broken in manager.broken if broken.name == "something-else"]


def test_core_cannot_be_blocked() -> None:
    with pytest.raises(PluginError, match=r"'core'.*cannot be blocked"):
        managed(block=["core"], autoload=False).refuse_broken()


# ---- environment


def test_the_environment_names_the_only_plugins_to_load(install: Install) -> None:
    install("alpha")
    install("beta", "raise SystemExit('imported')")
    manager = managed({"ARCTIC_PLUGINS": "alpha, arctic-test-missing"})
    assert own(manager) == {"alpha": "active"}
    assert "ARCTIC_PLUGINS names the plugin 'arctic-test-missing', which is not installed" in str(
        only_broken(manager, "arctic-test-missing")
    )


def test_the_environment_turns_autoload_off(install: Install) -> None:
    install("alpha")
    assert [info.name for info in managed({"ARCTIC_DISABLE_PLUGIN_AUTOLOAD": "1"}).plugins] == ["core"]
    assert own(managed({"ARCTIC_DISABLE_PLUGIN_AUTOLOAD": "0"})) == {"alpha": "active"}
    both = managed({"ARCTIC_DISABLE_PLUGIN_AUTOLOAD": "1", "ARCTIC_PLUGINS": "alpha"})
    assert [info.name for info in both.plugins] == ["core", "alpha"]


def test_the_environment_traces_each_hook_call_on_a_line(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("alpha")
    manager = managed({"ARCTIC_TRACE_PLUGINS": "1", "ARCTIC_PLUGINS": "alpha"})
    manager.ask("arctic_build_loss", str, config=None, run=None)
    assert "hook arctic_build_loss(config, run): alpha, core\n" in capsys.readouterr().err


# ---- failing plugins


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("value = 1\nraise ValueError('no such luck')", "ValueError: no such luck"),
        ("import sys\nsys.exit(5)", "SystemExit(5)"),
        ("def broken(:\n    pass", "SyntaxError"),
        ("from arctic_training import hookimp", "ImportError"),
        ("", "implements no hook"),
        (
            LOSS_PLUGIN.format(name="bad", module="bad") + "arctic_build_loss.__signature__ = 3\n",
            "cannot be registered",
        ),
    ],
)
def test_a_plugin_that_fails_to_load_is_kept_as_broken_and_stops_no_other(
    install: Install, source: str, told: str
) -> None:
    path = install("bad", source, version="0.7")
    install("good")
    manager = managed()
    assert own(manager) == {"bad": "broken", "good": "active"}
    broken = only_broken(manager, "bad")
    assert (broken.distribution, broken.version) == ("arctic-test-bad", "0.7")
    assert "plugin 'bad' (arctic-test-bad 0.7)" in str(broken)
    assert told in str(broken)
    assert "\n" not in str(broken)
    assert "bad" not in manager.registry.names("loss")
    assert path.stem in str(broken.error.where) or "cannot be registered" in told
    with pytest.raises(PluginError) as caught:
        manager.refuse_broken()
    assert caught.value.exit_code == 3
    assert "uninstall arctic-test-bad, or block the plugin with -p no:bad" in str(caught.value)


def test_an_interruption_during_an_import_is_not_held_back(install: Install) -> None:
    install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        managed()


def test_the_line_at_which_an_import_fails_is_told(install: Install) -> None:
    path = install("bad", "import json\n\ndata = json.loads('{')\n")
    assert only_broken(managed(), "bad").error.where == f"{path}:3"


def test_a_missing_dependency_is_named_with_the_requirement_that_brings_it(install: Install) -> None:
    install("needy", "import frob_nicate.core", requires=["arctic-core", "frob-nicate[fast]>=2 ; python_version>'3'"])
    error = only_broken(managed(), "needy").error
    assert "it needs the module 'frob_nicate', which is not installed" in error.message
    assert 'pip install "frob-nicate[fast]>=2"' in str(error.remedy)
    assert "-p no:needy" in str(error.remedy)


def test_an_entry_point_to_a_module_that_is_not_there_is_told_apart_from_a_missing_dependency(install: Install) -> None:
    install("lost", target="lost_plugin.nowhere")
    error = only_broken(managed(), "lost").error
    assert "there is no module 'lost_plugin.nowhere'" in error.message
    assert "pip install" not in str(error.remedy)


def test_a_class_behind_an_entry_point_is_refused(install: Install) -> None:
    source = (
        "from arctic_training import hookimpl\nclass Plugin:\n    @hookimpl\n    def arctic_build_loss(self): ...\n"
    )
    install("classy", source, target="{module}:Plugin")
    assert "gives the class Plugin" in str(only_broken(managed(), "classy"))
    install("instance", source + "plugin = Plugin()\n", target="{module}:plugin")
    assert own(managed())["instance"] == "active"


def test_one_entry_point_name_of_two_distributions_names_both_and_loads_neither(install: Install) -> None:
    install("twin", distribution="arctic-test-one", version="1.1")
    install("twin", distribution="arctic-test-two", version="2.2")
    manager = managed()
    assert [info.status for info in manager.plugins if info.name == "twin"] == ["broken", "broken"]
    assert "twin" not in manager.registry.names("loss")
    for broken in manager.broken:
        if broken.name == "twin":
            assert "arctic-test-one 1.1 and arctic-test-two 2.2" in str(broken)
            assert f"-p no:{broken.distribution}" in str(broken.error.remedy)


def test_one_of_two_twins_loads_when_the_other_is_blocked_by_its_distribution(install: Install) -> None:
    install("twin", distribution="arctic-test-one")
    install("twin", distribution="arctic-test-two")
    early = managed(block=["arctic-test-one"])
    late = managed()
    late.load_recipe_plugins({"block": ["arctic-test-one"]})
    for manager in (early, late):
        statuses = {info.distribution: info.status for info in manager.plugins if info.name == "twin"}
        assert statuses == {"arctic-test-one": "blocked", "arctic-test-two": "active"}
        assert not [broken for broken in manager.broken if broken.name == "twin"]
        assert manager.registry.provider("loss", "twin").distribution == "arctic-test-two"


def test_an_installed_plugin_that_calls_itself_core_is_refused(install: Install) -> None:
    install("core")
    assert "plugin 'core' (arctic-core " in str(only_broken(managed(), "core"))


def test_several_faults_are_told_at_once(install: Install) -> None:
    install("bad", "raise ValueError('one')")
    install("worse", "raise ValueError('two')")
    with pytest.raises(PluginError) as caught:
        managed({"ARCTIC_PLUGINS": "bad,worse"}).refuse_broken()
    text = str(caught.value)
    assert text.startswith("2 faults of plugins")
    for part in ("ValueError: one", "ValueError: two", "-p no:bad", "-p no:worse"):
        assert part in text


# ---- the recipe's plugins section


def required(manager: PluginManager, requirement: str) -> str:
    """What is told about an unmet requirement; empty when it is met."""
    manager.load_recipe_plugins({"require": [requirement]})
    return "\n".join(str(broken.error) for broken in manager.broken if "requires the plugin" in str(broken))


@pytest.mark.parametrize(
    "requirement",
    [
        "focal",
        "focal>=1",
        "focal>=1,<3",
        "arctic-test-focal==2.0rc1",
        "Arctic.Test_Focal",
        "absent; python_version<'3'",
    ],
)
def test_a_requirement_is_met_by_the_name_of_a_plugin_or_its_distribution(install: Install, requirement: str) -> None:
    install("focal", version="2.0rc1")
    assert required(managed(), requirement) == ""


@pytest.mark.parametrize(
    ("requirement", "told"),
    [
        ("focal>=3", "plugin 'focal' (arctic-test-focal 2.0) is installed\n  pip install \"arctic-test-focal>=3\""),
        ("foca", "no plugin of that name is installed; did you mean 'focal'?"),
        ("bad", "plugin 'bad' (arctic-test-bad 1.0) is broken"),
        ("focal>>2", "is no requirement"),
    ],
)
def test_a_requirement_that_is_not_met_stops_a_run_and_says_what_to_do(
    install: Install, requirement: str, told: str
) -> None:
    install("focal", version="2.0")
    install("bad", "raise ValueError")
    manager = managed()
    text = required(manager, requirement)
    assert repr(requirement) in text
    assert told in text
    assert "plugins.require" in text
    with pytest.raises(PluginError):
        manager.refuse_broken()


def test_the_recipe_puts_plugins_in_order_and_the_first_named_runs_first(install: Install) -> None:
    for name in ("alpha", "beta", "gamma", "delta"):
        install(name)
    manager = managed(recipe_plugins={"order": ["beta", "arctic-test-alpha"]})
    order = [name for name, _, _ in manager.implementations("arctic_build_loss")]
    assert order == ["beta", "alpha", "gamma", "delta", "core"]
    assert manager.ask("arctic_build_loss", str, config=None, run=None) == "beta"
    assert [line.split()[0] for line in manager.fingerprint() if "arctic-test" in line] == [
        "delta",
        "gamma",
        "alpha",
        "beta",
    ]


def test_order_holds_for_what_is_registered_later(install: Install) -> None:
    install("alpha")
    manager = managed(recipe_plugins={"order": ["alpha"]})
    module = types.ModuleType("late")
    module.arctic_build_loss = hookimpl(lambda config: "late")  # type: ignore[attr-defined]
    manager.register(module, "late")
    assert [name for name, _, _ in manager.implementations("arctic_build_loss")] == ["alpha", "late", "core"]


def test_order_names_a_plugin_that_is_not_there(install: Install) -> None:
    install("alpha")
    manager = managed(recipe_plugins={"order": ["alhpa"]})
    assert "plugins.order names the plugin 'alhpa', which is not installed; did you mean 'alpha'?" in str(
        only_broken(manager, "alhpa")
    )


def test_the_recipe_uses_a_module_by_its_import_name(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "house_losses.py").write_text(LOSS_PLUGIN.format(name="house", module="house_losses"))
    monkeypatch.syspath_prepend(folder)
    manager = managed(recipe_plugins={"use": ["house_losses", "no_such_losses"]})
    assert manager.registry.provider("loss", "house").name == "house_losses"
    assert manager.plugins[-2].name == "house_losses"
    assert "no_such_losses" in str(only_broken(manager, "no_such_losses"))


def test_the_recipe_uses_an_installed_plugin_that_was_not_loaded(install: Install) -> None:
    install("alpha")
    manager = managed({"ARCTIC_DISABLE_PLUGIN_AUTOLOAD": "1"}, recipe_plugins={"use": ["alpha"]})
    assert own(manager) == {"alpha": "active"}
    manager.load_recipe_plugins({"use": ["alpha"]})
    assert own(manager) == {"alpha": "active"}


@pytest.mark.parametrize(
    "section", [None, [], ["alpha"], "alpha", {"require": "alpha"}, {"block": [1]}, {"unknown": 1}]
)
def test_a_section_of_the_wrong_shape_is_left_to_the_check_of_the_recipe(section: Any) -> None:
    manager = managed(autoload=False, recipe_plugins=section)
    assert [info.name for info in manager.plugins] == ["core"]
    assert manager.broken == []


# ---- start-up


def test_managing_plugins_imports_nothing_heavy() -> None:
    heavy = ["torch", "cattrs", "transformers", "datasets", "deepspeed", "numpy", "packaging", "difflib"]
    code = (
        "import sys; from arctic_training.plugins import create_plugin_manager; create_plugin_manager(autoload=False); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
