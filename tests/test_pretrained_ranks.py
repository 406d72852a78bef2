"""Pretrained weights reach every rank under ZeRO-3, in processes that have run nothing before."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_two_ranks_begin_from_the_pretrained_weights_that_one_process_begins_from(tmp_path, tiny_model, tiny_chats):
    def losses(name, *words, **keys):
        recipe = {
            "type": "sft",
            "run_dir": name,
            "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
            "data": {"sources": [str(tiny_chats)], "num_proc": 1, "dl_num_workers": 0, "max_length": 128},
            "optimizer": {"type": "adamw", "learning_rate": 1e-2},
            "scheduler": {"type": "constant"},
            "train_iters": 3,
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe | keys))
        environment = os.environ | {"ARCTIC_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "arctic_cli", "run", f"{name}.yaml", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["kind"] == "train"]

    alone = losses("alone", engine={"type": "torch"}, micro_batch_size=2)
    together = losses("together", "--num_gpus", "2", deepspeed={"zero_optimization": {"stage": 3}})
    assert together == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < alone[0]
