"""A rank that hangs ends the whole run: it is named with the place, and every rank leaves its stacks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arctic_training.orphans import descendants

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LIMIT = 5
HANGS = """
import ctypes, os, signal, time
from pathlib import Path

from arctic_sft import SFTTrainer


class Hanging(SFTTrainer):
    name = "hanging"

    def loss(self, batch):
        if self.global_rank == 1 and self.global_step == 2:
            Path("reached").touch()
            DEED
        return super().loss(batch)
"""
DEEDS = {
    "sleeps": "time.sleep(600)",
    "loops": "while True: pass",
    "keeps Python's lock": "ctypes.PyDLL(None).sleep(600)",
    "is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.parametrize(
    ("deed", "stage"),
    [
        ("sleeps", 2),
        pytest.param("loops", 3, marks=pytest.mark.long),
        pytest.param("keeps Python's lock", 2, marks=pytest.mark.long),
        pytest.param("is stopped", 2, marks=pytest.mark.long),
    ],
    ids=lambda value: str(value),
)
def test_the_rank_that_hangs_is_named_and_all_end(tmp_path, tiny_model, tiny_chats, deed, stage):
    (tmp_path / "train.py").write_text(HANGS.replace("DEED", DEEDS[deed]))
    recipe = {
        "type": "hanging",
        "run_dir": "run",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32", "init": "random"},
        "data": {"sources": [str(tiny_chats)], "num_proc": 1, "dl_num_workers": 1, "max_length": 128},
        "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "train_iters": 5,
        "step_timeout": LIMIT,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = os.environ | {"ARCTIC_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "output", "w") as output:
        command = [sys.executable, "-m", "arctic_cli", "run", "recipe.yaml", "--num_gpus", "2"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    said = tmp_path / "output"
    until((tmp_path / "reached").exists, process, said, 200)
    below = descendants(process.pid)
    hung = time.monotonic()
    code = process.wait(90)
    seconds = time.monotonic() - hung
    print(f"{deed}, ZeRO {stage}: ended after {seconds:.1f} s\n{said.read_text()}")
    assert code == 6, said.read_text()
    # DeepSpeed's launcher kills a rank that heeds no signal after 30 s.
    assert seconds < LIMIT + (50 if deed == "is stopped" else 30)
    assert f"step 3 takes longer than {LIMIT} s: rank 1 " in said.read_text()
    assert not any(each.is_running for each in below)
    logs = [(tmp_path / f"run/logs/rank-{rank}.log").read_text() for rank in (0, 1)]
    assert "Thread 0x" in logs[0]
    if deed in ("sleeps", "loops"):
        assert re.search(rf"rank 1 hangs in loss \({tmp_path}/train\.py:1\d, in loss\)", said.read_text())
        assert re.search(r'train\.py", line 1\d in loss', logs[1])
    else:
        assert "rank 1 answers no more; rank 1 was seen last " in said.read_text()


def until(condition, process: subprocess.Popen, output: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.05)
