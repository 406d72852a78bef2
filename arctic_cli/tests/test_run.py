"""`arctic run` trains, in this process or through a launcher, and says in a few lines why it did not."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path

import pytest

from arctic_cli import legacy, worker
from arctic_cli.arguments import Words
from arctic_cli.errors import explain
from arctic_cli.launch import explain_failure, first_fault, worker_arguments
from arctic_cli.options import Settings

ONE_RANK_LAUNCHER = """
    import os, subprocess, sys
    from arctic_training import hookimpl
    from arctic_training.launcher import Launcher

    class OneRank(Launcher):
        name = "one_rank"

        def launch(self, worker, worker_arguments, launcher_arguments):
            with open("launched.txt", "a") as file:
                file.write(" ".join(launcher_arguments) + "\\n")
            if "--fail" in launcher_arguments:
                return int(launcher_arguments[-1])
            rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            words = [sys.executable, worker, "--local_rank=0", *worker_arguments]
            return subprocess.run(words, env={**os.environ, **rank}).returncode

    @hookimpl
    def arctic_register_components(components):
        components.launcher("one_rank", OneRank)
    """

FAULTY = """
from arctic_training.testing import TinyTrainer

class Faulty(TinyTrainer):
    name = "faulty"

    def loss(self, batch):
        if self.global_step == 1:
            raise ValueError("cannot go on")
        return super().loss(batch)
"""

WITHOUT_DEEPSPEED = ("-p", "no:deepspeed")


@pytest.fixture
def launcher(install):
    """A launcher that starts one rank; DeepSpeed's is blocked where it is used."""
    install(
        "arctic-plugin-one-rank", {"arctic": {"one_rank": "one_rank_plugin"}}, {"one_rank_plugin": ONE_RANK_LAUNCHER}
    )


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def train_steps(directory: Path) -> int:
    return sum(record["kind"] == "train" for record in metrics(directory))


def test_a_recipe_is_trained_in_this_process(arctic, recipe):
    outcome = arctic("run", str(recipe))
    assert outcome.code == 0, outcome.err
    assert train_steps(recipe.parent / "run") == 3


def test_overrides_reach_the_run(arctic, recipe):
    assert arctic("run", str(recipe), "train_iters=2", "run_dir=elsewhere").code == 0
    assert train_steps(recipe.parent / "elsewhere") == 2


def test_arctic_training_is_the_same_command(arctic, recipe):
    assert arctic(str(recipe), "train_iters=1", program=legacy.main).code == 0
    assert train_steps(recipe.parent / "run") == 1


def test_arctic_training_alone_shows_its_help_and_knows_its_version(arctic):
    assert "Usage: arctic_training RECIPE" in arctic(program=legacy.main).out
    assert "arctic-cli " in arctic("--version", program=legacy.main).out


def test_a_bad_recipe_is_refused_before_anything_starts(arctic, recipe):
    outcome = arctic("run", str(recipe), "modle=1", "epochs=-1")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 3
    assert not (recipe.parent / "run").exists()


def test_a_broken_plugin_stops_the_run_unless_it_is_blocked(arctic, recipe, install):
    install("arctic-plugin-ill", {"arctic": {"ill": "ill_plugin"}}, {"ill_plugin": "1 / 0"})
    outcome = arctic("run", str(recipe))
    assert outcome.code == 3
    assert "plugin 'ill' (arctic-plugin-ill 1.2.3) cannot be imported: ZeroDivisionError" in outcome.err
    assert "-p no:ill" in outcome.err
    assert not (recipe.parent / "run").exists()
    assert arctic("run", str(recipe), "-p", "no:ill").code == 0


def test_the_options_of_every_command_may_stand_before_the_command_too(arctic, recipe, install):
    install("arctic-plugin-ill", {"arctic": {"ill": "ill_plugin"}}, {"ill_plugin": "1 / 0"})
    assert arctic("-p", "no:ill", "run", str(recipe), "-q").code == 0


def test_the_recipes_code_is_refused_with_no_code(arctic, recipe):
    (recipe.parent / "own.py").write_text(FAULTY)
    outcome = arctic("run", str(recipe), "code=own.py", "--no-code")
    assert outcome.code == 2
    assert "--no-code refuses it" in outcome.err


def test_a_fault_in_training_is_a_line_and_the_trace_is_in_the_runs_log(arctic, recipe):
    (recipe.parent / "train.py").write_text(FAULTY)
    outcome = arctic("run", str(recipe), "type=faulty")
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert any(line == "internal error: ValueError: cannot go on" for line in lines)
    log = Path(lines[-1].removeprefix("  the whole trace: "))
    assert log == recipe.parent / "run" / "logs" / "rank-0.log"
    assert "Traceback (most recent call last)" in log.read_text()
    assert "Traceback" not in outcome.err


def test_the_trace_of_a_fault_is_shown_when_asked_for(arctic, recipe):
    (recipe.parent / "train.py").write_text(FAULTY)
    assert "Traceback (most recent call last)" in arctic("run", str(recipe), "type=faulty", "--traceback").err


