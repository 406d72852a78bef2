"""Prepared rows do not depend on how many processes prepare them, to the last byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arctic_training.api import get_config
from arctic_training.run import Run

MODEL = Path(__file__).parents[1] / "examples/quickstart/model"


def write_chats(path, name, count):
    with open(path, "w") as file:
        for number in range(count):
            if number % 97 == 13:
                file.write("{\n")
                continue
            words = [f"{name} {number} " + "word " * (number * step % 60) for step in (7, 11, 13, 17)]
            messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(words)]
            file.write(json.dumps({"messages": messages[: 2 + number % 3 // 2 * 2]}) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"train_turns": "one_row_per_turn", "over_long": "split"},
        {"over_long": "truncate_left", "mixture": True},
        {"filter_samples": False, "always_max_length": True},
    ],
    ids=["turns", "mixture", "filled"],
)
def test_one_two_and_eight_processes_write_the_same_files(tmp_path, monkeypatch, keys):
    keys = dict(keys)
    sources = [{"name_or_path": str(tmp_path / "first.jsonl")}, {"name_or_path": str(tmp_path / "second.jsonl")}]
    write_chats(tmp_path / "first.jsonl", "apple", 2200)
    write_chats(tmp_path / "second.jsonl", "pear", 3300)
    if keys.pop("mixture", False):
        for source, weight in zip(sources, (1, 2), strict=True):
            source["weight"] = weight
    contents = []
    for num_proc in (1, 2, 8):
        monkeypatch.setenv("ARCTIC_HOME", str(tmp_path / f"home-{num_proc}"))
        data = {"sources": sources, "max_length": 128, "pack_samples": True, "num_proc": num_proc, "on_bad_row": "skip"}
        recipe = {
            "type": "sft",
            "model": {"name_or_path": str(MODEL), "init": "random", "dtype": "fp32"},
            "data": data | keys,
            "engine": {"type": "torch"},
            "train_iters": 1,
            "run_dir": str(tmp_path / f"run-{num_proc}"),
        }
        run = Run(get_config(recipe))
        with run.only_preparing():
            rows = run.rows["train"]
            files = {path.name: path.read_bytes() for path in rows.path.glob("*.bin")}
            contents.append((files, rows.facts, rows.path.name))
    assert contents[0][0].keys() >= {"input_ids.bin", "labels.bin", "plan.rows.bin"}
    assert contents[0][1]["counts"]["rows refused, malformed JSON"] == 57
    assert contents[0] == contents[1] == contents[2]
