"""Disks that fill up, turn read-only or vanish under a running training, for real: a clear end, the last checkpoint
whole, and the same command goes on once there is space again."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arctic_training.manifest import newest_checkpoint

pytest.importorskip("arctic_sft")

pytestmark = [pytest.mark.slow, pytest.mark.long]

TRAIN_PY = """
import os, shutil, subprocess
from pathlib import Path

from arctic_training import hookimpl


def fill(path):
    with open(path, "wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@hookimpl
def arctic_step_start(step, batch, trainer):
    if step == 3 and trainer.global_rank == 0 and not os.path.exists("done"):
        DEED
"""
SECONDS = 60
KEPT = {"output_dir": "disk/kept", "save_every_n_steps": 1, "auto_resume": True}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; a function that changes its options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)

    done = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    if done.returncode:
        pytest.skip(f"this process may not mount a file system: {done.stderr.strip()}")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def train(tmp_path, tiny_model, tiny_chats):
    """A function that runs ``arctic run`` and gives its exit code and what it said."""

    def train(*words, deed="pass", limit=None, **keys):
        (tmp_path / "train.py").write_text(TRAIN_PY.replace("DEED", deed))
        recipe = {
            "type": "sft",
            "run_dir": "run",
            "model": {"name_or_path": str(tiny_model), "dtype": "fp32", "init": "random"},
            "data": {"sources": [str(tiny_chats)], "num_proc": 1, "dl_num_workers": 0, "max_length": 128},
            "optimizer": {"type": "adamw", "learning_rate": 1e-3},
            "scheduler": {"type": "constant"},
            "train_iters": 6,
            "train_log_iter_interval": 0,
            "checkpoint": KEPT,
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | keys))
        environment = os.environ | {"ARCTIC_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "arctic_cli", "run", "recipe.yaml", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            preexec_fn=limit,
        )
        print(f"code {done.returncode} after {time.monotonic() - started:.1f} s\n{done.stderr}")
        return done.returncode, done.stderr

    return train


def steps_of(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def check_end(code, said, kept):
    """That a save failed as it should; gives the step of the checkpoint that is left."""
    assert code == 5, said
    assert "Traceback" not in said
    assert "Logging error" not in said
    path, passed_over = newest_checkpoint(kept, resumable=True)
    assert path is not None
    assert not passed_over
    assert not list(kept.glob("*.incomplete"))
    return int(path.name.rpartition("_")[2])


FULL = (
    r"rank \d could not write the checkpoint: No space left on device: [^\n]+\n? +"
    r"it takes about [\d.]+ kB, [\d.]+ k?B are free: free some space"
)


@pytest.mark.parametrize(
    "ranks", [pytest.param(1, id="one rank"), pytest.param(2, id="two ranks", marks=pytest.mark.distributed)]
)
def test_a_disk_that_fills_up_ends_the_run_and_the_same_command_goes_on_when_there_is_space(
    train, tmp_path, small_disk, ranks
):
    words = ["--num_gpus", "2"] if ranks == 2 else []
    keys = {"deepspeed": {"zero_optimization": {"stage": 2}}} if ranks == 2 else {"engine": {"type": "torch"}}
    started = time.monotonic()
    code, said = train(*words, **keys)
    assert time.monotonic() - started < SECONDS
    step = check_end(code, said, tmp_path / "disk/kept")
    assert re.search(FULL, said.replace(";", ""))
    assert str(tmp_path / f"disk/kept/global_step_{step + 1}") in said
    assert 1 <= step < 5
    small_disk("size=32m")
    code, said = train(*words, **keys)
    assert code == 0, said
    assert f"at step {step}\n" in said
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [*range(1, step + 2), *range(step + 1, 7)]


@pytest.mark.parametrize(
    "ranks", [pytest.param(1, id="one rank"), pytest.param(2, id="two ranks", marks=pytest.mark.distributed)]
)
def test_a_full_disk_that_holds_the_record_of_the_run_too_ends_it_the_same_way(train, tmp_path, small_disk, ranks):
    words = ["--num_gpus", "2"] if ranks == 2 else []
    keys = {"deepspeed": {"zero_optimization": {"stage": 2}}} if ranks == 2 else {"engine": {"type": "torch"}}
    small_disk("size=4m")
    code, said = train(*words, deed="fill('disk/other')", run_dir="disk/run", **keys)
    assert check_end(code, said, tmp_path / "disk/kept") == 2
    assert "No space left on device" in said
    (tmp_path / "disk/other").unlink()
    small_disk("size=32m")
    (tmp_path / "done").touch()
    assert train(*words, run_dir="disk/run", **keys)[0] == 0


def test_a_limit_on_the_size_of_files_ends_the_run_too(train, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    keys = {"engine": {"type": "torch"}}
    assert train(exit_iteration=2, **keys)[0] == 0
    code, said = train(limit=limit, **keys)
    assert check_end(code, said, tmp_path / "disk/kept") == 2
    assert "could not write the checkpoint" in said
    assert "File too large" in said
    assert "no quota or limit of file sizes is in the way" in said


def test_a_disk_that_turns_read_only_ends_the_run_and_the_same_command_goes_on_when_it_can_be_written(
    train, tmp_path, small_disk
):
    small_disk("size=32m")
    disk = str(tmp_path / "disk")  # the run holds a lock that is open for writing, so a second mount covers the first
    cover = f"mount --bind {disk} {disk} && mount -o remount,bind,ro {disk}"
    deed = f"subprocess.run({cover!r}, shell=True, check=True)"
    code, said = train(deed=deed, engine={"type": "torch"})
    assert check_end(code, said, tmp_path / "disk/kept") == 2
    assert "Read-only file system" in said
    assert str(tmp_path / "disk/kept/global_step_3") in said
    subprocess.run(["umount", disk], check=True)
    (tmp_path / "done").touch()
    assert train(engine={"type": "torch"})[0] == 0


def test_a_file_in_the_place_of_the_directory_ends_the_run(train, tmp_path):
    deed = "shutil.move('disk/kept', 'disk/moved'); Path('disk/kept').write_text('')"
    code, said = train(deed=deed, engine={"type": "torch"})
    assert code == 5, said
    assert "could not write the checkpoint: " in said
    assert "Not a directory" in said
    assert newest_checkpoint(tmp_path / "disk/moved", resumable=True)[0].name == "global_step_2"


def test_a_directory_of_checkpoints_that_vanishes_is_made_again(train, tmp_path):
    code, said = train(deed="shutil.rmtree('disk/kept')", engine={"type": "torch"})
    assert code == 0, said
    path, passed_over = newest_checkpoint(tmp_path / "disk/kept", resumable=True)
    assert (path.name, passed_over) == ("global_step_6", [])


def test_a_directory_that_vanishes_while_it_is_written_into_ends_the_run(train, tmp_path):
    code, said = train(deed="trainer.engine.save = shutil.rmtree", engine={"type": "torch"})
    assert check_end(code, said, tmp_path / "disk/kept") == 2
    assert "could not write the checkpoint" in said


def test_a_run_directory_that_vanishes_is_made_again_and_said(train, tmp_path):
    code, said = train(deed="shutil.rmtree('run')", engine={"type": "torch"})
    assert code == 0, said
    assert "metrics.jsonl was removed" in said
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [3, 4, 5, 6]


def test_what_is_full_before_training_is_said_at_once(train, tmp_path, small_disk):
    with open(tmp_path / "disk/other", "wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096):
                continue
        except OSError:
            pass
    code, said = train(engine={"type": "torch"})
    assert code == 5, said
    assert str(tmp_path / "disk/kept") in said
    code, said = train(engine={"type": "torch"}, run_dir="disk/run", checkpoint=[])
    check_record(code, said, tmp_path / "disk/run", "run_dir")


def check_record(code, said, place, key):
    """That a run without checkpoints ended as it should where this place is full."""
    assert code == 5, said
    assert re.search(
        rf"error: No space left on device: {place}/\S+\n  (\S+ k?B were to be written, and )?\S+ k?B are free: "
        rf"free some space, or set {key} to a directory with more\n",
        said,
    )
    assert "Traceback" not in said
    log = re.search("the whole log: (.+)", said)  # on the disk that is full only where all of it found space
    assert bool(log) != ("cannot be written: No space left" in said)
    assert not log or "the run ended: [Errno 28]" in Path(log[1]).read_text()
    assert "could not be written down" not in said


def test_a_full_disk_under_the_record_of_a_run_without_checkpoints_names_the_file_and_the_key(
    train, tmp_path, small_disk
):
    keys = {"engine": {"type": "torch"}, "run_dir": "disk/run", "checkpoint": [], "train_iters": 60}
    code, said = train(deed="fill('disk/other')", **keys)
    check_record(code, said, tmp_path / "disk/run", "run_dir")
    assert f"{tmp_path}/disk/run/metrics.jsonl\n" in said


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_full_disk_under_prepared_data_names_the_file_and_the_key(train, tmp_path, tiny_chats, small_disk, num_proc):
    small_disk("size=16k" if num_proc == 1 else "size=160k")
    (tmp_path / "many.jsonl").write_text(tiny_chats.read_text() * 400)
    data = {"sources": [str(tmp_path / "many.jsonl" if num_proc == 2 else tiny_chats)], "num_proc": num_proc}
    data |= {"dl_num_workers": 0, "max_length": 128, "cache_dir": "disk/cache"}
    code, said = train(engine={"type": "torch"}, checkpoint=[], data=data)
    check_record(code, said, tmp_path / "disk/cache/data", "data.cache_dir or ARCTIC_HOME")
