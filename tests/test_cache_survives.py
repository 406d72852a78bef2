"""The cache of prepared rows under processes that build at once, that are killed half-way, and files that go wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arctic_training.api import configure
from arctic_training.cache_entries import entries
from arctic_training.run import Run

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
FORK = multiprocessing.get_context("fork")
"""Children that have the libraries already, so that each takes a moment and not seconds."""
POINTS = 10
NOTES_LOADS = """
from arctic_training import hookimpl

@hookimpl(wrapper=True)
def arctic_load_data():
    with open("loads", "a") as file:
        file.write("x")
    return (yield)
"""


@pytest.fixture
def recipe(arctic_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty chats in packs, and code that notes each time they are loaded."""
    import datasets  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    lines = (QUICKSTART / "data" / "train.jsonl").read_text().splitlines(keepends=True)[:40]
    (arctic_home / "chats.jsonl").write_text("".join(lines))
    (arctic_home / "train.py").write_text(NOTES_LOADS)
    content = {
        "model": {"name_or_path": str(QUICKSTART / "model"), "init": "random", "dtype": "fp32"},
        "data": {"sources": ["chats.jsonl"], "max_length": 256, "pack_samples": True, "num_proc": 1},
        "engine": {"type": "torch"},
        "checkpoint": [],
    }
    path = arctic_home / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path


def prepared(recipe: Path, *overrides: str) -> list[dict[str, list[int]]]:
    """The prepared rows of a recipe, as a run gets them."""
    run = Run(configure(recipe, overrides))
    with run.only_preparing():
        return [{name: values.tolist() for name, values in row.items()} for row in run.rows["train"]]


def kept(home: Path) -> list[Any]:
    return entries(home / "arctic-home" / "data")


def loads(home: Path) -> int:
    file = home / "loads"
    return len(file.read_text()) if file.exists() else 0


def in_children(*work: Callable[[], None]) -> list[int | None]:
    """How processes end that do this at once."""
    children = [FORK.Process(target=one) for one in work]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]


class Dying:
    """Counts what reaches the disk, and kills the process in the middle of the call of a number; 0 for none."""

    def __init__(self, number: int) -> None:
        self.number, self.calls = number, 0

    def watch(self) -> None:
        """Only ever called in a child, which takes all this with it."""
        from arctic_training import column_files, data_cache, prepared

        for module in (column_files, data_cache, prepared):
            module.open = self.opened  # type: ignore[attr-defined]
        for name in ("fsync", "rename", "replace"):
            setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count()
            return function(*arguments, **named)

        return call

    def count(self, before: Callable[[], Any] = lambda: None) -> None:
        self.calls += 1
        if self.calls == self.number:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def opened(self, path: Path, mode: str = "r") -> Any:
        file = open(path, mode)  # noqa: SIM115
        return DyingFile(file, self) if "w" in mode else file


class DyingFile:
    """A file in whose writes the process may die, with half of them done."""

    def __init__(self, file: Any, dying: Dying) -> None:
        self.file, self.dying = file, dying

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> DyingFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def write(self, data: Any) -> Any:
        def half() -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.dying.count(half)
        return self.file.write(data)


def calls_of(recipe: Path, home: Path) -> int:
    """Writes, syncs and renames of one preparation."""

    def work() -> None:
        dying = Dying(0)
        dying.watch()
        prepared(recipe, f"data.cache_dir={home / 'counted'}")
        (home / "calls").write_text(str(dying.calls))

    assert in_children(work) == [0]
    return int((home / "calls").read_text())


def test_two_processes_at_once_build_one_entry_once_and_both_have_it(recipe, arctic_home):
    def work(number: int) -> Callable[[], None]:
        def write() -> None:
            (arctic_home / f"rows-{number}").write_text(json.dumps(prepared(recipe)))

        return write

    prepared(recipe, "data.cache_dir=elsewhere")  # this process has what the children need
    before = loads(arctic_home)
    assert in_children(work(1), work(2)) == [0, 0]
    one, other = (json.loads((arctic_home / f"rows-{number}").read_text()) for number in (1, 2))
    assert one == other == prepared(recipe)
    assert loads(arctic_home) - before == 1
    assert [entry.state for entry in kept(arctic_home)] == ["whole"]