def test_an_empty_path_to_resume_from_is_refused(arctic, recipe):
    for words in (["--resume="], ["--resume", " "]):
        outcome = arctic("run", str(recipe), *words)
        assert outcome.code == 2
        assert "--resume: wants a path" in outcome.err


def test_quiet_leaves_the_progress_out(arctic, recipe):
    assert "step 3/3" in arctic("run", str(recipe)).err
    assert "step 3/3" not in arctic("run", str(recipe), "-q", "run_dir=quiet").err


def test_launcher_arguments_go_to_the_launcher_untouched_and_the_rest_to_its_ranks(arctic, recipe, launcher):
    words = ["--num_gpus", "1", "train_iters=2", "--include=localhost:0", "--hostfile", "F"]
    outcome = arctic("run", str(recipe), *words, *WITHOUT_DEEPSPEED)
    assert outcome.code == 0, outcome.err
    assert (recipe.parent / "launched.txt").read_text() == "--num_gpus 1 --include=localhost:0 --hostfile F\n"
    assert train_steps(recipe.parent / "run") == 2


def test_the_parent_chooses_the_directory_of_the_run_for_all_ranks(arctic, recipe, launcher):
    recipe.write_text(recipe.read_text().replace("run_dir: run\n", ""))
    assert arctic("run", str(recipe), "--num_gpus", "1", *WITHOUT_DEEPSPEED).code == 0
    (directory,) = (recipe.parent / "runs").iterdir()
    assert train_steps(directory) == 3


def test_a_bad_recipe_is_said_once_and_nothing_is_launched(arctic, recipe, launcher):
    outcome = arctic("run", str(recipe), "modle=1", "--num_gpus", "8", *WITHOUT_DEEPSPEED)
    assert outcome.code == 2
    assert outcome.err.count("modle: unknown key") == 1
    assert not (recipe.parent / "launched.txt").exists()


def test_without_launcher_arguments_and_accelerators_nothing_is_launched(arctic, recipe, launcher):
    assert arctic("run", str(recipe), *WITHOUT_DEEPSPEED).code == 0
    assert not (recipe.parent / "launched.txt").exists()


def test_several_accelerators_are_all_used_unless_the_recipe_wants_one_process(arctic, recipe, launcher, monkeypatch):
    monkeypatch.setattr("arctic_cli.launch._count_accelerators", lambda: 2)
    assert arctic("run", str(recipe), *WITHOUT_DEEPSPEED).code == 0
    assert not (recipe.parent / "launched.txt").exists()
    assert arctic("run", str(recipe), "engine.type=auto", "run_dir=two", *WITHOUT_DEEPSPEED).code == 0
    assert (recipe.parent / "launched.txt").exists()


def test_several_accelerators_without_a_launcher_are_one_and_a_warning(arctic, recipe, monkeypatch):
    monkeypatch.setattr("arctic_cli.launch._count_accelerators", lambda: 2)
    outcome = arctic("run", str(recipe), "engine.type=auto", *WITHOUT_DEEPSPEED)
    assert outcome.code == 0, outcome.err
    assert "warning: training on one of 2 accelerators" in outcome.err


def test_launcher_arguments_without_a_launcher_name_the_distribution_to_install(arctic, recipe):
    outcome = arctic("run", str(recipe), "--num_gpus", "2", *WITHOUT_DEEPSPEED)
    assert outcome.code == 3
    assert "needed by the argument --num_gpus" in outcome.err
    assert "pip install arctic-plugin-deepspeed" in outcome.err


