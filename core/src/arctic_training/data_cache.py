"""Where prepared rows are kept: a directory named by everything that the rows depend on.

One process prepares, under a lock; whoever comes later waits for the lock and maps what it wrote. An entry appears by a
rename, so it is whole or not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from arctic_training.config import Config
from arctic_training.errors import DataError
from arctic_training.prepared import INDEX_FILE, PreparedRows, write_rows

if TYPE_CHECKING:
    from arctic_training.run import Run

NOT_IN_THE_KEY = {
    "type", "sources", "eval_sources", "num_proc", "dl_num_workers", "cache_dir", "cache_fs_type",
    "fail_on_missing_cache", "use_data_cache", "cache_processed_data", "max_length", "pad_to", "div_length",
}  # fmt: skip
"""Keys of ``data`` that do not change the prepared rows, or that the key holds in another form."""


def prepared_rows(run: Run, split: str) -> PreparedRows:
    """The prepared rows of a split, from the cache or prepared now.

    Raises:
        DataError: nothing is cached and the recipe says ``fail_on_missing_cache``, or preparation failed.
    """
    key = cache_key(run, split)
    directory = _cache_directory(run) / key if key else run.run_dir / "data" / _launch(run) / split
    run.data_facts[split] = {"cache": key}
    if (directory / INDEX_FILE).is_file():
        return PreparedRows(directory)
    if run.config.data.fail_on_missing_cache:
        raise DataError(
            f"the prepared {split} data is not cached, and data.fail_on_missing_cache is set",
            where=str(directory),
            remedy="run once without fail_on_missing_cache",
        )
    with _storing(directory, split):
        directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(run, directory, split):
        if (directory / INDEX_FILE).is_file():
            return PreparedRows(directory)
        if key is None:
            _forget_other_launches(directory.parent)
        return _prepare(run, split, directory)


def cache_key(run: Run, split: str) -> str | None:
    """A hash of all that the prepared rows of a split depend on; None when a source cannot tell what it would load."""
    config = run.config.data
    sources = config.eval_sources if split == "eval" and config.eval_sources else config.sources
    fingerprints = []
    for source in sources:
        component = run.make(source)
        fingerprint = component.fingerprint()
        if fingerprint is None:
            return None
        fingerprints.append([fingerprint, _plain(source), source_hash(type(component))])
    factory = run.component("data")
    hashes = [source_hash(type(factory)), *(code for _, _, code in fingerprints)]
    if None in hashes:
        return None
    tokenizer = run.trainer.tokenizer
    parts = {
        "split": split if config.train_eval_split[1] or config.eval_sources else "train",
        "sources": fingerprints,
        "options": {name: value for name, value in _plain(config).items() if name not in NOT_IN_THE_KEY},
        "max_length": factory.config.max_length or run.model_max_length,
        "tokenizer": run.component("tokenizer").fingerprint(tokenizer),
        "factory": source_hash(type(factory)),
        "plugins": run.fingerprint,
        "hooks": _hook_code(run),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def source_hash(cls: type) -> str | None:
    """A hash of the code behind a class, so that a changed line prepares the data anew; None where the code stands in
    no file, as in a notebook.

    Of each class in its line of bases, all modules of its package count: it may call any of them.
    """
    files: set[Path] = set()
    for base in cls.__mro__[:-1]:
        if base.__module__ == "abc":
            continue
        modules = [sys.modules.get(name) for name in (base.__module__.partition(".")[0], base.__module__)]
        file = next((file for module in modules if (file := getattr(module, "__file__", None))), None)
        if file is None:
            return None
        path = Path(file)
        files.update(path.parent.rglob("*.py") if path.name == "__init__.py" else [path])
    digest = hashlib.sha256(cls.__qualname__.encode())
    for path in sorted(files):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def cache_home() -> Path:
    """ARCTIC_HOME, or the user's cache directory."""
    if home := os.environ.get("ARCTIC_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arctic"


def _cache_directory(run: Run) -> Path:
    given = run.config.data.cache_dir
    return (Path(given) if given else cache_home()) / "data"


def _launch(run: Run) -> str:
    """A name that the ranks of this launch on this node share, and no other launch has.

    Rows of a source that cannot tell what it would load must not outlive the launch.
    """
    if run.world.size == 1:
        return uuid.uuid4().hex
    return f"{os.environ.get('MASTER_PORT', 'ranks')}-{os.getppid()}"


def _forget_other_launches(directory: Path) -> None:
    """Remove what earlier launches prepared here and nobody will read; other nodes of this one share its port."""
    port = directory.name.partition("-")[0]
    for other in directory.parent.iterdir():
        if other.name.partition("-")[0] != port:
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def _locked(run: Run, directory: Path, split: str) -> Iterator[None]:
    from filelock import FileLock, SoftFileLock, Timeout

    path = f"{directory}.lock"
    # On a file system that the nodes share, locks of the operating system may hold on one node only; a file that exists
    # is seen by all.
    shared = run.config.data.cache_fs_type == "shared"
    lock: Any = SoftFileLock(path) if shared else FileLock(path)
    with _storing(directory, split):
        try:
            lock.acquire(timeout=0)
        except NotImplementedError:  # this file system has no locks
            lock = SoftFileLock(path)
            lock.acquire()
        except Timeout:
            hint = f" (if it died, remove {path})" if shared else ""
            run.say(f"data: another process prepares the {split} rows; waiting for it{hint}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _prepare(run: Run, split: str, directory: Path) -> PreparedRows:
    factory = run.component("data")
    factory.counts.clear()
    incomplete = directory.with_name(f"{directory.name}.incomplete")
    with _storing(directory, split):
        shutil.rmtree(incomplete, ignore_errors=True)
        incomplete.mkdir()
    try:
        rows = run.plugins.ask(
            "arctic_prepare_data",
            lambda value: hasattr(value, "__len__") and hasattr(value, "__getitem__"),
            datasets=factory.load(split),
            tokenizer=run.trainer.tokenizer,
            split=split,
            config=run.config.data,
            run=run,
        )
        with _storing(directory, split):
            write_rows(_each(rows), incomplete, {"counts": dict(factory.counts)})
            os.rename(incomplete, directory)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return PreparedRows(directory)


@contextlib.contextmanager
def _storing(directory: Path, split: str) -> Iterator[None]:
    """Explain what goes wrong while rows are stored, and only then: loading and preparing have errors of their own."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the prepared data cannot be written: {error}",
            where=str(directory),
            remedy="set data.cache_dir or ARCTIC_HOME",
        ) from error
    except ValueError as error:
        raise DataError(f"the {split} rows cannot be stored: {error}", remedy="give rows of equal columns") from error


def _hook_code(run: Run) -> list[list[str]]:
    """The files of the hook implementations that rows go through, and what they hold."""
    found = []
    for hook in ("arctic_load_data", "arctic_prepare_data"):
        for plugin, kind, where in run.plugins.implementations(hook):
            path = Path(where.rpartition(":")[0])
            found.append([hook, plugin, kind, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""])
    return found


def _each(rows: Any) -> Iterator[Any]:
    return iter(rows) if hasattr(rows, "__iter__") else (rows[number] for number in range(len(rows)))


def _plain(config: Config) -> dict[str, Any]:
    return attrs.asdict(config, value_serializer=lambda _, __, value: value)  # type: ignore[arg-type]
