"""Files that lie elsewhere or are compressed: copied here once, whole or not at all, and then read as any other."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import json
import lzma
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arctic_huggingface.source import HFDataSource, HFInstructDataSource
from arctic_training.config import Place
from arctic_training.errors import BadRow, DataError
from arctic_training.shorthand import source_from_shorthand

LINES = b'{"n": 1}\n{"n": 2}\n'


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("ARCTIC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def memory():
    """A file system of fsspec that holds its files in memory, emptied afterwards."""
    import fsspec

    system = fsspec.filesystem("memory")
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def source(make):
    return lambda name, kind=HFDataSource, **keys: make(kind, name_or_path=str(name), **{"split": "train", **keys})


@pytest.fixture
def load(source):
    def load(name, *arguments, **keys):
        made = source(name, *arguments, **keys)
        return made.load(made.config, made.config.split)

    return load


def numbers(rows):
    return [row["n"] for row in rows]


def test_an_address_is_copied_once_and_read_here_and_told_by_its_own_name(load, memory, home, run):
    memory.pipe("/bucket/rows.jsonl", LINES + b"{")
    rows = load("memory://bucket/rows.jsonl")
    with pytest.raises(BadRow, match=r"^memory://bucket/rows\.jsonl:3: this line is not JSON"):
        rows[2]
    copies = [path for path in home.rglob("*") if path.is_file()]
    assert [path.name for path in copies] == ["rows.jsonl"]
    assert len(run.said) == 1
    assert "copying memory://bucket/rows.jsonl" in run.said[0]
    assert numbers(load("memory://bucket/rows.jsonl", split="train[:2]")) == [1, 2]
    assert len(run.said) == 1
    memory.pipe("/bucket/rows.jsonl", b'{"n": 3}\n')
    assert numbers(load("memory://bucket/rows.jsonl")) == [3]
    assert len(run.said) == 2


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
def test_a_glob_of_addresses_loads_in_the_order_of_names_in_every_format(load, memory, form):
    import pyarrow
    import pyarrow.parquet

    for name, number in (("b", 2), ("a", 1)):
        content = {"jsonl": b'{"n": %d}', "json": b'[{"n": %d}]', "csv": b"n\n%d\n", "parquet": b"%d"}[form] % number
        if form == "parquet":
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.table({"n": [number]}), buffer)
            content = buffer.getvalue()
        memory.pipe(f"/bucket/{name}.{form}", content)
    assert [int(number) for number in numbers(load(f"memory://bucket/*.{form}"))] == [1, 2]


def test_files_of_an_archive_load_by_a_chain_of_addresses(load, memory):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("rows/b.jsonl", '{"n": 2}\n')
        file.writestr("rows/a.jsonl", '{"n": 1}\n')
    memory.pipe("/bucket/rows.zip", archive.getvalue())
    rows = load("zip://rows/*.jsonl::memory://bucket/rows.zip")
    assert numbers(rows) == [1, 2]
    assert rows.where(1) == "zip://rows/b.jsonl::memory://bucket/rows.zip:1"


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compressed_files_load_from_here_and_elsewhere(load, memory, tmp_path, ending, compress):
    (tmp_path / f"rows.jsonl.{ending}").write_bytes(compress(LINES))
    memory.pipe(f"/bucket/rows.jsonl.{ending}", compress(LINES))
    here, elsewhere = load(tmp_path / f"*.jsonl.{ending}"), load(f"memory://bucket/rows.jsonl.{ending}")
    assert numbers(here) == numbers(elsewhere) == [1, 2]
    assert here.where(1) == f"{tmp_path}/rows.jsonl.{ending}:2"


def test_a_compressed_file_that_is_cut_off_is_refused_and_leaves_no_copy(load, tmp_path, home):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES * 100)[:-10])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: it cannot be read: EOFError"):
        load(tmp_path / "rows.jsonl.gz")
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_compression_that_nothing_here_reads_names_what_to_install(load, tmp_path):
    from fsspec.compression import compr

    if "zstd" in compr:
        pytest.skip("zstd is installed")
    (tmp_path / "rows.jsonl.zst").write_bytes(b"content")
    with pytest.raises(DataError, match="nothing here decompresses zstd") as caught:
        load(tmp_path / "rows.jsonl.zst")
    assert caught.value.remedy == "pip install zstandard"


def test_a_copy_that_breaks_off_leaves_nothing_behind_and_the_next_one_is_whole(load, memory, home, monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Breaking(MemoryFileSystem):
        """The same files, over a connection that is lost after ten bytes."""

        protocol = "breaking"
        breaks = True

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.replace("breaking://", "memory://"))

        def open(self, path, *arguments, **keys):
            file = super().open(path, *arguments, **keys)
            return BreakingFile(file.read(10)) if self.breaks else file

    class BreakingFile(io.BytesIO):
        def read(self, size=-1):
            if block := super().read(size):
                return block
            raise ConnectionResetError("gone")

    fsspec.register_implementation("breaking", Breaking, clobber=True)
    memory.pipe("/bucket/rows.jsonl", LINES)
    with pytest.raises(
        DataError, match=r"breaking://bucket/rows\.jsonl: it cannot be read: ConnectionResetError: gone"
    ):
        load("breaking://bucket/rows.jsonl")
    assert not [path for path in home.rglob("*") if path.is_file()]
    monkeypatch.setattr(Breaking, "breaks", False)
    assert numbers(load("breaking://bucket/rows.jsonl")) == [1, 2]


@pytest.mark.parametrize(
    ("address", "module", "distribution"),
    [
        ("s3://bucket/rows.jsonl", "s3fs", "s3fs"),
        ("gs://bucket/*.jsonl", "gcsfs", "gcsfs"),
        ("zip://rows.jsonl::az://bucket/rows.zip", "adlfs", "adlfs"),
        ("https://host/rows.jsonl", "aiohttp", "aiohttp"),
    ],
)
def test_an_address_whose_driver_is_missing_names_what_to_install(load, address, module, distribution):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(DataError, match="nothing here reads addresses that begin with") as caught:
        load(address)
    assert caught.value.remedy.startswith(f"pip install {distribution}")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere://bucket/rows.jsonl", "addresses that begin with nowhere://"),
        ("memory://bucket/missing.jsonl", "there is no file memory://bucket/missing.jsonl"),
        ("memory://bucket/missing-*.jsonl", "there is no file memory://bucket/missing"),
        ("memory://bucket", "this is a folder"),
        ("memory://bucket/rows.txt", "files ending in '.txt' cannot be read"),
    ],
)
def test_an_address_that_cannot_be_read_is_told(load, memory, address, message):
    memory.pipe("/bucket/rows.txt", b"text")
    with pytest.raises(DataError, match=message):
        load(address)


def test_arguments_of_a_driver_are_taken_for_addresses_alone(load, memory, tmp_path):
    memory.pipe("/bucket/rows.jsonl", LINES)
    kwargs = {"storage_options": {"use_listings_cache": False}}
    assert numbers(load("memory://bucket/rows.jsonl", kwargs=kwargs)) == [1, 2]
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    with pytest.raises(DataError, match="kwargs has storage_options"):
        load(tmp_path / "rows.jsonl", kwargs=kwargs)


def test_a_path_may_be_written_as_an_address(load, tmp_path, home):
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    assert numbers(load(f"file://{tmp_path}/rows.jsonl")) == [1, 2]
    assert not home.exists()


def test_the_fingerprint_of_an_address_follows_its_version(source, memory, tmp_path):
    memory.pipe("/bucket/rows.jsonl", LINES)
    first = source("memory://bucket/rows.jsonl").fingerprint()
    assert first is not None
    assert source("memory://bucket/rows.jsonl").fingerprint() == first
    memory.pipe("/bucket/rows.jsonl", LINES)
    assert source("memory://bucket/rows.jsonl").fingerprint() != first
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES))
    compressed = source(tmp_path / "rows.jsonl.gz").fingerprint()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES + b"\n"))
    assert source(tmp_path / "rows.jsonl.gz").fingerprint() not in (compressed, None)


def test_a_server_that_tells_no_version_is_asked_again_each_time(source, load, tmp_path, run):
    pytest.importorskip("aiohttp", reason="fsspec reads http:// with it")

    class Quiet(SimpleHTTPRequestHandler):
        tells_time = False

        def send_header(self, name, value):
            if name != "Last-Modified" or self.tells_time:
                super().send_header(name, value)

        def log_message(self, *arguments):
            pass

    (tmp_path / "rows.jsonl").write_bytes(LINES)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}/rows.jsonl"
        assert numbers(load(address)) == numbers(load(address)) == [1, 2]
        assert len(run.said) == 2
        assert source(address).fingerprint() is None
        Quiet.tells_time = True
        assert source(address).fingerprint() is not None
        assert numbers(load(address)) == numbers(load(address)) == [1, 2]
        assert len(run.said) == 3
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("s3://bucket/rows.jsonl", {"name_or_path": "s3://bucket/rows.jsonl"}),
        ("s3://bucket/x-*.jsonl:train[:10%]", {"name_or_path": "s3://bucket/x-*.jsonl", "split": "train[:10%]"}),
        ("hf://datasets/a/b/c.parquet:eval", {"name_or_path": "hf://datasets/a/b/c.parquet", "split": "eval"}),
    ],
)
def test_an_address_has_a_short_form_with_a_split(text, entry):
    assert source_from_shorthand(text, Place("sources")) == entry


def test_chats_load_from_an_address(load, memory):
    memory.pipe("/bucket/rows.jsonl", json.dumps({"question": "a", "answer": "b"}).encode())
    assert load("memory://bucket/rows.jsonl", HFInstructDataSource)[0]["messages"][1]["content"] == "b"