def test_a_rank_does_not_launch_again(arctic, recipe, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    outcome = arctic("run", str(recipe), "--num_gpus", "2")
    assert outcome.code == 2
    assert "this process is a rank of a launcher already" in outcome.err
    assert arctic("run", str(recipe)).code == 0


def test_a_rank_of_another_launcher_says_its_number_with_its_error(arctic, recipe, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (line,) = arctic("run", str(recipe), "modle=1").err.splitlines()
    assert line.startswith("rank 1: override 'modle=1'")


def test_the_last_lines_of_a_launched_run_that_failed_are_rank_cause_and_log(recipe, launcher, arctic_process):
    (recipe.parent / "train.py").write_text(FAULTY)
    outcome = arctic_process("run", str(recipe), "type=faulty", "--num_gpus", "1", *WITHOUT_DEEPSPEED)
    assert outcome.code == 1
    log = recipe.parent / "run" / "logs" / "rank-0.log"
    assert outcome.err.splitlines()[-2:] == [
        "error: rank 0: ValueError: cannot go on",
        f"  the whole log: {log}",
    ]
    assert outcome.err.count("cannot go on") == 1
    assert "Traceback" not in outcome.err
    assert "in loss" in log.read_text()


def test_ranks_that_end_without_a_word_are_told_by_the_launchers_exit_code(arctic, recipe, launcher):
    outcome = arctic("run", str(recipe), *WITHOUT_DEEPSPEED, "--fail", "7")
    assert outcome.code == 7
    assert "the ranks ended with exit code 7" in outcome.err


@pytest.mark.parametrize("code", [-9, 137])
def test_a_run_that_a_signal_ended_is_128_and_the_signal(code, tmp_path):
    write_fault(tmp_path, 1, 20.1, "RuntimeError: connection closed by peer")
    error = explain_failure(code, tmp_path)
    assert error.exit_code == 137
    assert "ended by signal 9 (SIGKILL)" in str(error)


def write_fault(run_dir: Path, rank: int, time: float, message: str, exit_code: int = 1, **more: bool) -> None:
    (run_dir / "logs").mkdir(exist_ok=True)
    fault = {"rank": rank, "time": time, "message": message, "exit_code": exit_code, "log": f"logs/rank-{rank}.log"}
    fault |= more
    (run_dir / "logs" / f"fault-rank-{rank}.json").write_text(json.dumps(fault))


@pytest.mark.parametrize(("code", "by"), [(143, "by SIGTERM after step 12"), (6, "after step 12, as was asked")])
def test_ranks_that_stop_on_request_say_what_one_process_says(code, by, tmp_path, capsys):
    said = f"stopped {by}\n  saved kept/global_step_12; the same command goes on from there"
    for rank in (1, 0):
        write_fault(tmp_path, rank, 20.0 - rank, said, exit_code=code, was_asked=True)
    assert explain(explain_failure(code, tmp_path), Settings()) == code
    assert capsys.readouterr().err == f"{said}\n  the whole log: logs/rank-1.log\n"


def test_the_earliest_fault_is_the_cause(tmp_path):
    write_fault(tmp_path, 0, 20.5, "RuntimeError: connection closed by peer")
    write_fault(tmp_path, 1, 20.1, "the loss is nan at step 3\n  lower the learning rate", exit_code=6)
    fault = first_fault(tmp_path)
    assert fault is not None
    assert fault.rank == 1
    error = explain_failure(1, tmp_path)
    assert error.exit_code == 6
    assert (
        str(error) == "rank 1: the loss is nan at step 3\n  lower the learning rate\n  the whole log: logs/rank-1.log"
    )


def test_a_rank_that_aborts_because_another_failed_is_not_the_cause(tmp_path):
    write_fault(tmp_path, 1, 20.1, "ValueError: cannot go on")
    assert str(explain_failure(134, tmp_path)).startswith("rank 1: ValueError: cannot go on")


def test_faults_of_an_earlier_run_in_the_same_directory_are_forgotten(arctic, recipe, launcher):
    (recipe.parent / "run").mkdir()
    write_fault(recipe.parent / "run", 5, 1.0, "long ago")
    outcome = arctic("run", str(recipe), *WITHOUT_DEEPSPEED, "--fail", "7")
    assert "long ago" not in outcome.err


def test_a_rank_is_started_with_the_same_words_but_the_launchers():
    words = Words("r.yaml", ("seed=1",), ("--num_gpus", "2"))
    settings = Settings(block=["a", "b"], code=False, verbosity=-2, color=False, traceback=True)
    assert worker_arguments(words, settings, Path("runs/x")) == [
        *["-p", "no:a", "-p", "no:b", "--no-code", "--traceback", "--no-color", "-q", "-q"],
        *["--run-dir=runs/x", f"--parent-host={socket.gethostname()}", "--", "r.yaml", "seed=1"],
    ]


def test_a_rank_of_another_machine_says_its_error_itself(recipe, arctic, monkeypatch):
    (recipe.parent / "train.py").write_text(FAULTY)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(worker, "watch_parent", lambda: None)
    for host, times in (("elsewhere", 1), (socket.gethostname(), 0)):
        outcome = arctic(f"--parent-host={host}", str(recipe), "type=faulty", program=worker.main)
        assert outcome.code == 1
        assert outcome.err.count("rank 0: internal error: ValueError: cannot go on") == times


def test_the_worker_says_its_rank_with_its_error(arctic, recipe, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(worker, "watch_parent", lambda: None)
    outcome = arctic("--local_rank=1", str(recipe), "train_iters=-1", program=worker.main)
    assert outcome.code == 2
    assert re.match(r"rank 3: .*train_iters", outcome.err)


def test_the_worker_finds_the_standard_library_and_not_its_neighbours(recipe, arctic_home):
    import subprocess

    code = "import sys, runpy; sys.argv = ['worker.py', '--help']; runpy.run_path(sys.argv.pop(0), run_name='x')"
    assert (
        subprocess.run([sys.executable, "-c", code.replace("worker.py", worker.__file__)], timeout=60).returncode == 0
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", worker.__file__, "--help"], capture_output=True, text=True, timeout=60
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "arctic_cli.run" in imported
    assert not {"run", "errors", "plugins", "options"} & imported
