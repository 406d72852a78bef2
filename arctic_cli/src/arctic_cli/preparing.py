"""A run that prepares data and ends before training, for the commands that look at data and leave no run behind."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from arctic_cli.options import Settings

if TYPE_CHECKING:
    from arctic_training.run import Run
    from arctic_training.trainer_config import TrainerConfig


@contextlib.contextmanager
def preparing(
    recipe: str,
    overrides: tuple[str, ...],
    settings: Settings,
    *,
    rows: bool = True,
    check: Callable[[TrainerConfig], None] = lambda config: None,
) -> Iterator[Run]:
    """A run of a recipe, with its rows prepared, in a directory that goes with it; an error's log is kept in the cache.

    Args:
        recipe: its path.
        overrides: ``key=value`` texts.
        settings: the options of every command.
        rows: false builds what data is prepared with, and prepares none.
        check: is called with the configuration before anything is built.
    """
    from arctic_training.api import configure
    from arctic_training.run import Run

    directory = tempfile.mkdtemp(prefix="arctic-data-")
    try:
        words = [*overrides, f"run_dir={directory}", "logger.output_dir=null"]
        config = configure(
            recipe, words, block=settings.block, code=settings.code, trust=settings.trust, refuse_broken=True
        )
        check(config)
        run = Run(config)
        with run.only_preparing(rows=rows):
            yield run
    except Exception as error:
        _keep_log(error)
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _keep_log(error: Exception) -> None:
    """Put the log that an error names where logs of errors are; where that cannot be, the message names none."""
    from arctic_training.data_cache import cache_home

    log = getattr(error, "arctic_log_path", None)
    if log is None:
        return
    error.arctic_log_path = None  # type: ignore[attr-defined]
    kept = cache_home() / "logs" / f"data-{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
        error.arctic_log_path = str(kept)  # type: ignore[attr-defined]
