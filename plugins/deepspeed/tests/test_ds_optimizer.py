"""fused_adam and cpu_adam build what this machine can, say what it is, and never hang on a build."""

import os
import time
from types import SimpleNamespace

import pytest

from arctic_deepspeed.optimizer import CPUAdamFactory, FusedAdamFactory, refuse_without_compiler, wait_for_build
from arctic_training.errors import UsageError
from arctic_training.optimizer import OptimizerConfig
from arctic_training.recipe import load_recipe


@pytest.fixture
def run():
    import torch

    said = []
    config = SimpleNamespace(deepspeed={}, recipe=load_recipe({}))
    return SimpleNamespace(said=said, say=said.append, device=torch.device("cpu"), config=config)


@pytest.fixture
def model():
    import torch

    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))


def test_on_a_cpu_fused_adam_is_torchs_and_the_run_says_so(run, model):
    import torch

    optimizer = FusedAdamFactory(OptimizerConfig(learning_rate=0.5, betas=(0.8, 0.9)), run).create_optimizer(model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["fused"]
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert run.said == ["optimizer: fused_adam is torch's fused AdamW on a CPU"]


@pytest.mark.parametrize(("tools", "missing"), [((), "no a C"), (("g++",), "no ninja"), (("ninja",), "no a C")])
def test_cpu_adam_says_what_it_lacks_before_it_builds(tmp_path, monkeypatch, tools, missing):
    for tool in tools:
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=missing) as refusal:
        refuse_without_compiler("recipe.yaml:3:5")
    assert "fused_adam" in str(refusal.value)


def test_cpu_adam_is_refused_where_nothing_is_offloaded(run, model):
    import torch

    run.device = torch.device("cuda")
    with pytest.raises(UsageError, match="nothing is offloaded"):
        CPUAdamFactory(OptimizerConfig(), run).create_optimizer(model)


def test_the_lock_of_a_killed_build_is_named_and_not_waited_for(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    os.utime(lock, (time.time() - 3600,) * 2)
    with pytest.raises(UsageError, match="left its lock") as refusal:
        wait_for_build(tmp_path)
    assert str(lock) in str(refusal.value)


def test_a_build_that_ends_is_waited_for(tmp_path):
    wait_for_build(tmp_path)
    lock = tmp_path / "lock"
    lock.touch()
    began = time.time()
    with pytest.raises(UsageError, match="left its lock"):
        wait_for_build(tmp_path, seconds=1)
    assert time.time() - began > 0.5
