"""The entries of the cache of prepared rows: what is there, why a key differs from another, what may go."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import attrs

from arctic_training.cache_key import differences
from arctic_training.data_cache import KEY_FILE
from arctic_training.prepared import INDEX_FILE, is_whole

HALF_WAY = ".incomplete"

State = Literal["whole", "damaged", "in preparation", "half-way"]
"""``half-way`` is what a killed process left."""


@attrs.frozen
class Entry:
    """One entry: its directory, what it was prepared for, and the state that it is in.

    ``size`` is in bytes, ``created`` and ``used`` in seconds since 1970, ``parts`` what its key was made of.
    """

    path: Path
    state: State
    size: int
    created: float
    used: float
    split: str
    recipe: str
    parts: dict[str, Any] | None

    @property
    def key(self) -> str:
        """What names it."""
        return self.path.name.removesuffix(HALF_WAY)

    @property
    def whole(self) -> bool:
        """Whether a run can use it."""
        return self.state == "whole"


def entries(directory: Path) -> list[Entry]:
    """The entries of a cache, the last used first; those that a killed process left half-way are among them."""
    if not directory.is_dir():
        return []
    found = [_entry(path) for path in directory.iterdir() if path.is_dir()]
    return sorted(found, key=lambda entry: -entry.used)


def nearest(
    parts: dict[str, Any], split: str, others: Iterable[Entry]
) -> tuple[Entry, list[tuple[str, Any, Any]]] | None:
    """The entry of the same split that differs in the fewest parts, and where: the path, its part, this part."""
    best: tuple[Entry, list[tuple[str, Any, Any]]] | None = None
    for entry in others:
        if not entry.whole or entry.parts is None or entry.split != split:
            continue
        found = list(differences(entry.parts, parts))
        if best is None or len(found) < len(best[1]):
            best = entry, found
    return best


def remove(entry: Entry) -> bool:
    """Remove an entry, unless somebody prepares it at the moment; a run that has it mapped goes on with it.

    Returns:
        Whether it is gone.
    """
    path = entry.path.with_name(entry.key)
    lock = _locked_alone(path)
    if lock is None:
        return False
    try:
        half_way = path.with_name(f"{entry.key}{HALF_WAY}")
        if path == entry.path:  # moved first, so that nobody finds half of it
            shutil.rmtree(half_way, ignore_errors=True)
            os.rename(path, half_way)
        shutil.rmtree(half_way, ignore_errors=True)
        return True
    except FileNotFoundError:  # somebody else has removed it
        return True
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # as long as it is held: who waits for it looks for another then
        lock.release()


def remove_locks(directory: Path) -> None:
    """Remove the lock files to which nothing belongs any more, such as those of preparations that failed."""
    for file in directory.glob("*.lock"):
        path = file.with_suffix("")
        if path.exists() or path.with_name(f"{path.name}{HALF_WAY}").exists():
            continue
        lock = _locked_alone(path)
        if lock is not None:
            file.unlink(missing_ok=True)  # as long as it is held, as in ``remove``
            lock.release()


def _locked_alone(path: Path) -> Any:
    """The lock of an entry, taken; None where somebody else has it."""
    from filelock import FileLock, SoftFileLock, Timeout

    file = Path(f"{path}.lock")
    by_existence = file.exists() and file.stat().st_size > 0  # names who has it; a lock of the system is an empty file
    lock: Any = SoftFileLock(file) if by_existence else FileLock(file)
    try:
        lock.acquire(timeout=0)
    except (Timeout, NotImplementedError):
        return None
    return lock


def _state(path: Path) -> State:
    if not path.name.endswith(HALF_WAY):
        return "whole" if is_whole(path) else "damaged"
    lock = _locked_alone(path.with_name(path.name.removesuffix(HALF_WAY)))
    if lock is None:
        return "in preparation"
    lock.release()
    return "half-way"


def _entry(path: Path) -> Entry:
    try:
        note = json.loads((path / KEY_FILE).read_text())
    except (OSError, ValueError):
        note = {}
    sizes, times = [0], [0.0]
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # one of an entry in preparation
            found = file.stat()
            sizes.append(0 if file.is_dir() else found.st_size)
            times.append(found.st_mtime)
    index = path / INDEX_FILE
    modified = max(times) or time.time()
    return Entry(
        path=path,
        state=_state(path),
        size=sum(sizes),
        created=float(note.get("created") or modified),
        used=index.stat().st_mtime if index.exists() else modified,
        split=str(note.get("split") or ""),
        recipe=str(note.get("recipe") or ""),
        parts=note.get("parts"),
    )
