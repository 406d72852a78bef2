"""Several ranks of a real launch: long preparations, ranks with unequal numbers of rows, evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TIMEOUT = 8
"""Seconds that ranks may wait for each other."""
TRAIN_PY = """
    import json
    import time

    from arctic_training import hookimpl
    from arctic_training.data import DataSource, SourceConfig

    class SlowSource(DataSource):
        name = "slow"
        config: SourceConfig

        def load(self, config, split):
            time.sleep(SECONDS if split == "train" else 0)
            sums = [(number, number * 3) for number in range(7)]
            return [
                {"messages": [
                    {"role": "user", "content": f"{one} plus {two}?"},
                    {"role": "assistant", "content": "It is " + "really " * (one % 4) + f"{one + two}."},
                ]}
                for one, two in sums
            ]

    @hookimpl
    def arctic_step_start(step, batch, trainer):
        with open(trainer.run.run_dir / f"rows-{trainer.global_rank}.jsonl", "a") as file:
            for micro_batch in batch:
                for ids in micro_batch["input_ids"][: len(micro_batch.rows)].tolist():
                    file.write(json.dumps([trainer.epoch_idx, ids]) + "\\n")
    """
RECIPE = """
    type: sft
    model: {{name_or_path: {model}, dtype: fp32}}
    data:
      sources: [{{type: slow}}]
      eval_sources: [{{type: slow}}]
      max_length: 128
      div_length: 128
      dl_num_workers: 0
      num_proc: 1
    optimizer: {{type: fused_adam, learning_rate: 1e-3}}
    scheduler: {{type: constant}}
    process_group_timeout: {timeout}
    epochs: 2
    eval_interval: 100
    evaluate_at_start: true
    run_dir: run
    """


@pytest.fixture
def launch(tmp_path, tiny_model):
    """Run the recipe on some ranks, in a folder of its own; gives that of the run."""

    def launch(ranks, *, seconds=0, timeout=60):
        folder = tmp_path / f"on-{ranks}"
        folder.mkdir()
        (folder / "train.py").write_text(textwrap.dedent(TRAIN_PY).replace("SECONDS", str(seconds)))
        (folder / "recipe.yaml").write_text(textwrap.dedent(RECIPE).format(model=tiny_model, timeout=timeout))
        words = ["run", "recipe.yaml", *(["--num_gpus", str(ranks)] if ranks > 1 else ["engine.type=torch"])]
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        done = subprocess.run(
            [sys.executable, "-m", "arctic_cli", *words],
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return folder / "run"

    return launch


def rows_of(run, epoch):
    """The rows that all ranks trained on in an epoch."""
    lines = [json.loads(line) for path in run.glob("rows-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(ids for number, ids in lines if number == epoch)


def records(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_ranks_wait_for_a_long_preparation_and_use_each_of_seven_rows_once(launch):
    """The preparation lasts three times as long as the ranks may wait for each other in the process group."""
    alone = launch(1)
    for ranks, seconds, timeout in ((2, 3 * TIMEOUT, TIMEOUT), (3, 0, 60)):
        run = launch(ranks, seconds=seconds, timeout=timeout)
        logs = [path.read_text() for path in sorted((run / "logs").iterdir())]
        if seconds:
            assert sum("data: another process prepares the train rows; waiting for it" in log for log in logs) == 1
        assert len(list(run.glob("rows-*.jsonl"))) == ranks
        for epoch in (0, 1):
            used = rows_of(run, epoch)
            assert len({tuple(ids) for ids in used}) == len(used) == 7
            assert used == rows_of(alone, epoch)
        ours, theirs = records(run, "eval"), records(alone, "eval")
        assert len(ours) == 2
        assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)  # of the untrained model
        assert [record["rows"] for record in ours] == [7, 7]
