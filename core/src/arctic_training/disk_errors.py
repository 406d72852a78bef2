"""Faults of a disk and not of the program: which file could not be written, what was free there, which key moves it."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.errors import ArcticError, DiskError

if TYPE_CHECKING:
    from arctic_training.run import Run

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "set run_dir to a directory that you may write to",
    errno.EACCES: "set run_dir to a directory that you may write to",
    errno.EPERM: "set run_dir to a directory that you may write to",
}


@contextlib.contextmanager
def naming(path: str | Path, needed: int = 0) -> Iterator[None]:
    """Note on an error what that of a write leaves out: the file, and what was free before somebody tidies up.

    Args:
        path: the file that is written in the block.
        needed: bytes that are written, where they are known.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        if has_no_space(error):
            error.arctic_space = _space(Path(path), needed)  # type: ignore[attr-defined]
        raise


def has_no_space(error: OSError) -> bool:
    """Whether a disk, a quota or a limit is full."""
    return error.errno in _NO_SPACE


def explained(error: OSError, run: Run) -> BaseException:
    """The error itself, or what to do where the disk and not the program is at fault."""
    if isinstance(error, ArcticError) or error.errno not in _ADVICE:
        return error
    no_space, advice = has_no_space(error), _ADVICE[error.errno]
    path = Path(error.filename).absolute() if isinstance(error.filename, str) else None
    if no_space:
        place, key = _place_of(path, run)
        space = getattr(error, "arctic_space", "") or _space(place, 0)
        advice = f"{space}{advice}" + (f", or set {key} to a directory with more" if key else "")
        path = path or place
    kind = DiskError if no_space or error.errno == errno.EROFS else ArcticError
    told = kind(f"{error.strerror}: {path or 'a file of the run'}", remedy=advice)
    for name in ("arctic_log_path", "arctic_written_down"):
        setattr(told, name, getattr(error, name, None))
    return told


def _place_of(path: Path | None, run: Run) -> tuple[Path, str]:
    """The directory of the run that holds a file, and what moves it; of a file without a name, the fullest of them."""
    from arctic_training.data_cache import cache_directory, cache_home

    places = [
        (cache_directory(run.config.data.cache_dir).absolute(), "data.cache_dir or ARCTIC_HOME"),
        (run.run_dir, "run_dir"),
        (cache_home().absolute(), "ARCTIC_HOME"),  # copies of what was read from far away
    ]
    if path is not None:
        return next((place for place in places if path.is_relative_to(place[0])), (path, ""))
    return min(places, key=lambda place: _free(place[0]) or 0)


def _space(path: Path, needed: int) -> str:
    """What a write takes and what there is, in words that advice follows."""
    from arctic_training.reporting import human_bytes

    if (free := _free(path)) is None:
        return ""
    wanted = f"{human_bytes(needed)} were to be written, and " if needed else ""
    return f"{wanted}{human_bytes(free)} are free: "


def _free(path: Path) -> int | None:
    """Bytes that are free where a path is, or would be."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None
