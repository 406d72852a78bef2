"""No rank outlives its launcher: a rank watches the processes above it, and ends itself and its children when one is
gone.

Signals and exit codes cannot do this: a launcher that is killed with SIGKILL has no chance to tell its ranks.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

LAUNCHER = "ARCTIC_LAUNCHER"
"""Environment variable in which a launcher names itself to its ranks, as ``launcher_mark`` gives it."""
SECONDS_BETWEEN_LOOKS = 1.0
SHARED_MEMORY = Path("/dev/shm")
# Who makes segments for a training process: NCCL, torch's loaders, multiprocessing, DeepSpeed.
_OUR_SEGMENTS = re.compile(r"(nccl|cuda|torch|psm|sem\.mp|deepspeed|__KMP)[-_.]")
_PROCESSES = Path("/proc")


class Process:
    """A running process. A process number is used again, so it is told apart by the time of its start."""

    def __init__(self, pid: int, parent: int = 0, group: int = 0, started: int = 0) -> None:
        self.pid = pid
        self.parent = parent
        self.group = group
        self.started = started

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """The process with this number, or None when there is none or the system does not tell (it does on Linux)."""
        try:
            text = (_PROCESSES / str(pid) / "stat").read_text("ascii", "replace")
        except OSError:
            return None
        # The name stands in parentheses and may hold anything; the fields after it are numbered from the state.
        state, parent, group, *rest = text.rpartition(")")[2].split()
        return None if state in "ZX" else cls(pid, int(parent), int(group), int(rest[16]))

    @property
    def is_running(self) -> bool:
        """Whether this very process still runs."""
        now = Process.find(self.pid)
        return now is not None and now.started == self.started


def watch_parent(environment: Mapping[str, str] = os.environ) -> None:
    """End this process, with its children, once a process above it is gone.

    Watched are the parent and those above it up to the one that ``ARCTIC_LAUNCHER`` names, once a second, from a thread
    of its own.

    Args:
        environment: where the launcher is looked up.
    """
    parent = os.getppid()
    launcher = _launcher_of(environment)
    chain = _chain_to(launcher)
    group = os.getpgrp()
    # A group that was made below the launcher holds its ranks and nothing else; one made above it holds the user's
    # shell.
    is_own_group = any(process.pid == group for process in chain if process is not launcher)

    def watch() -> None:
        while os.getppid() == parent and all(process.is_running for process in chain):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        end_group(group) if is_own_group else end_family()

    threading.Thread(target=watch, name="arctic-watch-parent", daemon=True).start()


def end_with_parent(parent: int) -> None:
    """End this process, and nothing else, once its parent is gone; for workers, which have no children.

    Args:
        parent: the number of the parent, told by itself: it may be gone before this process can ask.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, name="arctic-watch-parent", daemon=True).start()


def launcher_mark() -> str:
    """What a launcher puts into the environment of its ranks: this machine, this process, and when it started."""
    here = Process.find(os.getpid())
    return f"{platform.node()} {os.getpid()} {here.started if here else 0}"


def end_group(group: int) -> None:
    """Kill a process group, and remove the shared memory that it would leave behind."""
    members = [process.pid for process in processes() if process.group == group]
    segments = [path for pid in members for path in mapped_segments(pid)]
    for path in segments:
        path.unlink(missing_ok=True)
    try:
        os.killpg(group, signal.SIGKILL)  # at once, so that none of them starts another meanwhile
    except (ProcessLookupError, PermissionError):
        return


def end_family() -> None:
    """Kill this process and all below it, and remove the shared memory that they would leave behind."""
    for path in mapped_segments(os.getpid()):
        path.unlink(missing_ok=True)
    end_children()
    os.kill(os.getpid(), signal.SIGKILL)


def end_children() -> None:
    """Kill all processes below this one, and remove the shared memory that they would leave behind."""
    pids = [process.pid for process in descendants(os.getpid())]
    for pid in pids:
        for path in mapped_segments(pid):
            path.unlink(missing_ok=True)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def processes() -> list[Process]:
    """All running processes; none where the system does not tell."""
    try:
        pids = [int(entry.name) for entry in _PROCESSES.iterdir() if entry.name.isdigit()]
    except OSError:
        return []
    return [process for pid in pids if (process := Process.find(pid)) is not None]


def descendants(pid: int) -> list[Process]:
    """The children of a process, their children, and so on."""
    children: dict[int, list[Process]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    parents = [pid]
    while parents:
        below = children.get(parents.pop(), [])
        found += below
        parents += [process.pid for process in below]
    return found


def takes_signals(pid: int) -> bool:
    """Whether a process handles SIGTERM itself; one that does not is ended by it."""
    try:
        status = (_PROCESSES / str(pid) / "status").read_text("ascii", "replace")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def mapped_segments(pid: int) -> list[Path]:
    """Files in /dev/shm that a process has mapped and that a library of training made there."""
    try:
        lines = (_PROCESSES / str(pid) / "maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    paths = {Path(parts[5]) for line in lines if len(parts := line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if path.parent == SHARED_MEMORY and _OUR_SEGMENTS.match(path.name))


def _launcher_of(environment: Mapping[str, str]) -> Process | None:
    """The launcher that the environment names, if it is one of this machine and the machine tells about processes."""
    host, pid, started, *_ = [*environment.get(LAUNCHER, "").split(), "", "", ""]
    if host != platform.node() or not pid.isdigit() or not started.isdigit() or not int(started):
        return None
    return Process(int(pid), started=int(started))


def _chain_to(launcher: Process | None) -> list[Process]:
    """The processes above this one up to the launcher, or the launcher alone when it is not above; it may be gone
    already."""
    if launcher is None:
        return []
    chain: list[Process] = []
    process = Process.find(os.getppid())
    while process is not None and process.pid != launcher.pid:
        chain.append(process)
        process = Process.find(process.parent)
    return [launcher] if process is None else [*chain, launcher]
