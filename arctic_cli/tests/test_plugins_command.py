"""`arctic plugins` shows what is installed, what is broken and why, and the order in which hooks run."""

from __future__ import annotations

import json

import pytest

OBSERVER = """
    from arctic_training import hookimpl

    @hookimpl
    def arctic_register_components(components):
        components.callback("watcher", "watcher_parts:Watcher")

    @hookimpl(tryfirst=True)
    def arctic_step_end(step, metrics, trainer):
        pass

    @hookimpl(wrapper=True)
    def arctic_compute_loss(batch):
        return (yield)
    """


@pytest.fixture
def watcher(install):
    install("arctic-plugin-watcher", {"arctic": {"watcher": "watcher_plugin"}}, {"watcher_plugin": OBSERVER}, "2.0")


def listed(arctic, *words):
    return {plugin["name"]: plugin for plugin in json.loads(arctic("plugins", "list", "--json", *words).out)}


def test_a_plugin_is_listed_with_distribution_version_status_and_what_it_offers(arctic, watcher):
    outcome = arctic("plugins")
    assert outcome.code == 0
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("watcher")]
    assert line.split()[:4] == ["watcher", "arctic-plugin-watcher", "2.0", "active"]
    assert "callback: watcher" in line
    assert "hooks: compute_loss, step_end" in line


def test_list_is_the_same_as_no_word(arctic, watcher):
    assert arctic("plugins").out == arctic("plugins", "list").out


def test_core_is_a_plugin_like_the_others(arctic):
    core = listed(arctic)["core"]
    assert core["distribution"] == "arctic-core"
    assert {"kind": "engine", "name": "torch"} in core["components"]


def test_json_holds_components_and_hooks(arctic, watcher):
    plugin = listed(arctic)["watcher"]
    assert plugin["status"] == "active"
    assert plugin["components"] == [{"kind": "callback", "name": "watcher"}]
    assert plugin["hooks"] == ["arctic_compute_loss", "arctic_register_components", "arctic_step_end"]
    assert plugin["error"] == ""


def test_a_blocked_plugin_is_listed_as_blocked_and_offers_nothing(arctic, watcher):
    plugin = listed(arctic, "-p", "no:watcher")["watcher"]
    assert (plugin["status"], plugin["components"], plugin["hooks"]) == ("blocked", [], [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import nothing_of_that_name", "it needs the module 'nothing_of_that_name', which is not installed"),
        ("raise SystemExit(3)", "SystemExit(3)"),
        ("def broken(:\n", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_error_and_what_to_do(arctic, install, text, problem):
    install("arctic-plugin-ill", {"arctic": {"ill": "ill_plugin"}}, {"ill_plugin": text})
    outcome = arctic("plugins")
    assert outcome.code == 0
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("ill ")]
    assert line.split()[:4] == ["ill", "arctic-plugin-ill", "1.2.3", "broken"]
    assert problem in line
    assert f"plugin 'ill' (arctic-plugin-ill 1.2.3) cannot be imported: {problem}" in outcome.err
    assert "-p no:ill" in outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert problem in listed(arctic)["ill"]["error"]


def test_a_broken_commands_plugin_is_listed_too(arctic, install):
    install("arctic-plugin-ill", {"arctic.commands": {"ill": "ill_commands"}}, {"ill_commands": "1 / 0"})
    outcome = arctic("plugins")
    assert any(line.split()[:4] == ["ill", "arctic-plugin-ill", "1.2.3", "broken"] for line in outcome.out.splitlines())
    assert "ZeroDivisionError" in outcome.err


def test_the_order_of_a_hook_is_shown_outermost_wrapper_first(arctic, watcher):
    outcome = arctic("plugins", "hooks", "arctic_compute_loss")
    assert outcome.code == 0
    rows = [line.split() for line in outcome.out.splitlines()[2:]]
    assert rows[0][:3] == ["1", "watcher", "wrapper"]
    assert "watcher_plugin.py:" in rows[0][3]
    assert rows[-1][1:3] == ["core", "trylast"]


def test_a_hook_may_be_named_without_its_prefix_and_given_as_json(arctic, watcher):
    (hook,) = json.loads(arctic("plugins", "hooks", "step_end", "--json").out)
    assert hook["hook"] == "arctic_step_end"
    assert [(each["plugin"], each["kind"]) for each in hook["implementations"]] == [("watcher", "tryfirst")]


def test_all_hooks_are_listed_in_the_order_in_which_a_run_calls_them(arctic, watcher):
    lines = arctic("plugins", "hooks").out.splitlines()
    names = [line.split()[0] for line in lines[1:]]
    assert names.index("arctic_build_tokenizer") < names.index("arctic_build_model") < names.index("arctic_train_start")
    assert any(line.split(maxsplit=1) == ["arctic_step_end", "watcher (tryfirst)"] for line in lines)


def test_a_misspelt_hook_is_refused_with_the_nearest_one(arctic):
    outcome = arctic("plugins", "hooks", "step_ends")
    assert outcome.code == 2
    assert "arctic_step_ends is no hook; did you mean 'arctic_step_end'?" in outcome.err
