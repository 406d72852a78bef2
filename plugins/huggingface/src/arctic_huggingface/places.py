"""The files that a source names, on this machine or elsewhere: found, told apart by their content, copied here once.

What lies elsewhere (``s3://``, ``gs://``, ``hf://``, ``zip://``, ...) is reached by the drivers of fsspec, and so are
compressed files. A copy stands in the cache under its address and version, and appears by a rename.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import attrs

from arctic_training.data_cache import cache_home
from arctic_training.disk_errors import has_no_space, naming
from arctic_training.errors import ArcticError, DataError
from arctic_training.redaction import without_credentials

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
DRIVERS = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "http": "aiohttp requests", "https": "aiohttp requests", "sftp": "paramiko", "ssh": "paramiko",
    "smb": "smbprotocol", "oss": "ossfs", "oci": "ocifs", "github": "requests", "webhdfs": "requests",
    "gdrive": "gdrive-fsspec", "dropbox": "dropboxdrivefs requests dropbox",
}  # fmt: skip
"""The distributions that bring the driver of an address."""
READ_BYTES = 8 * 2**20
REACH_REMEDY = (
    "correct the address, or the credentials that its driver looks for; "
    "arguments of the driver may stand in kwargs: {storage_options: {...}}"
)
_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.\-]*)(://|::)")
_STRONG = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "Content-MD5", "crc32c", "CRC")
"""What file systems call a checksum of a file's content."""
_TIMES = ("Last-Modified", "Digest")


@attrs.frozen
class DataFile:
    """A file of rows.

    Attributes:
        name: how it is told of: its path or address.
        path: where it is in its file system.
        system: the file system of fsspec that it is in; None for this machine's.
        version: text that changes with its content; None where the file system cannot tell.
        size: its size in bytes; None where that is not known.
    """

    name: str
    path: str
    system: Any = None
    version: str | None = None
    size: int | None = None

    @property
    def suffix(self) -> str:
        """The ending that tells its format, without that of a compression: ``.jsonl`` of ``rows.jsonl.gz``."""
        path = Path(self.path)
        return (Path(path.stem) if self.compression else path).suffix.lower()

    @property
    def compression(self) -> str | None:
        """How it is compressed."""
        return COMPRESSIONS.get(Path(self.path).suffix.lower())

    @property
    def is_here(self) -> bool:
        """Whether it can be read as it lies."""
        return self.system is None and self.compression is None

    def reached(self) -> AbstractContextManager[None]:
        """Explains what is raised when it cannot be read."""
        return reached(self.name, REACH_REMEDY if self.system else "write the file anew: it is damaged")

    def open(self) -> Any:
        """Its content, decompressed, as a binary file that can seek.

        Raises:
            DataError: it cannot be reached, or nothing here decompresses it.
        """
        with self.reached():
            opener: Callable[..., Any] = self.system.open if self.system else open
            file = opener(self.path, "rb")
            return _decompressor(self)(file) if self.compression else file

    def local(self, say: Callable[[str], None]) -> Path:
        """The file on this machine, decompressed: itself, or a copy that is made if there is none yet.

        Args:
            say: tells the user that a copy is made.

        Raises:
            DataError: it cannot be copied.
        """
        if self.is_here:
            return Path(self.path)
        name = Path(self.path).name
        key = hashlib.sha256(f"{self.name}\n{self.version}".encode()).hexdigest()[:32]
        copy = cache_home() / "downloads" / key / (Path(name).stem if self.compression else name)
        if self.version is None or not copy.exists():
            size = f" ({self.size / 2**20:,.1f} MiB)" if self.size else ""
            say(f"data: copying {self.name}{size} to {copy.parent}")
            self._copy_to(copy)
        return copy

    def _copy_to(self, copy: Path) -> None:
        incomplete = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}.incomplete")
        try:
            with _stored(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                with open(incomplete, "wb") as target:
                    for block in self._blocks():
                        target.write(block)
            size = incomplete.stat().st_size
            if self.size is not None and not self.compression and size != self.size:
                raise DataError(
                    f"only {size:,} of {self.size:,} bytes could be copied",
                    where=self.name,
                    remedy="start the run again",
                )
            os.replace(incomplete, copy)
        finally:
            incomplete.unlink(missing_ok=True)

    def _blocks(self) -> Iterator[bytes]:
        with self.open() as source, self.reached():
            while block := source.read(READ_BYTES):
                yield block


def is_address(name: str) -> bool:
    """Whether a name is the address of something that fsspec has a driver for, and no path."""
    return _URL.match(name) is not None


def find_files(name: str, folders: Sequence[Path]) -> list[DataFile]:
    """The files of this machine that a path or a glob pattern names, sorted; empty when it names none.

    Args:
        name: a path, with ``*``, ``?``, ``[...]`` and ``**`` as a shell has them.
        folders: where a relative one starts; the first folder in which there is something counts.
    """
    for folder in folders:
        pattern = str(folder / Path(name).expanduser())
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [_local_file(match) for match in matches if Path(match).is_file()]
        if files:
            return files
    return []


def find_remote_files(address: str, options: Mapping[str, Any]) -> list[DataFile]:
    """The files that an address names, which may be a glob pattern, sorted.

    Args:
        address: such as ``s3://bucket/rows-*.jsonl``, or a chain as ``zip://*.jsonl::s3://bucket/rows.zip``.
        options: arguments of the file system, such as ``{anon: true}``.

    Raises:
        DataError: no driver is installed for it, it cannot be reached, or names no file.
    """
    import fsspec

    first, _, rest = address.partition("::")
    with reached(address):
        try:
            system, path = fsspec.core.url_to_fs(address, **options)
        except (ImportError, ValueError) as error:
            raise _without_driver(address, error) from error
        if not system.exists(path) and any(sign in path for sign in "*?["):
            paths = sorted(path for path in system.glob(path) if system.isfile(path))
            scheme = first.partition("://")[0]
            names = [f"{scheme}://{path.lstrip('/')}" + (f"::{rest}" if rest else "") for path in paths]
        else:
            paths, names = [path], [address]
        files = [_remote_file(name, path, system) for name, path in zip(names, paths, strict=True)]
    if not files:
        raise DataError(f"there is no file {address}", remedy="correct the address")
    return files


def content_hash(files: Sequence[DataFile]) -> str | None:
    """sha256 over the endings and the content of files, in order, or over the versions of those that lie elsewhere.

    None where a file system cannot tell versions apart.
    """
    total = hashlib.sha256()
    for file in files:
        if file.system is not None and file.version is None:
            return None
        version = (
            f"{without_credentials(file.name)} {file.version}" if file.system is not None else _hash(Path(file.path))
        )
        total.update(
            f"{''.join(Path(file.path).suffixes[-2:]) if file.compression else file.suffix} {version}\n".encode()
        )
    return total.hexdigest()


def folder_hash(folder: Path) -> str:
    """sha256 over the names and the content of the files of a folder, without what the hub's client keeps there."""
    total = hashlib.sha256()
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, path in sorted(paths.items()):
        if ".cache" not in name.split("/"):
            total.update(f"{name} {_hash(path)}\n".encode())
    return total.hexdigest()


@contextmanager
def reached(name: str, remedy: str = REACH_REMEDY) -> Iterator[None]:
    """Turn what drivers raise, each its own kind of errors, into one that says what to do.

    Args:
        name: the address or path that is read.
        remedy: what to do where it is there and cannot be read.
    """
    try:
        yield
    except ArcticError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"there is no file {name}", remedy="correct the path") from error
    except Exception as error:
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
        raise DataError(f"it cannot be read: {what}", where=name, remedy=remedy) from error