def test_a_process_killed_at_any_point_leaves_nothing_that_loads_wrongly(recipe, arctic_home):
    undisturbed = prepared(recipe, f"data.cache_dir={arctic_home / 'undisturbed'}")
    calls = calls_of(recipe, arctic_home)
    points = sorted({1 + number * (calls - 1) // (POINTS + 1) for number in range(POINTS)} | {calls - 1, calls})
    assert len(points) >= POINTS
    for point in points:
        cache = arctic_home / f"killed-{point}"

        def work(point: int = point, cache: Path = cache) -> None:
            Dying(point).watch()
            prepared(recipe, f"data.cache_dir={cache}")

        assert in_children(work) == [-signal.SIGKILL], f"at call {point} of {calls}"
        before = loads(arctic_home)
        left = [entry.state for entry in entries(cache / "data")]
        assert left in (["half-way"], ["whole"]), f"at call {point} of {calls}"
        assert prepared(recipe, f"data.cache_dir={cache}") == undisturbed, f"at call {point} of {calls}"
        assert loads(arctic_home) - before == (left == ["half-way"])
        assert [entry.state for entry in entries(cache / "data")] == ["whole"]


SLEEPS = """
import os, time
from arctic_training import hookimpl

class Sleeping(list):
    def __getitem__(self, number):
        if number == 1500 and os.path.exists("sleep"):
            open("asleep", "w").close()
            time.sleep(600)
        return super().__getitem__(number)

@hookimpl(wrapper=True)
def arctic_load_data():
    return Sleeping((yield))
"""


@pytest.mark.parametrize("kind", ["auto", "shared"])
def test_a_lock_does_not_outlive_the_process_that_had_it_nor_do_its_workers(recipe, arctic_home, kind):
    chats = arctic_home / "chats.jsonl"
    chats.write_text(chats.read_text() * 50)
    (arctic_home / "train.py").write_text(SLEEPS)
    (arctic_home / "sleep").touch()
    words = ("data.num_proc=2", f"data.cache_fs_type={kind}")
    child = FORK.Process(target=prepared, args=(recipe, *words))
    child.start()
    waited_until(lambda: (arctic_home / "asleep").exists())
    assert [entry.state for entry in kept(arctic_home)] == ["in preparation"]
    child.kill()
    child.join()
    (arctic_home / "sleep").unlink()
    begun = time.monotonic()
    assert prepared(recipe, *words) == prepared(recipe, "data.cache_dir=elsewhere")
    assert time.monotonic() - begun < 60
    assert [entry.state for entry in kept(arctic_home)] == ["whole"]


def waited_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


GROWS = """
from arctic_training import hookimpl

@hookimpl(wrapper=True)
def arctic_prepare_data():
    with open("chats.jsonl") as file:
        line = file.readline()
    with open("chats.jsonl", "a") as file:
        file.write(line)
    return (yield)
"""


def test_rows_of_a_file_that_is_still_written_are_not_kept_as_those_of_what_it_held_before(recipe, arctic_home):
    from arctic_training.errors import DataError

    (arctic_home / "train.py").write_text(GROWS)
    with pytest.raises(DataError, match=r"chats\.jsonl: this source changed while its rows were prepared") as caught:
        prepared(recipe)
    assert caught.value.remedy
    assert kept(arctic_home) == []
    (arctic_home / "train.py").unlink()
    prepared(recipe)
    assert [entry.state for entry in kept(arctic_home)] == ["whole"]


def test_what_a_killed_process_left_does_not_hinder(recipe, arctic_home):
    undisturbed = prepared(recipe, f"data.cache_dir={arctic_home / 'undisturbed'}")
    key = entries(arctic_home / "undisturbed" / "data")[0].key
    data = arctic_home / "arctic-home" / "data"
    half_way = data / f"{key}.incomplete"
    (half_way / "source-1").mkdir(parents=True)
    (half_way / "source-1" / "input_ids.bin").write_bytes(b"1234")
    (half_way / "strange.bin").write_bytes(b"1234")
    (data / f"{key}.lock").touch()
    assert prepared(recipe) == undisturbed
    assert [entry.state for entry in kept(arctic_home)] == ["whole"]
    assert not list(data.rglob("strange.bin"))


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4)


@pytest.mark.parametrize("name", ["input_ids.bin", "labels.bin", "plan.rows.bin", "trained.bin", "rows.json"])
@pytest.mark.parametrize("damage", [shorten, Path.unlink], ids=["truncated", "missing"])
def test_a_damaged_entry_is_noticed_and_prepared_anew(recipe, arctic_home, capfd, name, damage):
    undisturbed = prepared(recipe)
    (entry,) = kept(arctic_home)
    damage(entry.path / name)
    assert [entry.state for entry in kept(arctic_home)] == ["damaged"]
    capfd.readouterr()
    assert prepared(recipe) == undisturbed
    assert "is damaged, and is prepared anew" in capfd.readouterr().err
    assert [entry.state for entry in kept(arctic_home)] == ["whole"]
    assert loads(arctic_home) == 2


def test_a_damaged_entry_is_no_cache_for_a_recipe_that_asks_for_one(recipe, arctic_home):
    from arctic_training.errors import DataError

    prepared(recipe)
    (entry,) = kept(arctic_home)
    shorten(entry.path / "labels.bin")
    with pytest.raises(DataError, match="fail_on_missing_cache"):
        prepared(recipe, "data.fail_on_missing_cache=true")


def test_an_entry_that_is_prepared_now_is_not_removed(recipe, arctic_home):
    from filelock import FileLock, SoftFileLock

    from arctic_training.cache_entries import remove

    data = arctic_home / "arctic-home" / "data"
    for kind in (FileLock, SoftFileLock):
        half_way = data / f"{'0' * 32}.incomplete"
        half_way.mkdir(parents=True)
        with kind(data / f"{'0' * 32}.lock"):
            (entry,) = kept(arctic_home)
            assert (entry.state, remove(entry)) == ("in preparation", False)
            assert half_way.is_dir()
        (entry,) = kept(arctic_home)
        assert (entry.state, remove(entry)) == ("half-way", True)
        assert list(data.iterdir()) == []
