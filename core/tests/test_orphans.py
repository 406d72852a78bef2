"""A rank ends, with all below it, when a process above it is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arctic_training.orphans import LAUNCHER, Process, descendants, launcher_mark, mapped_segments

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell of processes")

# A rank with a child of its own; it says both numbers and then waits to be ended.
RANK = """
import os, subprocess, sys, time
from arctic_training.orphans import watch_parent
watch_parent()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""
# Stands between a launcher and its rank, as DeepSpeed's own programs do.
BETWEEN = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
LAUNCHES = """
import os, subprocess, sys
from arctic_training.orphans import LAUNCHER, launcher_mark
environment = {**os.environ, LAUNCHER: launcher_mark()}
subprocess.run([sys.executable, *sys.argv[1:]], env=environment, start_new_session=NEW_SESSION)
"""


def start(code, *arguments, **environment):
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    return process, [int(word) for word in process.stdout.readline().split()]


def wait_until_gone(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if Process.find(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@pytest.fixture
def cleared():
    """Ends what a failed test leaves behind."""
    pids = []
    yield pids
    for pid in pids:
        if Process.find(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("new_session", [True, False], ids=["a group of its own", "the group of a shell"])
def test_a_rank_ends_with_its_children_when_the_launcher_is_killed(cleared, new_session):
    code = LAUNCHES.replace("NEW_SESSION", str(new_session))
    launcher, ranks = start(code, "-c", BETWEEN, RANK)
    cleared += ranks
    launcher.kill()
    launcher.wait()
    assert not wait_until_gone(ranks)


def test_a_rank_ends_when_its_parent_is_killed_and_nobody_named_a_launcher(cleared):
    parent, ranks = start(BETWEEN, RANK)
    cleared += ranks
    parent.kill()
    parent.wait()
    assert not wait_until_gone(ranks)


def test_a_rank_that_starts_after_its_launcher_was_killed_ends_at_once(cleared):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mark = " ".join([launcher_mark().split()[0], str(gone.pid), "1"])
    _, ranks = start(RANK, **{LAUNCHER: mark})
    cleared += ranks
    assert not wait_until_gone(ranks[:1])


def test_a_rank_of_another_machine_does_not_look_for_its_launcher_here(cleared):
    _, ranks = start(RANK, **{LAUNCHER: "elsewhere.example 1 1"})
    cleared += ranks
    time.sleep(2)
    assert Process.find(ranks[0])


def test_descendants_are_children_and_their_children(cleared):
    parent, (rank, child) = start(BETWEEN, RANK)
    cleared += [parent.pid, rank, child]
    assert {process.pid for process in descendants(parent.pid)} == {rank, child}


def test_only_shared_memory_that_training_libraries_made_is_taken_for_ours():
    import mmap

    names = ["nccl-arctic-test", "somebody-elses"]
    paths = [Path("/dev/shm") / name for name in names]
    maps = []
    try:
        for path in paths:
            path.write_bytes(b"0" * 4096)
            with open(path, "r+b") as file:
                maps.append(mmap.mmap(file.fileno(), 4096))
        assert mapped_segments(os.getpid()) == paths[:1]
    finally:
        for opened, path in zip(maps, paths, strict=False):
            opened.close()
            path.unlink()


# A worker whose parent is gone before it can look; it says its number.
WORKER = """
import os, sys, time
from arctic_training.orphans import end_with_parent
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
print(os.getpid(), flush=True)
end_with_parent(parent)
time.sleep(60)
"""


def test_a_worker_whose_parent_was_gone_before_it_began_ends_too(cleared):
    _, (worker,) = start(WORKER)
    cleared.append(worker)
    waited = time.monotonic() + 5
    while Process.find(worker) and time.monotonic() < waited:
        time.sleep(0.05)
    assert Process.find(worker) is None