def _local_file(path: str) -> DataFile:
    file = DataFile(path, path)
    if file.is_here:
        return file
    status = os.stat(path)
    return attrs.evolve(file, version=f"{status.st_size} {status.st_mtime_ns}", size=status.st_size)


def _remote_file(name: str, path: str, system: Any) -> DataFile:
    info = system.info(path)
    if info.get("type") == "directory":
        raise DataError("this is a folder", where=name, remedy="name its files, such as FOLDER/*.jsonl")
    strong = [f"{key} {info[key]}" for key in _STRONG if info.get(key)]
    protocols = system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)
    if strong:
        version = f"{info.get('size')} {strong[0]}"
    elif {"http", "https"} & set(protocols) and not any(info.get(key) for key in _TIMES):
        version = None  # all that is left is a size
    else:
        version = str(system.checksum(path))
    return DataFile(name, path, system, version, info.get("size"))


def _without_driver(address: str, error: Exception) -> DataError:
    import fsspec

    for protocol in [found["protocol"].lower() for found in map(_URL.match, address.split("::")) if found]:
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError):
            distribution = DRIVERS.get(protocol)
            return DataError(
                f"nothing here reads addresses that begin with {protocol}://",
                where=address,
                remedy=f"pip install {distribution}" if distribution else f"install its driver for fsspec ({error})",
            )
    return DataError(f"this address cannot be read: {error}", where=address, remedy="correct it")


def _decompressor(file: DataFile) -> Callable[[Any], Any]:
    from fsspec.compression import compr

    name = file.compression
    assert name is not None
    if name not in compr:
        raise DataError(f"nothing here decompresses {name}", where=file.name, remedy="pip install zstandard")
    decompress = compr[name]
    return lambda opened: decompress(opened, mode="rb")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _stored(copy: Path) -> Iterator[None]:
    try:
        with naming(copy):
            yield
    except OSError as error:
        if has_no_space(error):  # the run says so, as of any other file
            raise
        raise DataError(
            f"the copy cannot be written: {error}",
            where=str(copy),
            remedy="free some space, or set ARCTIC_HOME to a folder that has it",
        ) from error
