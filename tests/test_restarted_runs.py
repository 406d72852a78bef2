"""Runs that are killed or stopped at any moment, and started again with the same command: the end is that of a run left
alone, bit for bit.

``nox -s kills`` kills as often as the project promises; the default here is a few times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arctic_training.manifest import newest_checkpoint, verify
from arctic_training.orphans import descendants

pytest.importorskip("arctic_sft")

MODEL = Path(__file__).parents[1] / "examples/quickstart/model"
CHATS = Path(__file__).parents[1] / "examples/quickstart/data/train.jsonl"
KILLS = int(os.environ.get("ARCTIC_KILLS", "0"))
ROWS = 480 if KILLS else 60
SECONDS = 240

TRAIN_PY = """
import time
from pathlib import Path

from arctic_training import hookimpl
from arctic_training.distributed import gather_objects


@hookimpl
def arctic_step_start(step, batch, trainer):
    trainer.rows_of_step = [[int(row) for row in micro_batch.rows] for micro_batch in batch]


@hookimpl
def arctic_step_end(step, metrics, trainer):
    metrics["rows"] = gather_objects(trainer.rows_of_step)
    linger("step")


@hookimpl
def arctic_evaluate_start(trainer):
    linger("evaluation")


@hookimpl
def arctic_before_save(path, step, trainer):
    linger("save")


@hookimpl(tryfirst=True)
def arctic_build_tokenizer(config, run):
    linger("preparation")


def linger(where):
    if Path("linger-" + where).exists():  # so that a signal comes where a test wants it
        Path("reached").touch()
        time.sleep(1.0)
"""


POISON_PY = """
import math

from arctic_training import hookimpl
from arctic_training.loss import LossSum


@hookimpl(wrapper=True)
def arctic_compute_loss(batch, trainer):
    total, weight = yield
    poisoned = trainer.global_rank == 1 and trainer.global_step == 4
    return LossSum(total * (math.nan if poisoned else 1.0), weight)
