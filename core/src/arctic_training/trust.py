"""What may be run or unpickled unasked: nothing that another user of this machine could have put there.

And what a run writes is never open for everybody to change, whatever the user's umask.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

TRUST = "or say --trust if you know who wrote it"


def written_by_others(path: Path) -> str | None:
    """Why anybody on this machine could have written a file, or into a folder; None where only those could whom its
    owner shares it with.

    Two things tell: everybody may write to it; or on the way to it lies a folder that everybody may write to, such as
    ``/tmp``, and what was put there belongs to neither this user nor root.
    """
    if not hasattr(os, "geteuid"):  # permissions of this system are of another kind
        return None
    mode = path.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return f"everybody can write to {path}"
    own = {0, os.geteuid()}
    for place in dict.fromkeys((path.absolute(), path.resolve())):
        for child, folder in pairwise((place, *place.parents)):
            if folder.stat().st_mode & stat.S_IWOTH and child.lstat().st_uid not in own:
                return f"{child} belongs to another user, and everybody can put files into {folder}"
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
