"""Evaluation computes what transformers computes for one row at a time, however rows are put together."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("arctic_sft")

SETS = {"sums": 9, "words": 14}
"""Rows of each set of evaluation data."""


def chats_of(name, count):
    for number in range(count):
        answer = f"It is {number * 3}{', really' * (number % 5)}." if name == "sums" else "word " * (number % 7 + 1)
        yield [{"role": "user", "content": f"{name} {number}?"}, {"role": "assistant", "content": answer.strip()}]


@pytest.fixture
def recipe(tiny_model, tiny_chats, tmp_path):
    for name, count in SETS.items():
        lines = [json.dumps({"messages": messages}) + "\n" for messages in chats_of(name, count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {
            "sources": [str(tiny_chats)],
            "eval_sources": [{"name_or_path": str(tmp_path / f"{name}.jsonl"), "name": name} for name in SETS],
            "max_length": 160,
            "div_length": 32,
            "dl_num_workers": 0,
            "num_proc": 1,
        },
        "engine": {"type": "torch"},
        "eval_interval": 100,
        "train_iters": 1,
        "train_log_iter_interval": 0,
    }


def row_by_row(model_path, rows):
    """Sum of the cross entropy and number of trained tokens, one unpadded row at a time."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32", attn_implementation="sdpa").eval()
    total, count = 0.0, 0
    for row in rows:
        ids, labels = (torch.as_tensor(row[name].copy()).long() for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total += F.cross_entropy(logits.double(), labels[1:], ignore_index=-100, reduction="sum").item()
        count += int((labels[1:] != -100).sum())
    return total, count


def test_every_set_is_evaluated_as_row_by_row_and_all_together_by_trained_tokens(build_run, recipe, tiny_model):
    expected = {}
    for packed in (False, True):
        for micro_batch_size in (1, 3, 8):
            recipe["data"]["pack_samples"], recipe["micro_batch_size"] = packed, micro_batch_size
            with build_run(recipe) as run:
                if not expected:
                    expected = {name: row_by_row(tiny_model, rows) for name, rows in run.eval_rows.items()}
                    assert [len(rows) for rows in run.eval_rows.values()] == list(SETS.values())
                overall = run.trainer.evaluate()
                lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
            records = [record for record in map(json.loads, lines) if record["kind"] == "eval"]
            assert [record["name"] for record in records] == list(SETS)
            for record in records:
                total, count = expected[record["name"]]
                assert record["loss"] == pytest.approx(total / count, rel=1e-5)
                assert record["trained_tokens"] == count
                assert overall["sets"][record["name"]]["loss"] == record["loss"]
            totals, counts = zip(*expected.values(), strict=True)
            assert overall["loss"] == pytest.approx(sum(totals) / sum(counts), rel=1e-5)
            assert overall["trained_tokens"] == sum(counts)
            assert packed or overall["rows"] == sum(SETS.values())


def test_evaluation_leaves_training_as_it_was(run_recipe, recipe):
    recipe |= {"train_iters": 2, "gradient_accumulation_steps": 3}
    seldom = run_recipe(recipe)
    often = run_recipe(recipe | {"eval_interval": 1, "evaluate_at_start": True})
    losses = [[line["loss"] for line in run.metrics if line["kind"] == "train"] for run in (seldom, often)]
    assert losses[0] == losses[1]
    steps = [(line["step"], line["name"]) for line in often.metrics if line["kind"] == "eval"]
    assert steps == [(step, name) for step in range(3) for name in SETS]