"""


class Training:
    """One recipe in a folder of its own, started as often as it takes."""

    def __init__(self, directory: Path, ranks: int = 1, stage: int | None = None, *, background=False, **keys):
        directory.mkdir(exist_ok=True)
        self.directory, self.ranks = directory, ranks
        (directory / "chats.jsonl").write_text("".join(CHATS.read_text().splitlines(keepends=True)[:ROWS]))
        (directory / "train.py").write_text(TRAIN_PY)
        recipe = {
            "type": "sft",
            "run_dir": "run",
            "model": {
                "name_or_path": str(MODEL),
                "init": "random",
                "dtype": "fp32",
                "disable_activation_checkpoint": True,
                "hf_config_kwargs": {"attention_dropout": 0.2, "num_hidden_layers": 1},
            },
            "data": {
                "sources": ["chats.jsonl"],
                "train_eval_split": [0.8, 0.2],
                "max_length": 128,
                "pack_samples": True,
                "num_proc": 1,
                "dl_num_workers": 1,
            },
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "epochs": 2,
            "eval_interval": 4,
            "optimizer": {"type": "adamw", "learning_rate": 1e-3},
            "checkpoint": [
                {
                    "output_dir": "kept",
                    "save_every_n_steps": 1,
                    "keep_last": 3,
                    "auto_resume": True,
                    "background": background,
                },
                {"type": "huggingface", "output_dir": "model", "save_end_of_training": True, "background": background},
            ],
            "engine": {"type": "torch"},
        }
        if stage is not None:
            recipe |= {"engine": {"type": "deepspeed"}, "deepspeed": {"zero_optimization": {"stage": stage}}}
        (directory / "recipe.yaml").write_text(json.dumps(recipe | keys))

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"ARCTIC_HOME": str(self.directory / "home"), "HF_HUB_OFFLINE": "1"}
        ranks = ["--num_gpus", str(self.ranks)] if self.ranks > 1 else []
        with open(self.directory / "output", "a") as output:
            command = [sys.executable, "-m", "arctic_cli", "run", "recipe.yaml", *ranks]
            return subprocess.Popen(command, cwd=self.directory, env=environment, stdout=output, stderr=output)

    def finish(self) -> Training:
        process = self.start()
        assert process.wait(SECONDS) == 0, self.output
        return self

    def wait_until(self, condition, process: subprocess.Popen) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.02)

    def rank_processes(self, process: subprocess.Popen) -> list[int]:
        """The process of each rank, by what they wrote down themselves."""
        if self.ranks == 1:
            return [process.pid]
        below = {each.pid: Path(f"/proc/{each.pid}/environ") for each in descendants(process.pid)}
        found = {}
        for pid, environment in below.items():
            try:
                pairs = dict(pair.partition("=")[::2] for pair in environment.read_text().split("\0") if "=" in pair)
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if "RANK" in pairs and "worker.py" in command:
                found.setdefault(int(pairs["RANK"]), pid)  # the rank was made before its own workers
        return [found[rank] for rank in sorted(found)]

    @property
    def output(self) -> str:
        return (self.directory / "output").read_text()

    @property
    def steps(self) -> int:
        return len(self.records())

    def records(self) -> dict[int, dict]:
        """The figures of each step. One that was taken again, after a kill, came to the same."""
        found: dict[int, dict] = {}
        path = self.directory / "run/metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            if record["kind"] == "train":
                told = {name: record[name] for name in ("loss", "grad_norm", "learning_rate", "rows", "trained_tokens")}
                assert found.setdefault(record["step"], told) == told
        return found

    def weights(self) -> str:
        (path,) = (self.directory / "model").glob("global_step_*/model.safetensors")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def same_as(self, other: Training) -> None:
        assert self.records() == other.records()
        assert self.weights() == other.weights()


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """The same training without anybody in its way, made once for each kind."""
    made: dict[tuple, Training] = {}

    def of(ranks: int, stage: int | None) -> Training:
        if (ranks, stage) not in made:
            directory = tmp_path_factory.mktemp("left-alone") / "run"
            made[ranks, stage] = Training(directory, ranks, stage).finish()
        return made[ranks, stage]

    return of


def kill_and_restart(training: Training, times: int, seed: int) -> int:
    """Kill a random rank or the launcher at random moments.

    Returns:
        How many kills met the training at work.
    """
    draw = random.Random(seed)
    killed = 0
    for _ in range(times):
        process = training.start()
        before = training.steps
        training.wait_until(lambda before=before: training.steps > before + draw.randrange(3), process)
        time.sleep(draw.random() * 0.3)
        victims = [process.pid, *training.rank_processes(process)]
        below = descendants(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(victims), signal.SIGKILL)
        process.wait(SECONDS)
        end = time.monotonic() + 30
        while any(each.is_running for each in below):
            assert time.monotonic() < end, "a process outlived its run"
            time.sleep(0.05)
        killed += process.returncode != 0
        if process.returncode == 0:
            break
    return killed


KINDS = [(1, None, 2)] if not KILLS else [(1, None, KILLS)] + [
    (ranks, stage, max(2, KILLS // 8)) for ranks in (1, 2) for stage in (0, 1, 2, 3)
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "times"), KINDS)
def test_a_run_that_is_killed_and_started_again_ends_as_one_left_alone(tmp_path, left_alone, ranks, stage, times):
    training = Training(tmp_path / "killed", ranks, stage, background=True)
    killed = kill_and_restart(training, times, seed=ranks * 10 + (stage or 0))
    training.finish()
    training.same_as(left_alone(ranks, stage))
    print(f"{killed} kills, {training.steps} steps")
    assert killed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [("step", signal.SIGINT), ("save", signal.SIGTERM), ("preparation", signal.SIGTERM)]
    + ([("step", signal.SIGTERM), ("evaluation", signal.SIGTERM)] if KILLS else []),
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_saves_and_ends_with_its_code_and_the_same_command_goes_on(tmp_path, left_alone, moment, number):
    training = Training(tmp_path / "stopped")
    (training.directory / f"linger-{moment}").touch()
    process = training.start()
    training.wait_until((training.directory / "reached").exists, process)
    process.send_signal(number)
    assert process.wait(SECONDS) == 128 + number
    assert f"stopped by {number.name}" in training.output
    assert "Traceback" not in training.output
    newest, passed_over = newest_checkpoint(training.directory / "kept", resumable=True)
    assert not passed_over
    if moment == "preparation":
        assert newest is None
    else:
        assert newest is not None
        assert verify(newest) is None
        assert newest.name == f"global_step_{training.steps}"
    (training.directory / f"linger-{moment}").unlink()
    training.finish().same_as(left_alone(1, None))


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="takes minutes: nox -s kills")
def test_signals_at_random_moments_lose_nothing(tmp_path, left_alone):
    training = Training(tmp_path / "stopped", background=True)
    draw = random.Random(1)
    stopped = 0
    for _ in range(20):
        process = training.start()
        before = training.steps
        if draw.random() < 0.8:  # otherwise while it starts
            training.wait_until(lambda before=before: training.steps > before, process)
        time.sleep(draw.random())
        process.send_signal(draw.choice([signal.SIGTERM, signal.SIGINT]))
        code = process.wait(SECONDS)
        assert code in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT), training.output
        stopped += code != 0
        newest, passed_over = newest_checkpoint(training.directory / "kept", resumable=True)
        assert not passed_over
        assert newest is None or newest.name == f"global_step_{training.steps}"
        if code == 0:
            break
    training.finish().same_as(left_alone(1, None))
    print(f"{stopped} signals, {training.steps} steps")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.parametrize("victim", ["launcher", "rank 1"] if KILLS else ["launcher"])
def test_a_signal_to_one_process_of_many_stops_all_of_them_after_the_same_step(tmp_path, left_alone, victim):
    training = Training(tmp_path / "stopped", ranks=2, stage=2)
    process = training.start()
    training.wait_until(lambda: training.steps >= 2, process)
    victims = {"launcher": [process.pid]} | {
        f"rank {rank}": [pid] for rank, pid in enumerate(training.rank_processes(process))
    }
    os.kill(victims[victim][0], signal.SIGTERM)
    assert process.wait(SECONDS) == 128 + signal.SIGTERM, training.output
    assert f"\nstopped by SIGTERM after step {training.steps}\n  saved " in training.output
    assert "error: rank" not in training.output
    newest, _ = newest_checkpoint(training.directory / "kept", resumable=True)
    assert newest is not None
    assert newest.name == f"global_step_{training.steps}"
    training.finish().same_as(left_alone(2, 2))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.distributed
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_step_rank_and_rows(tmp_path, left_alone):
    training = Training(tmp_path / "poisoned", ranks=2, stage=2)
    (training.directory / "train.py").write_text(POISON_PY)
    assert training.start().wait(SECONDS) == 6, training.output
    rows = ", ".join(str(row) for part in left_alone(2, 2).records()[5]["rows"][1] for row in part)
    assert f"the loss is nan at step 5 on rank 1, in rows {rows} of the prepared data" in training.output
    assert (training.directory / "kept/global_step_4").is_dir()
    assert not (training.directory / "kept/global_step_5").exists()


HOPS = [(2, 2), (1, None), (2, 3), (1, 0)]
"""Ranks and ZeRO stage of one process after the other; None is the torch engine."""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.distributed
def test_training_goes_on_with_other_ranks_stages_engines_and_micro_batches(tmp_path):
    plain = {"hf_config_kwargs": {"num_hidden_layers": 1, "tie_word_embeddings": True}}  # without dropout
    model = {"name_or_path": str(MODEL), "init": "random", "dtype": "fp32", **plain}
    length = {"model": model, "epochs": 10, "eval_interval": 20}
    whole = Training(tmp_path / "whole", ranks=2, stage=2, **length).finish()
    moving = tmp_path / "moving"
    for number, (ranks, stage) in enumerate(HOPS):
        last = number == len(HOPS) - 1
        keys = length | {"exit_iteration_this_run": 0 if last else 10}
        if ranks == 1:
            keys |= {
                "micro_batch_size": 2 if stage is None else 4,
                "gradient_accumulation_steps": 2 if stage is None else 1,
            }
        training = Training(moving, ranks, stage, **keys).finish()
    assert "checkpoint: taken over from another layout" in training.output
    records, expected = training.records(), whole.records()
    assert sorted(records) == sorted(expected)
    apart = max(abs(record["loss"] / expected[step]["loss"] - 1) for step, record in records.items())
    print(f"{len(records)} steps, losses at most {apart:.1e} apart")
    for step, record in records.items():
        assert record["loss"] == pytest.approx(expected[step]["loss"], rel=1e-3)
        assert record["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=1e-2)
        assert record["learning_rate"] == expected[step]["learning_rate"]
        assert rows_of(record) == rows_of(expected[step])


def rows_of(record):
    return sorted(row for rank in record["rows"] for part in rank for row in part)
