"""The manifest of a checkpoint: size and sha256 of every file, by which it is known to be whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from arctic_training.errors import CheckpointError
from arctic_training.retention import MANIFEST, numbered
from arctic_training.trust import TRUST, written_by_others

STATE_FILE = "train_state.json"
NOT_THERE = "there is no such directory"
FORMAT = 2
"""Of manifests; those of format 1 have no hash of themselves."""
PICKLES = frozenset({".pt", ".pth", ".bin", ".pkl", ".ckpt"})
"""Endings of files that an engine may unpickle, and look for by a pattern."""


def newest_checkpoint(output_dir: Path, *, resumable: bool = False) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest complete checkpoint in a directory, and those passed over with the reason.

    Args:
        output_dir: where checkpoints are written.
        resumable: pass over those that hold the model alone.
    """
    passed_over: list[tuple[Path, str]] = []
    for _, path in sorted(numbered(output_dir).items(), reverse=True):
        problem = verify(path)
        if problem is None and resumable and not (path / STATE_FILE).is_file():
            problem = "it holds the model alone"
        if problem is None:
            return path, passed_over
        passed_over.append((path, problem))
    return None, passed_over


def refuse_foreign(path: Path, *, trusted: bool) -> None:
    """Refuse a checkpoint that others could have written: its files are unpickled, and a manifest that anybody could
    write vouches for nothing.

    Raises:
        CheckpointError: they could, and nobody said that they are trusted.
    """
    reason = next(filter(None, map(written_by_others, (path, path / MANIFEST))), None)
    if reason and not trusted:
        raise CheckpointError(
            f"{reason}, so its manifest vouches for nothing",
            where=str(path),
            remedy=f"take the right to write away from others (chmod -R o-w), {TRUST}",
        )


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is as its manifest says."""
    if not path.is_dir():
        return NOT_THERE
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files", {}), dict):
            return f"{MANIFEST} is no manifest: {'files' if isinstance(manifest, dict) else 'it'} should be an object"
        digest = manifest.pop("sha256", None)
        if (digest is not None or manifest.get("format") != 1) and digest != _digest(manifest):
            return f"{MANIFEST} is not what was written"
        for name, (size, sha256) in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, its manifest says {size}"
            if _sha256(file) != sha256:
                return f"{name} is not what was written"
        for file in path.rglob("*"):
            if file.suffix in PICKLES and file.relative_to(path).as_posix() not in manifest["files"]:
                return f"{file.relative_to(path)} is not in its manifest"
    except FileNotFoundError:
        return "it has no manifest"
    except KeyError:
        return f"{MANIFEST} is no manifest: it names no files"
    except (OSError, ValueError, TypeError) as error:
        return f"its manifest cannot be read: {error}"
    return None


def write_manifest(directory: Path, facts: dict[str, Any], known: dict[str, list[Any]]) -> None:
    """Write the manifest of a directory and sync all that is in it to disk.

    Args:
        directory: of the checkpoint.
        facts: what the manifest says besides its files.
        known: size and sha256 of files that are synced already, by their path in the directory.
    """
    names = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
    files = {name: known.get(name) or hash_and_sync(directory / name) for name in names}
    with open(directory / MANIFEST, "w") as file:
        told = {**facts, "format": FORMAT, "files": files}
        json.dump({**told, "sha256": _digest(told)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for inner in (directory, *(inner for inner in directory.rglob("*") if inner.is_dir())):
        sync(inner)


def _digest(told: dict[str, Any]) -> str:
    """sha256 of what a manifest says, however its JSON is laid out."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(told)), sort_keys=True).encode()).hexdigest()


def hash_and_sync(path: Path) -> list[Any]:
    """Size and sha256 of a file, once it is on the disk."""
    return [path.stat().st_size, _sha256(path, sync=True)]


def _sha256(path: Path, *, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the names that a directory holds, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
