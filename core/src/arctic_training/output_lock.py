"""One run at a time writes its record or checkpoints into a directory: its first rank holds a lock of the system on it.

The lock goes with its process, however that ends. It is a record lock, which the workers that a process forks do not
inherit, and which NFS keeps between machines.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.distributed import from_first_rank
from arctic_training.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from arctic_training.run import Run

FILE = ".arctic-run.lock"
"""In the directory, for as long as a run holds it; says in JSON which one does."""


class Held(Exception):
    """Another process holds the lock; ``holder`` is what it wrote about itself."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__(holder)
        self.holder = holder


class OutputLocks:
    """The locks of one run: on its own directory, and on each that its enabled entries of ``checkpoint`` write into."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}

    def take_run_dir(self, run: Run) -> None:
        """Take that on the run's directory, before anything is written into it. Does nothing but on the first rank.

        Raises:
            UsageError: another run that lives writes its record there.
        """
        if run.world.is_first and (descriptor := _locked_run_dir(run.run_dir)) is not None:
            self._held[run.run_dir.resolve() / FILE] = descriptor

    def take(self, run: Run) -> None:
        """Take those on the directories of checkpoints on the first rank. Every rank calls it.

        Raises:
            CheckpointError: another run holds one; says who.
        """
        problem = self._take_all(run) if run.world.is_first else None
        problem = from_first_rank(problem)
        if problem:
            raise CheckpointError(
                problem[1], where=problem[0], remedy="wait for it, end it, or give this run another output_dir"
            )

    def release(self) -> None:
        """Give them back; only what they lie in is left."""
        for path, descriptor in self._held.items():
            with contextlib.suppress(OSError):  # the directory may be gone, and nothing is lost with the file
                path.unlink()
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._held.clear()

    def _take_all(self, run: Run) -> tuple[str, str] | None:
        entries = [entry for entry in run.config.checkpoint if entry.enabled]
        for directory in dict.fromkeys(Path(entry.output_dir).resolve() for entry in entries):
            if directory / FILE in self._held:
                continue
            try:
                directory.mkdir(parents=True, exist_ok=True)
                self._held[directory / FILE] = locked(directory / FILE, _about(run.run_dir))
            except Held as held:
                return str(directory), f"another run writes its checkpoints there: {_in_words(held.holder)}"
            except OSError as error:  # a directory that cannot be written to is told by the checks of every run
                if directory.is_dir() and os.access(directory, os.W_OK):
                    run.warn(
                        f"checkpoint: {directory}: this file system has no locks ({error.strerror}); see that no other "
                        "run writes there"
                    )
        return None


def refuse_taken(run_dir: Path) -> None:
    """Find out before ranks are started that another run has the directory.

    Raises:
        UsageError: so it is.
    """
    if (descriptor := _locked_run_dir(run_dir)) is not None:
        os.close(descriptor)


def _locked_run_dir(run_dir: Path) -> int | None:
    """The lock on the directory of a run; None without one, where the file system has none or the directory is nobody's
    to write into, of which whoever writes first complains."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return locked(run_dir.resolve() / FILE, _about(run_dir))
    except Held as held:
        raise UsageError(
            f"another run writes its record there: {_in_words(held.holder)}",
            where=str(run_dir),
            remedy="wait for it, end it, or give this run another run_dir",
        ) from None
    except OSError:
        return None


def locked(path: Path, about: dict[str, Any]) -> int:
    """Lock a file, which is made, and write into it who does.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        Held: another process has it.
        OSError: the file cannot be made, or its file system has no locks.
    """
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise Held(_read(descriptor)) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps(about).encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between our two calls


def _read(descriptor: int) -> dict[str, Any]:
    try:
        return json.loads(os.pread(descriptor, 1 << 16, 0))
    except ValueError:  # its holder has not written it yet
        return {}


def _about(run_dir: Path) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "run_dir": str(run_dir), "since": now}


def _in_words(holder: dict[str, Any]) -> str:
    if not holder:
        return "it has just begun"
    return "process {pid} on {host}, since {since}, of the run {run_dir}".format_map(
        {name: holder.get(name, "?") for name in ("pid", "host", "since", "run_dir")}
    )
