"""Several ranks and the rows of the data: preparation that takes its time, and numbers of rows that no rank divides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

RECORDING = """
import json, os, time
from arctic_training import hookimpl
from arctic_huggingface.source import HFInstructDataSource


class SlowSource(HFInstructDataSource):
    name = "slow"

    def load(self, config, split):
        time.sleep(float(os.environ["SECONDS_TO_LOAD"]))
        return super().load(config, split)


@hookimpl
def arctic_step_start(step, batch, trainer):
    with open(f"rows-{trainer.global_rank}.jsonl", "a") as file:
        for micro_batch in batch:
            for ids in micro_batch["input_ids"][: len(micro_batch.rows)].tolist():
                file.write(json.dumps({"epoch": trainer.state.epoch, "ids": ids}) + "\\n")
"""


def chats(path: Path, number: int) -> Path:
    rows = [[("user", f"What is {n}?"), ("assistant", f"A number, and twice it is {2 * n}.")] for n in range(number)]
    text = [json.dumps({"messages": [{"role": role, "content": said} for role, said in row]}) for row in rows]
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.fixture
def arctic_run(tmp_path, tiny_model):
    """Runs a recipe of seven chats in a directory of its own with a number of ranks; gives directory and output."""

    def run(ranks: int, seconds: float = 0, **keys):
        directory = tmp_path / f"{ranks}-ranks"
        directory.mkdir()
        (directory / "train.py").write_text(RECORDING)
        data = {"max_length": 64, "pad_to": "max_length", "num_proc": 1, "dl_num_workers": 0}
        source = {"type": "slow", "name_or_path": str(chats(directory / "chats.jsonl", 7))}
        recipe = {
            "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
            "data": {**data, "sources": [source], "eval_sources": [source]},
            "engine": {"type": "deepspeed"},
            "deepspeed": {"zero_optimization": {"stage": 2}},
            "optimizer": {"type": "adamw", "learning_rate": 1e-3},
            "epochs": 2,
            "eval_interval": 100,
            "evaluate_at_start": True,
            "run_dir": "run",
            **keys,
        }
        (directory / "recipe.yaml").write_text(json.dumps(recipe))
        environment = os.environ | {
            "ARCTIC_HOME": str(directory / "home"),
            "HF_HUB_OFFLINE": "1",
            "SECONDS_TO_LOAD": str(seconds),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "arctic_cli", "run", "recipe.yaml"]
        command += ["--num_gpus", str(ranks)] if ranks > 1 else []
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        return directory, done.stderr

    return run


def records(directory: Path, kind: str):
    lines = map(json.loads, (directory / "run" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.distributed
def test_a_preparation_of_three_times_the_process_group_timeout_still_trains(arctic_run):
    directory, _ = arctic_run(2, seconds=24, process_group_timeout=8, epochs=1, eval_interval=0, data={
        "sources": [{"type": "slow", "name_or_path": "chats.jsonl"}], "max_length": 64, "num_proc": 1,
        "dl_num_workers": 0,
    }, evaluate_at_start=False)  # fmt: skip
    assert len(records(directory, "train")) == 4
    logs = [(directory / "run" / "logs" / f"rank-{rank}.log").read_text() for rank in (0, 1)]
    assert sum("another process prepares the train rows; waiting for it" in log for log in logs) == 1


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_seven_rows_are_used_once_an_epoch_by_any_number_of_ranks(arctic_run, ranks):
    alone, _ = arctic_run(1)
    together, _ = arctic_run(ranks)
    for epoch in (0, 1):
        rows = [Counter(), Counter()]
        for counter, directory in zip(rows, (alone, together), strict=True):
            for file in directory.glob("rows-*.jsonl"):
                for row in map(json.loads, file.read_text().splitlines()):
                    if row["epoch"] == epoch:
                        counter[tuple(row["ids"])] += 1
        assert rows[0] == rows[1]
        assert len(rows[0]) == 7 == sum(rows[0].values())
    first = [records(directory, "eval")[0] for directory in (alone, together)]
    assert first[0]["trained_tokens"] == first[1]["trained_tokens"]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=1e-5)
