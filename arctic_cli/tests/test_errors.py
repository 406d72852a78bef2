"""One door for errors: a few lines, the right exit code, no traceback unless asked, the whole of it in a log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arctic_cli.errors import explain, guarded
from arctic_cli.main import main
from arctic_cli.options import Settings
from arctic_training.errors import (
    ArcticError,
    CheckpointError,
    DataError,
    PluginError,
    Problem,
    RecipeError,
    TrainingStopped,
    UsageError,
)


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("kind", "code"),
    [(ArcticError, 1), (UsageError, 2), (PluginError, 3), (DataError, 4), (CheckpointError, 5), (TrainingStopped, 6)],
)
def test_each_kind_of_error_has_its_exit_code_and_says_what_where_and_what_to_do(kind, code, capsys):
    error = kind("it is broken", where="recipe.yaml:3", remedy="mend it")
    assert guarded(raising(error), Settings()) == code
    assert capsys.readouterr().err == "error: recipe.yaml:3: it is broken\n  mend it\n"


def test_every_problem_of_a_recipe_is_a_line_that_begins_with_its_place(capsys):
    problems = [
        Problem("unknown key", "modle", "r.yaml", 3, 1, "did you mean 'model'?"),
        Problem("too small", "seed", "r.yaml", 2, 7),
    ]
    assert explain(RecipeError(problems), Settings()) == 2
    assert capsys.readouterr().err.splitlines() == [
        "r.yaml:2:7: seed: too small",
        "r.yaml:3:1: modle: unknown key; did you mean 'model'?",
        "2 problems in the recipe",
    ]
    explain(RecipeError(problems, is_complete=False), Settings())
    assert capsys.readouterr().err.splitlines()[-1] == (
        "2 problems in the recipe; what depends on these keys is checked when they are right"
    )


def test_an_interruption_is_130(capsys):
    assert guarded(raising(KeyboardInterrupt()), Settings()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_fault_of_ours_is_a_line_and_a_log_with_the_whole_trace(arctic_home, capsys):
    def deep():
        raise ZeroDivisionError("by zero")

    assert guarded(deep, Settings()) == 1
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "internal error: ZeroDivisionError: by zero"
    assert re.fullmatch(r"  .*test_errors\.py:\d+, in deep", second)
    path = third.removeprefix("  the whole trace: ")
    assert path.startswith(str(arctic_home / "arctic-home" / "logs"))
    text = Path(path).read_text()
    assert "Traceback (most recent call last)" in text
    assert "in deep" in text


def test_the_log_of_a_run_is_named_instead_of_a_new_one(capsys):
    error = TrainingStopped("the loss is nan at step 3", remedy="lower the learning rate")
    error.arctic_log_path = "runs/x/logs/rank-0.log"
    assert explain(error, Settings()) == 6
    assert capsys.readouterr().err.splitlines()[-1] == "  the whole log: runs/x/logs/rank-0.log"


def test_a_log_that_cannot_be_written_does_not_hide_the_error(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARCTIC_HOME", str(tmp_path / "file"))
    assert guarded(raising(ValueError("broken")), Settings()) == 1
    printed = capsys.readouterr().err
    assert "internal error: ValueError: broken" in printed
    assert "not written" in printed


def test_a_long_error_is_cut_to_five_lines_and_the_whole_of_it_logged(arctic_home, capsys):
    error = DataError("\n".join(f"fault {number}" for number in range(20)), remedy="mend them all")
    assert explain(error, Settings()) == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0] == "error: fault 0"
    assert lines[-2] == "  mend them all"
    assert "fault 19" in Path(lines[-1].removeprefix("  the whole log: ")).read_text()


def test_several_faults_of_plugins_are_all_told(capsys):
    faults = [f"plugin {number} is broken\n  block it" for number in range(4)]
    assert explain(PluginError("\n".join(["4 faults of plugins", *faults])), Settings()) == 3
    assert len(capsys.readouterr().err.splitlines()) == 9


def test_the_trace_is_shown_when_it_is_asked_for(capsys):
    guarded(raising(DataError("no rows")), Settings(traceback=True))
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert printed.splitlines()[-1] == "error: no rows"


def test_one_of_several_processes_says_who_it_is_in_one_line(capsys):
    explain(DataError("no rows", where="chats.jsonl", remedy="add some"), Settings(speaker="rank 1"))
    assert capsys.readouterr().err == "rank 1: error: chats.jsonl: no rows; add some\n"


def test_a_fault_in_the_hook_of_a_plugin_names_the_plugin(arctic_home, capsys):
    from arctic_training.provenance import PluginInfo, add_note

    for name, distribution, told in (("core", "arctic-core", False), ("focal", "arctic-plugin-focal", True)):
        error = ValueError("too wide")
        error.arctic_plugin = PluginInfo(name, distribution, "1.0")
        add_note(error, f"raised in arctic_step_end of plugin {name!r}")
        explain(error, Settings())
        assert (f"raised in arctic_step_end of plugin {name!r}" in capsys.readouterr().err) is told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "a recipe is missing"),
        (["validate"], "Missing argument 'RECIPE'"),
        (["validate", "r.yaml", "--unheard-of"], "No such option"),
        (["plugins", "-p", "sft"], "expected no:NAME to block a plugin, found 'sft'"),
        (["plugins", "hoooks"], "No such command 'hoooks'"),
    ],
)
def test_a_wrong_command_line_is_2_and_points_to_the_help(words, message, arctic):
    outcome = arctic(*words)
    assert outcome.code == 2
    assert message in outcome.err
    assert "--help shows what it takes" in outcome.err.splitlines()[-1]


class FakeTerminal:
    """Standard error as a terminal sees it."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def isatty(self):
        return True


def test_errors_are_coloured_on_a_terminal_that_wants_it(monkeypatch, capsys):
    import sys

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", FakeTerminal(sys.stderr))
    explain(DataError("no rows"), Settings())
    assert "\x1b[31m" in capsys.readouterr().err
    explain(DataError("no rows"), Settings(color=False))
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    explain(DataError("no rows"), Settings())
    assert "\x1b" not in capsys.readouterr().err


def test_arctic_alone_shows_its_help_and_calls_it_no_error(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "Usage: arctic" in captured.out + captured.err
    assert "error:" not in captured.err
