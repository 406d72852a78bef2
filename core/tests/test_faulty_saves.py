"""A save that fails or is killed at any of its file operations leaves a checkpoint from which training goes on bit for
bit; a real file system and a real system call at each of them."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arctic_training.manifest import newest_checkpoint

pytestmark = pytest.mark.usefixtures("arctic_home")

WORKER = Path(__file__).with_name("worker_faulty_saves.py")
needs_seccomp = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the system is not asked about file operations here",
)
PREVIOUS, NEW = "global_step_1", "global_step_2"


CHECKPOINT = {"output_dir": "kept", "save_every_n_steps": 1, "keep_last": 1, "auto_resume": True}


@pytest.fixture
def recipe(tiny_recipe):
    tiny_recipe["model"] = {"dtype": "fp32", "dropout": 0.2}
    return tiny_recipe | {"train_iters": 4, "checkpoint": dict(CHECKPOINT)}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """What became of a training with a fault at every so many-th operation of its second save."""

    @functools.cache
    def faulty(*faults, stride=1, damaged=False, **keys):
        folder = tmp_path_factory.mktemp("faulty")
        request = {"faults": faults, "stride": stride, "damaged": damaged, "checkpoint": CHECKPOINT | keys}
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "ARCTIC_HOME": str(folder / "home")}
        command = [sys.executable, str(WORKER), str(folder), json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
        assert done.returncode == 0, done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines()]
        return {case["fault"]: case for case in told[:3]}, told[3:]

    return faulty


def check(case, whole, operations):
    """That a save failed or was killed as it should, and training went on from a whole checkpoint to the same end."""
    where = f"{case['fault']} at operation {case['number']} of {len(operations)}: {case['operation']}"
    published = operations.index(f"rename {NEW}.incomplete")
    code = case["ended"]["code"]
    if case["fault"] in ("kill", "torn"):
        assert code == -9, where
    elif code == 5:
        said = "could not write the checkpoint", "the checkpoint that was just written is damaged"
        assert any(words in case["ended"]["error"] for words in said), where
        assert "earlier checkpoints" in case["ended"]["error"], where
    else:
        assert code == 0, where
        assert case["newest"] == NEW, where
    assert case["newest"] in ((PREVIOUS, NEW) if case["number"] > published else (PREVIOUS,)), where
    again = case["again"]
    assert again["code"] == 0, where
    assert again["first_step"] == int(case["newest"].rpartition("_")[2]), where
    assert again["weights"] == whole["weights"], where
    assert again["losses"].items() <= whole["losses"].items(), where
    assert len(again["losses"]) == 4 - again["first_step"], where
    assert case["left"] == ["global_step_4"], where


@needs_seccomp
@pytest.mark.slow
@pytest.mark.long
def test_a_save_that_fails_or_is_killed_at_some_operations_leaves_one_to_go_on_from(faulty):
    facts, cases = faulty("kill", "ENOSPC", stride=9)
    assert len(cases) >= 10
    for case in cases:
        check(case, facts["left alone"], facts["recorded"]["operations"])


@needs_seccomp
@pytest.mark.slow
@pytest.mark.long
def test_a_save_that_fails_or_is_killed_at_any_operation_leaves_one_to_go_on_from(faulty):
    facts, cases = faulty("kill", "torn", "EIO", "ENOSPC")
    operations = facts["recorded"]["operations"]
    print(f"{len(operations)} operations, {len(cases)} cases")
    for case in cases:
        check(case, facts["left alone"], operations)
    assert {kind: sum(case["fault"] == kind for case in cases) for kind in ("kill", "EIO", "ENOSPC")} == dict.fromkeys(
        ("kill", "EIO", "ENOSPC"), len(operations)
    )


@needs_seccomp
@pytest.mark.slow
@pytest.mark.long
def test_so_does_one_that_puts_away_a_damaged_one_of_the_same_step(faulty):
    facts, cases = faulty("kill", "EIO", damaged=True)
    operations = facts["recorded"]["operations"]
    assert f"rename {NEW}" in operations
    for case in cases:
        check(case, facts["left alone"], operations)


@needs_seccomp
@pytest.mark.slow
@pytest.mark.long
def test_so_does_one_that_is_written_in_the_background(faulty):
    facts, cases = faulty("kill", "ENOSPC", background=True)
    for case in cases:
        check(case, facts["left alone"], facts["recorded"]["operations"])


@needs_seccomp
@pytest.mark.slow
@pytest.mark.long
def test_every_file_and_directory_reaches_the_disk_before_the_rename(faulty):
    facts, _ = faulty("kill", "ENOSPC", stride=9)
    operations = facts["recorded"]["operations"]
    published = operations.index(f"rename {NEW}.incomplete")
    before = operations[:published]
    written = {line.partition(" ")[2] for line in before if line.startswith(("create", "write"))}
    assert len(written) == 5
    for path in [*written, f"{NEW}.incomplete", f"{NEW}.incomplete/shards"]:
        synced = max(number for number, line in enumerate(before) if line == f"fsync {path}")
        assert not [line for line in before[synced:] if line == f"write {path}"]
    removed = operations.index(f"rename {PREVIOUS}")
    assert "fsync ." in operations[published:removed]
    read_back = [line for line in operations[published:removed] if line.startswith(f"open {NEW}/")]
    assert {line.removeprefix(f"open {NEW}/") for line in read_back} >= {
        "engine.pt", "manifest.json", "random-0.pt", "shards/shard-0", "train_state.json",
    }  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def put_a_folder_there(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "truncated": cut,
    "empty": lambda path: path.write_bytes(b""),
    "longer": grow,
    "a flipped bit": flip_a_bit,
    "missing": Path.unlink,
    "a folder": put_a_folder_there,
}


def test_damage_to_any_file_of_the_newest_is_found_and_the_one_before_is_chosen(run_recipe, recipe, arctic_home):
    recipe["checkpoint"]["keep_last"] = 2
    run_recipe(recipe | {"exit_iteration": 2})
    kept, whole = arctic_home / "kept", arctic_home / "whole"
    shutil.copytree(kept, whole)
    names = sorted(path.name for path in (kept / NEW).iterdir())
    assert names == ["engine.pt", "manifest.json", "random-0.pt", "train_state.json"]

    def newest():
        found = newest_checkpoint(kept, resumable=True)
        shutil.rmtree(kept)
        shutil.copytree(whole, kept)
        return found

    for name in names:
        for damage, do in DAMAGES.items():
            do(kept / NEW / name)
            path, passed_over = newest()
            assert path == kept / PREVIOUS, (name, damage)
            ((other, reason),) = passed_over
            assert other == kept / NEW
            assert name in reason or name == "manifest.json", (name, damage, reason)
            assert "manifest" in reason or name != "manifest.json", (name, damage, reason)
        for other in set(names) - {name}:
            here, there = kept / NEW / name, kept / NEW / other
            content = here.read_bytes()
            here.write_bytes(there.read_bytes())
            there.write_bytes(content)
            assert newest()[0] == kept / PREVIOUS, (name, other)
        (kept / NEW / name).write_bytes((kept / PREVIOUS / name).read_bytes())
        if (whole / NEW / name).read_bytes() != (whole / PREVIOUS / name).read_bytes():
            assert newest()[0] == kept / PREVIOUS, (name, "of the one before")


def test_training_goes_on_from_the_one_before_a_damaged_one_bit_for_bit(run_recipe, recipe, arctic_home, capsys):
    recipe["checkpoint"]["keep_last"] = 2
    whole = run_recipe(recipe | {"checkpoint": []})
    run_recipe(recipe | {"exit_iteration": 2})
    flip_a_bit(arctic_home / "kept" / NEW / "engine.pt")
    run = run_recipe(recipe)
    assert run.first_step == 1
    assert f"passed over {arctic_home / 'kept' / NEW}: engine.pt is not what was written" in capsys.readouterr().err
    ours, theirs = (each.trainer.model_unwrapped.state_dict() for each in (run, whole))
    assert all(ours[name].equal(theirs[name]) for name in ours)
