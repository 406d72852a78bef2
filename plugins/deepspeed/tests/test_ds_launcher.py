"""DeepSpeed's launcher starts ranks, says which code they ended with, and leaves nothing behind however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from arctic_deepspeed.launcher import DeepSpeedLauncher, exit_code_of, launcher_command
from arctic_training.errors import UsageError

WORKER = str(Path(__file__).with_name("worker_waits.py"))
SHARED_MEMORY = Path("/dev/shm")
# What `arctic run` is to the launcher: the process that calls it.
COMMAND = """
import sys
from arctic_deepspeed.launcher import DeepSpeedLauncher
sys.exit(DeepSpeedLauncher().launch(sys.argv[1], sys.argv[2:], ["--num_gpus", "2"]))
"""


class Launched:
    """A command that has launched two ranks."""

    def __init__(self, directory, order):
        self.directory = directory
        self.shared_memory = set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else set()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, WORKER, str(directory), order],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_ranks(self):
        while len(list(self.directory.glob("rank-?"))) < 2:
            assert self.process.poll() is None, self.process.stdout.read()
            time.sleep(0.05)
        return self

    def end(self, seconds):
        """The exit code; fails when the command, a rank or a child of one is there after so many seconds."""
        deadline = time.monotonic() + seconds
        code = self.process.wait(timeout=seconds)
        numbers = [path.read_text().split()[:2] for path in self.directory.glob("rank-?")]
        pids = [int(pid) for pair in numbers for pid in pair]
        assert len(pids) == 4
        while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left
        if SHARED_MEMORY.is_dir():
            assert set(os.listdir(SHARED_MEMORY)) <= self.shared_memory
        return code

    def below(self, program):
        """The process below the command that runs this."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return next(process.pid for process in below if program in process.cmdline())


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def launched(tmp_path):
    started = []

    def launch(order):
        started.append(Launched(tmp_path, order))
        return started[-1]

    yield launch
    for each in started:
        each.process.kill()
        each.process.stdout.close()


@pytest.mark.distributed
def test_two_ranks_run_quietly_and_end_well(launched):
    run = launched("end")
    assert run.end(60) == 0
    assert run.process.stdout.read() == ""
    texts = [(run.directory / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert all(text.split()[2:] == ["2", "[]"] for text in texts)


@pytest.mark.distributed
@pytest.mark.parametrize(("order", "code"), [("fail", 6), ("die", 128 + signal.SIGKILL)])
def test_the_code_is_that_of_the_rank_that_failed_and_all_end_soon(launched, order, code):
    run = launched(order).wait_for_ranks()
    assert run.end(30) == code


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_ranks(launched, number):
    run = launched("wait").wait_for_ranks()
    run.process.send_signal(number)
    assert run.end(30) == 128 + number


@pytest.mark.distributed
def test_nothing_outlives_a_command_that_is_killed(launched):
    run = launched("wait").wait_for_ranks()
    run.process.kill()
    run.end(30)


@pytest.mark.distributed
@pytest.mark.parametrize("program", ["arctic_deepspeed.runner", "deepspeed.launcher.launch"])
def test_nothing_outlives_a_launcher_that_is_killed_and_the_code_says_so(launched, program):
    run = launched("wait").wait_for_ranks()
    os.kill(run.below(program), signal.SIGKILL)
    assert run.end(30) == 128 + signal.SIGKILL


def test_arguments_are_handed_on_as_they_stand():
    given = ["--num_nodes", "2", "--hostfile", "hosts", "--include", "a:0@b:1"]
    assert launcher_command(given)[-6:] == given
    assert not [word for word in launcher_command(given) if "master_port" in word]


def test_two_runs_on_one_machine_get_two_ports():
    ports = [next(word for word in launcher_command([]) if "master_port" in word) for _ in range(2)]
    assert ports[0] != ports[1]


def test_what_the_user_says_about_port_and_log_stands_alone():
    command = launcher_command(["--master_port=29511", "-q"])
    assert sum("master_port" in word for word in command) == 1
    assert not any("log_level" in word for word in command)


@pytest.mark.parametrize(
    ("status", "code"), [(0, 0), (1, 1), (6, 6), (143, 143), (-9, 137), (256 - 9, 137), (256 - 15, 143)]
)
def test_a_rank_that_a_signal_ended_is_said_as_a_shell_says_it(status, code):
    assert exit_code_of(status) == code


def test_the_launcher_is_made_without_a_run():
    assert DeepSpeedLauncher().name == "deepspeed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", "2"], "does not take --epochs 2|belongs to no option"),
        (["--num_gpus", "two"], "invalid int value: 'two'"),
        (["--num_gpus", "2", "more"], "'more' belongs to no option"),
        (["--hostfile", "absent.txt"], "there is no hostfile absent.txt"),
    ],
)
def test_arguments_that_the_launcher_does_not_know_are_refused_in_words(arguments, said):
    with pytest.raises(UsageError, match=said) as caught:
        DeepSpeedLauncher().launch("worker.py", [], arguments)
    assert caught.value.exit_code == 2
