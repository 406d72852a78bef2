"""What may be run or unpickled unasked: nothing that another user of this machine could have put there.

And what a run writes is never open for everybody to change, whatever the user's umask.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRUST = "or say --trust if you know who wrote it"


def written_by_others(path: Path) -> str | None:
    """Why somebody else could have written a file, or into a folder; None where only those could whom the user shares
    more than a temporary folder with.

    Two things tell: everybody may write to it; or it belongs to neither this user nor root, and lies somewhere below a
    folder that everybody may write to, such as ``/tmp``.
    """
    if not hasattr(os, "geteuid"):  # permissions of this system are of another kind
        return None
    place = path.absolute()
    status = place.stat()
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return f"everybody can write to {path}"
    if {status.st_uid, place.lstat().st_uid} <= {0, os.geteuid()}:
        return None
    for folder in (*place.parents, *place.resolve().parents):
        if folder.stat().st_mode & stat.S_IWOTH:
            return f"{path} belongs to another user and lies in {folder}, where everybody can put files"
    return None


@contextmanager
def closed_to_others() -> Iterator[None]:
    """Whatever this process writes in the block cannot be changed by everybody.

    A umask that would let everybody write becomes 022. One that lets a group write is taken at its word: that is how
    a group shares its runs.
    """
    before = os.umask(0o022)
    os.umask(before if before & stat.S_IWOTH else before | 0o022)
    try:
        yield
    finally:
        os.umask(before)
