"""Where prepared rows are kept: a directory named by everything that the rows depend on.

One process prepares, under a lock; whoever comes later waits for the lock and maps what it wrote. An entry appears by a
rename, so it is whole or not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from arctic_training.cache_key import digest, fingerprints, key_parts
from arctic_training.data import EVAL
from arctic_training.disk_errors import has_no_space, naming
from arctic_training.errors import DataError
from arctic_training.manifest import sync
from arctic_training.preparation import Preparation
from arctic_training.prepared import INDEX_FILE, PreparedRows, is_whole, write_rows
from arctic_training.redaction import redacted, without_secrets

if TYPE_CHECKING:
    from arctic_training.run import Run

KEY_FILE = "key.json"


def prepared_rows(run: Run, split: str, name: str = EVAL) -> PreparedRows:
    """The prepared rows of a split, from the cache or prepared now.

    Args:
        run: the run.
        split: ``train`` or ``eval``.
        name: of evaluation data, the set.

    Raises:
        DataError: nothing is cached and the recipe says ``fail_on_missing_cache``, or preparation failed.
    """
    config = run.config.data
    preparation = Preparation(split, config.sources_of(split, name), config)
    label = split if split == "train" else name
    parts = key_parts(run, split, preparation.sources)
    key = None if parts is None else digest(parts)
    directory = cache_directory(config.cache_dir) / key if key else run.run_dir / "data" / _launch(run) / _folder(label)
    run.data_facts[label] = {"cache": key}
    if (kept := _kept(directory)) is not None:
        return kept
    if config.fail_on_missing_cache:
        raise DataError(
            f"the prepared {label} data is not cached, and data.fail_on_missing_cache is set",
            where=str(directory),
            remedy="run once without fail_on_missing_cache; `arctic cache explain RECIPE` tells what differs",
        )
    with _storing(directory, label):
        directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(run, directory, label):
        if (kept := _kept(directory)) is not None:
            return kept
        if directory.exists():
            run.warn(f"data: {directory} is damaged, and is prepared anew")
        if key is None:
            _forget_other_launches(directory.parent)
        return _prepare(run, preparation, directory, parts, label)


def cache_home() -> Path:
    """ARCTIC_HOME, or the user's cache directory."""
    if home := os.environ.get("ARCTIC_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arctic"


def cache_directory(given: str | None) -> Path:
    """Where entries are: below the recipe's ``data.cache_dir``, or the user's cache directory."""
    return (Path(given).expanduser() if given else cache_home()) / "data"


def _kept(directory: Path) -> PreparedRows | None:
    """The rows of an entry, whose last use its index's time tells; None where it is not there or not whole."""
    if not is_whole(directory):
        return None
    with contextlib.suppress(OSError):  # a cache that others own may be read all the same
        os.utime(directory / INDEX_FILE)
    try:
        return PreparedRows(directory)
    except FileNotFoundError:  # `arctic cache gc` took it away this moment
        return None


def _folder(label: str) -> str:
    """A set's name as that of a folder, whatever characters it has."""
    return quote(label, safe="").replace(".", "%2E")


def _launch(run: Run) -> str:
    """A name that the ranks of this launch on this node share, and no other launch has.

    Rows of a source that cannot tell what it would load must not outlive the launch.
    """
    if run.world.size == 1:
        return run.unique_name
    return f"{os.environ.get('MASTER_PORT', 'ranks')}-{os.getppid()}"


def _forget_other_launches(directory: Path) -> None:
    """Remove what earlier launches prepared here and nobody will read; other nodes of this one share its port."""
    port = directory.name.partition("-")[0]
    for other in directory.parent.iterdir():
        if other.name.partition("-")[0] != port:
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def _locked(run: Run, directory: Path, label: str) -> Iterator[None]:
    from filelock import FileLock, SoftFileLock, Timeout

    path = f"{directory}.lock"
    # On a file system that the nodes share, locks of the operating system may hold on one node only; a file that exists
    # is seen by all.
    by_existence = run.config.data.cache_fs_type == "shared"
    with _storing(directory, label):
        while True:
            lock: Any = SoftFileLock(path) if by_existence else FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                hint = f" (if it died, remove {path})" if by_existence else ""
                run.say(f"data: another process prepares the {label} rows; waiting for it{hint}")
                lock.acquire()
            except NotImplementedError:  # this file system has no locks
                by_existence = True
                continue
            break
    try:
        yield
    finally:
        lock.release()


def _prepare(
    run: Run, preparation: Preparation, directory: Path, parts: dict[str, Any] | None, label: str
) -> PreparedRows:
    factory = run.component("data")
    incomplete = directory.with_name(f"{directory.name}.incomplete")
    with _storing(directory, label):
        shutil.rmtree(incomplete, ignore_errors=True)
        incomplete.mkdir()
    preparation.directory = incomplete
    preparation.tell = run.progress_of(f"data: {label}")
    factory.preparation = preparation
    try:
        rows = run.plugins.ask(
            "arctic_prepare_data",
            lambda value: hasattr(value, "__len__") and hasattr(value, "__getitem__"),
            datasets=factory.load(preparation.split),
            tokenizer=run.trainer.tokenizer,
            split=preparation.split,
            config=run.config.data,
            run=run,
        )
        with _storing(directory, label):
            write_rows(_each(rows), incomplete, redacted(preparation.facts()))
            for left in incomplete.glob("source-*"):  # rows on their way here
                shutil.rmtree(left)
        if parts is not None:
            _refuse_changed_sources(run, preparation, parts, label)
        with _storing(directory, label):
            _note_key(run, incomplete, parts, label)
            shutil.rmtree(directory, ignore_errors=True)  # what is there was found damaged
            os.rename(incomplete, directory)
            sync(directory.parent)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return PreparedRows(directory)


def _refuse_changed_sources(run: Run, preparation: Preparation, parts: dict[str, Any], label: str) -> None:
    """Keep no rows under a content that was another by the time they were read."""
    names = run.config.data.source_names(preparation.split, label)
    found = fingerprints(run, preparation.sources)
    for name, before, now in zip(names, parts["sources"], found, strict=True):
        if now is None or any(before[part] != value for part, value in without_secrets(now).items()):
            raise DataError(
                "this source changed while its rows were prepared",
                where=name,
                remedy="start again once nothing writes to it any more",
            )


def _note_key(run: Run, directory: Path, parts: dict[str, Any] | None, label: str) -> None:
    """Write what the key was made of beside the rows, for those who ask why another differs."""
    recipe = run.config.recipe.path
    note = {"split": label, "recipe": str(recipe) if recipe else None, "created": time.time(), "parts": parts}
    with naming(directory / KEY_FILE), open(directory / KEY_FILE, "w") as file:
        json.dump(redacted(note), file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
    sync(directory)


@contextlib.contextmanager
def _storing(directory: Path, label: str) -> Iterator[None]:
    """Explain what goes wrong while rows are stored, and only then: loading and preparing have errors of their own."""
    try:
        yield
    except OSError as error:
        if has_no_space(error):  # whoever runs this says so, as of any other file of the run
            raise
        raise DataError(
            f"the prepared data cannot be written: {error}",
            where=str(directory),
            remedy="set data.cache_dir or ARCTIC_HOME",
        ) from error
    except ValueError as error:
        raise DataError(f"the {label} rows cannot be stored: {error}", remedy="give rows of equal columns") from error


def _each(rows: Any) -> Any:
    """Rows that can be stored or gone through."""
    return rows if hasattr(rows, "__iter__") else (rows[number] for number in range(len(rows)))
