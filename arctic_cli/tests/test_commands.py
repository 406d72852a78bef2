"""`arctic` knows its commands by name, ours and those of plugins, and loads the one that is called."""

from __future__ import annotations

import json
import sys

import arctic_cli
from arctic_cli.commands import BUILTIN

GREETING = {
    "greet_commands": """
        from arctic_training import hookimpl

        @hookimpl
        def arctic_register_commands(commands):
            commands.add("greet", "greet_words:greet", "say hello")
        """,
    "greet_words": """
        import click

        @click.command()
        @click.argument("name", default="you")
        @click.pass_obj
        def greet(settings, name):
            click.echo(f"hello {name}, block {settings.block}")
            if name == "trouble":
                click.get_current_context().exit(9)
        """,
}


def install_greeting(install, **replaced):
    install(
        "arctic-plugin-greet", {"arctic.commands": {"greet": "greet_commands"}}, {**GREETING, **replaced}, version="0.3"
    )


def test_help_lists_every_command_with_a_line(arctic):
    outcome = arctic("--help")
    assert outcome.code == 0
    for entry in BUILTIN:
        assert entry.name in outcome.out
        assert entry.help in outcome.out


def test_every_command_of_ours_has_help_and_the_common_options(arctic):
    for entry in BUILTIN:
        outcome = arctic(entry.name, "--help")
        assert outcome.code == 0
        for option in ("-p no:NAME", "--no-code", "--traceback", "-q, --quiet", "-v, --verbose", "--no-color"):
            assert option in outcome.out, (entry.name, option)


def test_a_subcommand_has_the_common_options_too(arctic):
    assert "--traceback" in arctic("plugins", "hooks", "--help").out


def test_the_module_can_be_run_like_the_script(arctic_process):
    outcome = arctic_process("--help")
    assert outcome.code == 0
    assert outcome.out.startswith("Usage: arctic [OPTIONS] COMMAND")


def test_the_versions_of_the_distributions_are_shown(arctic):
    lines = arctic("--version").out.splitlines()
    assert f"arctic-cli {arctic_cli.__version__}" in lines
    assert any(line.startswith("arctic-core ") for line in lines)
    assert any(line.startswith("torch ") for line in lines)


def test_an_unknown_command_is_refused_with_the_nearest_one(arctic):
    outcome = arctic("valdate", "recipe.yaml")
    assert outcome.code == 2
    assert outcome.err.splitlines()[0] == "error: there is no command 'valdate'; did you mean 'validate'?"


def test_a_plugin_brings_a_command_that_is_imported_only_when_it_is_called(arctic, install):
    install_greeting(install)
    assert "greet     say hello" in arctic("--help").out
    assert "greet_words" not in sys.modules
    outcome = arctic("greet", "world", "-p", "no:sft")
    assert (outcome.code, outcome.out) == (0, "hello world, block ['sft']\n")


def test_the_exit_code_of_a_plugins_command_is_its_own(arctic, install):
    install_greeting(install)
    assert arctic("greet", "trouble").code == 9


def test_the_versions_name_a_plugin_that_only_brings_commands(arctic, install):
    install_greeting(install)
    assert "arctic-plugin-greet 0.3" in arctic("--version").out


def test_a_blocked_plugin_brings_no_command_and_is_not_imported(arctic, install):
    install_greeting(install, greet_commands="raise SystemExit('imported')")
    for block in (["-p", "no:greet"], ["-pno:arctic-plugin-greet"]):
        outcome = arctic(*block, "--help")
        assert outcome.code == 0
        assert "greet" not in outcome.out


def test_environment_variables_keep_plugins_from_bringing_commands(arctic, install, monkeypatch):
    install_greeting(install)
    monkeypatch.setenv("ARCTIC_PLUGINS", "other")
    assert "greet" not in arctic("--help").out
    monkeypatch.setenv("ARCTIC_PLUGINS", "greet")
    assert "greet" in arctic("--help").out
    monkeypatch.setenv("ARCTIC_PLUGINS", "")
    monkeypatch.setenv("ARCTIC_DISABLE_PLUGIN_AUTOLOAD", "1")
    assert "greet" not in arctic("--help").out


def test_a_plugin_that_fails_is_one_line_of_the_help(arctic, install):
    install_greeting(install, greet_commands="import nothing_of_that_name\n")
    outcome = arctic("--help")
    assert outcome.code == 0
    lines = [line for line in outcome.out.splitlines() if "greet" in line]
    assert len(lines) == 1
    assert "plugin 'greet' (arctic-plugin-greet 0.3) cannot be imported" in lines[0]
    assert "nothing_of_that_name" in lines[0]
    assert "Traceback" not in outcome.out + outcome.err


def test_a_plugin_that_leaves_while_it_is_asked_is_one_line_of_the_help(arctic, install):
    install_greeting(
        install,
        greet_commands="""
        from arctic_training import hookimpl

        @hookimpl
        def arctic_register_commands(commands):
            raise SystemExit(7)
        """,
    )
    outcome = arctic("--help")
    assert outcome.code == 0
    assert "arctic_register_commands fails: SystemExit(7)" in outcome.out


def test_a_plugin_cannot_take_the_place_of_a_command_of_ours(arctic, install):
    install_greeting(
        install,
        greet_commands="""
        from arctic_training import hookimpl

        @hookimpl
        def arctic_register_commands(commands):
            commands.add("fine", "greet_words:greet", "")
            commands.add("run", "greet_words:greet", "")
        """,
    )
    outcome = arctic("--help")
    assert "offers the command 'run', which arctic itself has" in outcome.out
    assert "Train what a recipe describes." in outcome.out
    assert "fine" not in outcome.out


def test_a_command_that_cannot_be_imported_names_plugin_version_and_remedy(arctic, install):
    install_greeting(install, greet_words="1 / 0\n")
    outcome = arctic("greet")
    assert outcome.code == 3
    assert "plugin 'greet' (arctic-plugin-greet 0.3)" in outcome.err
    assert "ZeroDivisionError" in outcome.err
    assert "-p no:greet" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_target_that_is_no_click_command_is_refused(arctic, install):
    install_greeting(install, greet_words="def greet(): pass\n")
    outcome = arctic("greet")
    assert outcome.code == 3
    assert "greet_words:greet, the command 'greet', is no click command" in outcome.err


def test_plugins_that_bring_commands_are_listed_with_them(arctic, install):
    install_greeting(install)
    listed = {plugin["name"]: plugin for plugin in json.loads(arctic("plugins", "--json").out)}
    assert listed["greet"]["commands"] == ["greet"]
    assert listed["greet"]["distribution"] == "arctic-plugin-greet"
    assert listed["greet"]["version"] == "0.3"
