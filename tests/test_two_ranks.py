"""Two ranks evaluate and go on as one process does, for rows, packs and streams: all in one launch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORKER = str(Path(__file__).with_name("worker_engines.py"))
RECORDING = """
import json
from arctic_training import hookimpl


@hookimpl
def arctic_step_start(step, batch, trainer):
    with open(trainer.run.run_dir / f"rows-{trainer.global_rank}.jsonl", "a") as file:
        slots = [micro_batch["input_ids"][: len(micro_batch.rows)].tolist() for micro_batch in batch]
        file.write(json.dumps(slots) + "\\n")
"""
FORMS = {
    "rows": {},
    "packs": {"pack_samples": True, "max_length": 128},
    "stream": {"pack_samples": True, "max_length": 128, "streaming": True, "stream_buffer": 17},
}
STEPS, STOP = 14, 10
SOURCES = ("sums", "names")
SETS = {"few": 5, "more": 11}
EVALUATED = [(packed, size) for packed in (False, True) for size in (1, 3, 8)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, two sources of 12 chats to train on, and two sets to evaluate on."""
    from arctic_training.testing.tiny_llama import make_tiny_llama

    home = tmp_path_factory.mktemp("two-ranks")
    make_tiny_llama(home / "model")
    (home / "rows.py").write_text(RECORDING)
    for name, count in {**dict.fromkeys(SOURCES, 12), **SETS}.items():
        with open(home / f"{name}.jsonl", "w") as file:
            for number in range(count):
                said = f"{number}, {'very ' * (number % 6)}much."
                chat = [{"role": "user", "content": f"{name} {number}?"}, {"role": "assistant", "content": said}]
                file.write(json.dumps({"messages": chat}) + "\n")
    return home


def recipe(home, name, ranks, data, **keys):
    return {
        "type": "sft",
        "model": {"name_or_path": str(home / "model"), "dtype": "fp32"},
        "data": {
            "sources": [{"name": name, "name_or_path": str(home / f"{name}.jsonl")} for name in SOURCES],
            "cache_dir": str(home / "cache"),
            "max_length": 96,
            "pad_to": "max_length",
            "dl_num_workers": 0,
            "num_proc": 1,
            **data,
        },
        "code": str(home / "rows.py"),
        "optimizer": {"type": "fused_adam", "learning_rate": 1e-3},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch" if ranks == 1 else "deepspeed"},
        "micro_batch_size": 4 // ranks,
        "train_iters": STEPS,
        "train_log_iter_interval": 0,
        "loss_log_interval": 0,
        "run_dir": str(home / "runs" / name),
        **keys,
    }


def recipes_of(home, ranks):
    found = {}
    for form, data in FORMS.items():
        keep = {"output_dir": str(home / f"kept-{form}"), "auto_resume": True, "save_every_n_steps": STOP}
        stopped = {"checkpoint": keep, "exit_iteration_this_run": STOP}
        name = f"{form}-whole" if ranks == 1 else f"{form}-unstopped"
        found[name] = recipe(home, name, ranks, data)
        if ranks == 2:
            found[f"{form}-first"] = recipe(home, f"{form}-first", ranks, data, **stopped)
            found[f"{form}-second"] = recipe(home, f"{form}-second", ranks, data, checkpoint=keep)
    for packed, size in EVALUATED if ranks == 2 else [(False, 1)]:
        name = f"evaluated-{packed}-{size}" if ranks == 2 else "evaluated"
        data = {
            "pack_samples": packed,
            "eval_sources": [{"name": each, "name_or_path": str(home / f"{each}.jsonl")} for each in SETS],
        }
        keys = {"micro_batch_size": size, "train_iters": 1, "eval_interval": 100, "evaluate_at_start": True}
        found[name] = recipe(home, name, ranks, data, **keys)
    return found


@pytest.fixture(scope="module")
def runs(home):
    """The folder of the runs: one process, and one launch of two ranks."""
    from arctic_deepspeed.launcher import DeepSpeedLauncher

    for ranks in (1, 2):
        (home / f"recipes-{ranks}.json").write_text(json.dumps(recipes_of(home, ranks)))
    subprocess.run([sys.executable, WORKER, home / "recipes-1.json", home], check=True)
    assert DeepSpeedLauncher().launch(WORKER, [str(home / "recipes-2.json"), str(home)], ["--num_gpus", "2"]) == 0
    return home / "runs"


def steps_of(run):
    """The rows of each step over all ranks, whose micro-batches follow each other."""
    ranks = [map(json.loads, path.read_text().splitlines()) for path in sorted(run.glob("rows-*.jsonl"))]
    return [
        [row for micro_batches in zip(*step, strict=True) for rows in micro_batches for row in rows]
        for step in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_go_on_in_the_second_epoch_with_the_rows_of_a_run_that_did_not_stop(runs, home, form):
    whole, first, second = (steps_of(runs / f"{form}-{part}") for part in ("whole", "first", "second"))
    state = json.loads((home / f"kept-{form}" / f"global_step_{STOP}" / "train_state.json").read_text())["state"]
    assert state["epoch"] >= 1
    assert state["position"], "it stopped in the middle of an epoch"
    assert len(first) == STOP
    assert first + second == whole


def steps_in_metrics(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_go_on_with_the_very_losses_of_two_that_did_not_stop(runs, form):
    whole, first, second = (steps_in_metrics(runs / f"{form}-{part}") for part in ("unstopped", "first", "second"))
    assert [step["loss"] for step in first + second] == [step["loss"] for step in whole]


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_tell_the_losses_by_source_of_one(runs, form):
    alone, together = (steps_in_metrics(runs / f"{form}-{part}") for part in ("whole", "unstopped"))
    told = [{name: loss for name, loss in step.items() if name.startswith("loss")} for step in alone]
    assert {name for losses in told for name in losses} == {"loss", *(f"loss/{name}" for name in SOURCES)}
    for step, losses in zip(together, told, strict=True):
        assert {name: loss for name, loss in step.items() if name.startswith("loss")} == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(("packed", "size"), EVALUATED)
def test_two_ranks_evaluate_each_set_as_one_row_at_a_time(runs, packed, size):
    def evaluated(name):
        lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
        return {line["name"]: line for line in lines if line["kind"] == "eval" and line["step"] == 0}

    ours, alone = evaluated(f"evaluated-{packed}-{size}"), evaluated("evaluated")
    assert list(ours) == list(alone) == list(SETS)
    for name, record in alone.items():
        assert record["rows"] == SETS[name]
        assert ours[name]["trained_tokens"] == record["trained_tokens"]
        assert ours[name]["loss"] == pytest.approx(record["loss"], rel=1e-5)
