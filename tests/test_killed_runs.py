"""A run that is killed while it prepares data leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from arctic_training.orphans import descendants

pytest.importorskip("arctic_sft")

TRAIN_PY = """
import time
from arctic_sft.data import SFTDataFactory


class SlowEncoder:
    def __init__(self, encoder):
        self.encoder = encoder

    def __call__(self, rows, places):
        time.sleep(60)
        return self.encoder(rows, places)


class SlowData(SFTDataFactory):
    name = "slow"

    def encoder(self):
        return SlowEncoder(super().encoder())
"""


def until(condition, seconds):
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])
def test_a_run_killed_while_workers_make_tokens_leaves_none_of_them(tmp_path, tiny_model, streaming):
    chat = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 5000)
    (tmp_path / "train.py").write_text(TRAIN_PY)
    recipe = {
        "type": "sft",
        "skip_validation": True,
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"type": "slow", "sources": ["chats.jsonl"], "num_proc": 2, "dl_num_workers": 2}
        | ({"streaming": True} if streaming else {}),
        "engine": {"type": "torch"},
        "train_iters": 1,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = os.environ | {"ARCTIC_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "output", "w") as output:
        command = [sys.executable, "-m", "arctic_cli", "run", "recipe.yaml"]
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        assert until(lambda: len(descendants(run.pid)) >= 2 or run.poll() is not None, 90)
        assert run.poll() is None, (tmp_path / "output").read_text()
        workers = descendants(run.pid)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert until(lambda: not any(worker.is_running for worker in workers), 8)
