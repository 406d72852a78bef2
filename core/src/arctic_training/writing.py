"""Writes the files of a checkpoint: at once, or from a copy in host memory while training goes on."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import threading
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.errors import ArcticError
from arctic_training.manifest import hash_and_sync

if TYPE_CHECKING:
    import torch

LEAST_PRIORITY = 19


class Writer:
    """Takes the files that a checkpoint engine gives it on one rank.

    Args:
        directory: of the checkpoint.
        background: keep what is given in host memory, and write it when ``start`` is called, in a thread.
    """

    def __init__(self, directory: Path, *, background: bool = False) -> None:
        self.directory = directory
        self.background = background
        self.problem: str | None = None
        self.hashes: dict[str, list[Any]] = {}
        """Size and sha256 of the files that were written, by their path in the directory."""
        self._paths: list[Path] = []
        self._waiting: list[Callable[[], Iterable[Path]]] = []
        self._thread: threading.Thread | None = None

    def save(self, state: Any, path: Path) -> None:
        """Write with ``torch.save``."""
        import torch

        kept = self.kept(state)
        self.write(path, lambda: torch.save(kept, path))

    def write(self, path: Path, function: Callable[[], object]) -> None:
        """Write one file by calling a function, now or later; what it uses must have gone through ``kept``."""

        def write() -> list[Path]:
            function()
            return [path]

        self.run(write)

    def run(self, function: Callable[[], Iterable[Path]]) -> None:
        """Call a function that writes files and gives their paths, now or later, in the order of these calls."""
        if self.background:
            self._waiting.append(function)
        else:
            self._paths += function()

    def kept(self, state: Any) -> Any:
        """The same values where training does not change them: as they are when they are written at once."""
        return on_host(state) if self.background else state

    def start(self) -> None:
        """Write what waits, hash and sync all files; in the background a thread does it."""
        if self.background:
            self._thread = threading.Thread(target=self._finish, name="arctic-checkpoint", daemon=True)
            self._thread.start()
        else:
            self._finish()

    @property
    def is_busy(self) -> bool:
        """Whether the thread still writes."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()

    def _finish(self) -> None:
        if self._thread is not None:
            _step_back()
        try:
            while self._waiting:
                self._paths += self._waiting.pop(0)()  # which lets go of its memory
            for path in self._paths:
                self.hashes[path.relative_to(self.directory).as_posix()] = hash_and_sync(path)
        except Exception as error:  # noqa: BLE001 - voted on by all ranks, whatever it is
            self.problem = problem_of(error, self.directory)
            self._waiting.clear()


def _step_back() -> None:
    """Let this thread have what training leaves of the cores, where the system knows priorities of threads."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)


def problem_of(error: Exception, directory: Path) -> str:
    """What went wrong with a checkpoint, as text that ranks can send each other.

    Args:
        error: what was raised.
        directory: of the checkpoint, which is lost.
    """
    if reason := _reason_of(error, directory):
        return reason
    if isinstance(error, ArcticError):
        return error.message
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _reason_of(error: Exception, directory: Path) -> str | None:
    """Why a file cannot grow, which torch does not tell: of a full disk it says that a position is unexpected. One more
    block is tried on each file of what is lost anyway."""
    if not isinstance(error.__cause__ or error, RuntimeError):
        return None
    path = directory
    try:
        for path in sorted(each for each in directory.rglob("*") if each.is_file()):
            with open(path, "ab", buffering=0) as file:
                file.write(bytes(4096))
    except OSError as found:
        return f"{found.strerror}: {found.filename or path}"
    return None


def on_host(state: Any) -> Any:
    """A copy of nested containers whose tensors lie in host memory. Tensors that share memory share it in the copy too,
    so that a file comes out as it would have without."""
    return _Copies().of(state)


class _Copies:
    def __init__(self) -> None:
        self.storages: dict[tuple[Any, int], Any] = {}

    def of(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, MutableMapping):
            copied = copy.copy(value)  # with what it carries besides, such as the versions of a model's state
            for key, item in value.items():
                copied[key] = self.of(item)
            return copied
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.of, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.of, value))
        return copy.deepcopy(value)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        key = (storage.device, storage.data_ptr())
        if not storage.data_ptr():
            return tensor.cpu().clone()
        if key not in self.storages:
            self.storages[key] = storage.cpu() if storage.device.type != "cpu" else storage.clone()
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(self.storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())
