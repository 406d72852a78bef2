"""The entries of the cache of prepared rows: what is there, why a key differs from another, what may go."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from arctic_training.cache_key import differences
from arctic_training.data_cache import KEY_FILE
from arctic_training.prepared import INDEX_FILE, is_whole


@attrs.frozen
class Entry:
    """One entry: its directory, what it was prepared for, and whether it is whole.

    ``size`` is in bytes, ``created`` and ``used`` in seconds since 1970, ``parts`` what its key was made of.
    """

    path: Path
    whole: bool
    size: int
    created: float
    used: float
    split: str
    recipe: str
    parts: dict[str, Any] | None

    @property
    def key(self) -> str:
        """The name of its directory."""
        return self.path.name


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
    from filelock import FileLock, Timeout

    path = entry.path.with_name(entry.key.removesuffix(".incomplete"))
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        if path == entry.path:  # moved first, so that nobody finds half of it
            doomed = path.with_name(f"{path.name}.incomplete")
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(path, doomed)
        shutil.rmtree(path.with_name(f"{path.name}.incomplete"))
        return True
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _entry(path: Path) -> Entry:
    try:
        note = json.loads((path / KEY_FILE).read_text())
    except (OSError, ValueError):
        note = {}
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    index = path / INDEX_FILE
    modified = max((file.st_mtime for file in files), default=time.time())
    return Entry(
        path=path,
        whole=not path.name.endswith(".incomplete") and is_whole(path),
        size=sum(file.st_size for file in files),
        created=float(note.get("created") or modified),
        used=index.stat().st_mtime if index.exists() else modified,
        split=str(note.get("split") or ""),
        recipe=str(note.get("recipe") or ""),
        parts=note.get("parts"),
    )
