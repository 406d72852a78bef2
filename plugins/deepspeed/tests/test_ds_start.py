"""DeepSpeed starts on a machine that never ran it: without a compiler, without MPI, soon."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from arctic_deepspeed import process
from arctic_deepspeed.launcher import DeepSpeedLauncher
from arctic_training.distributed import World

WORKER = str(Path(__file__).with_name("worker_runs.py"))
TOOLS = ("c++", "g++", "gcc", "cc", "clang", "clang++", "ninja", "nvcc", "mpicc", "mpirun")


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """No tool but those that note down that they were called; nothing in home or among the compiled extensions."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).write_text(f'#!/bin/sh\necho "{tool} $@" >> {tmp_path}/called\nexit 1\n')
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def recipes(bare_machine, tiny_recipe):
    recipe = tiny_recipe | {
        "engine": {"type": "deepspeed"},
        "optimizer": {"type": "fused_adam"},
        "model": {"dtype": "bf16"},
        "train_iters": 1,
        "micro_batch_size": 2,
        "run_dir": str(bare_machine / "run"),
    }
    (bare_machine / "recipes.json").write_text(json.dumps({"start": recipe}))
    return [str(bare_machine / "recipes.json"), str(bare_machine)]


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_first_start_compiles_nothing(bare_machine, recipes, ranks, record_property):
    began = time.monotonic()
    if ranks == 1:
        subprocess.run([sys.executable, WORKER, *recipes], check=True)
    else:
        assert DeepSpeedLauncher().launch(WORKER, recipes, ["--num_gpus", "2"]) == 0
    seconds = time.monotonic() - began
    record_property("seconds", seconds)
    report = json.loads((bare_machine / "start.json").read_text())
    assert report["ranks"] == ranks
    assert report["error"] is None
    assert len(report["loss"]) == 1
    assert not (bare_machine / "called").exists(), (bare_machine / "called").read_text()
    assert not (bare_machine / "extensions").exists()
    assert seconds < 60, "it takes at most 20 on a quiet machine"


def test_a_single_process_gets_the_environment_of_a_rank_and_gives_it_back(monkeypatch):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "DS_ACCELERATOR")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "1234")
    run = SimpleNamespace()
    setattr(run, process.SET_BY_US, process.prepare_environment(World(), "cpu"))
    assert [os.environ[name] for name in names] == ["0", "0", "1", "127.0.0.1", "cpu"]
    assert os.environ["MASTER_PORT"] == "1234"
    process.restore(run)
    assert not [name for name in names if name in os.environ]
    assert os.environ["MASTER_PORT"] == "1234"


def test_what_a_launcher_says_is_left_as_it_is():
    environment = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    before = dict(environment)
    assert process.prepare_environment(World(3, 4, 1, 2), "cuda", environment) == ["DS_ACCELERATOR"]
    assert {name: environment[name] for name in before} == before


def test_ranks_of_one_machine_share_its_cores():
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        process.share_cores(World(0, 2, 0, 2), "cpu", {})
        assert torch.get_num_threads() == 2
        process.share_cores(World(0, 2, 0, 2), "cpu", {"OMP_NUM_THREADS": "4"})
        process.share_cores(World(0, 2, 0, 2), "cuda", {})
        process.share_cores(World(0, 1, 0, 1), "cpu", {})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_deepspeed_prints_while_it_sets_up_is_shown_only_when_it_fails(capsys):
    with process.without_chatter():
        print("memory used")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError), process.without_chatter():
        print("memory used")
        raise ValueError
    assert capsys.readouterr() == ("", "memory used\n")


def test_every_group_that_deepspeed_makes_has_the_timeout_of_the_run(build_run, tiny_recipe):
    import torch
    from torch.distributed import distributed_c10d

    recipe = tiny_recipe | {"engine": {"type": "deepspeed"}, "process_group_timeout": 77}
    with build_run(recipe):
        groups = [distributed_c10d.GroupMember.WORLD, *distributed_c10d._world.pg_map]
        assert len(set(groups)) > 1
        timeouts = {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups}
    assert timeouts == {77}
