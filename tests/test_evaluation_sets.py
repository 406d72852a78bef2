"""Evaluation: each named set by itself, every row once, and the loss that plain transformers gives row by row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("arctic_sft")


@pytest.fixture
def recipe(tiny_model, tiny_chats, tmp_path):
    lines = tiny_chats.read_text().splitlines()
    sets = {"sums": lines[:11], "other sums": lines[20:39]}
    for name, rows in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {
            "sources": [str(tiny_chats)],
            "eval_sources": [{"name": name, "name_or_path": str(tmp_path / f"{name}.jsonl")} for name in sets],
            "dl_num_workers": 0,
            "num_proc": 1,
            "max_length": 256,
            "div_length": 16,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        "engine": {"type": "torch"},
        "train_iters": 1,
        "eval_interval": 100,
        "evaluate_at_start": True,
        "train_log_iter_interval": 0,
    }


def plain_losses(model_path, recipe):
    """Sum of losses over trained tokens and their number for each set, one chat at a time; the mask is the template's
    prompt against the whole text."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    totals = {}
    for source in recipe["data"]["eval_sources"]:
        total, number = 0.0, 0
        for line in Path(source["name_or_path"]).read_text().splitlines():
            messages = json.loads(line)["messages"]
            prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
            text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
            begin = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0].double()
            total += float(F.cross_entropy(logits[begin - 1 : -1], ids[0, begin:], reduction="sum"))
            number += ids.shape[1] - begin
        totals[source["name"]] = (total, number)
    return totals


FORMS = [
    pytest.param(size, packed, id=f"{size} rows, {'packed' if packed else 'padded'}")
    for size in (1, 3, 8)
    for packed in (False, True)
]


@pytest.mark.parametrize(("size", "packed"), FORMS)
def test_the_loss_over_a_set_is_that_of_its_rows_one_by_one(run_recipe, recipe, tiny_model, size, packed):
    recipe["data"] |= {"pack_samples": packed}
    run = run_recipe(recipe | {"micro_batch_size": size})
    records = {record["name"]: record for record in run.metrics if record["kind"] == "eval" and record["step"] == 0}
    expected = plain_losses(tiny_model, recipe)
    assert list(records) == list(expected)
    for name, (total, number) in expected.items():
        assert records[name]["trained_tokens"] == number
        assert records[name]["loss"] == pytest.approx(total / number, rel=1e-5)


def test_several_sets_have_records_and_hooks_of_their_own_and_figures_together(
    build_run, recipe, hook_recorder, tiny_model
):
    with build_run(recipe) as run:
        assert list(run.trainer.eval_dataloaders) == ["sums", "other sums"]
        assert run.trainer.eval_dataloader is run.trainer.eval_dataloaders["sums"]
        together = run.trainer.evaluate()
        assert len(hook_recorder.of("arctic_evaluate_end")) == 2
    expected = plain_losses(tiny_model, recipe)
    total = sum(total for total, _ in expected.values())
    number = sum(number for _, number in expected.values())
    assert together["loss"] == pytest.approx(total / number, rel=1e-5)
    assert together["rows"] == 30
    assert list(together["sets"]) == ["sums", "other sums"]


@pytest.mark.distributed
def test_two_ranks_evaluate_as_one(recipe, tiny_model, tmp_path):
    pytest.importorskip("arctic_deepspeed")
    recipe |= {"micro_batch_size": 2, "engine": {"type": "deepspeed"}, "run_dir": "run"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = os.environ | {"ARCTIC_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "arctic_cli", "run", "recipe.yaml", "--num_gpus", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    records = {line["name"]: line for line in lines if line["kind"] == "eval" and line["step"] == 0}
    for name, (total, number) in plain_losses(tiny_model, recipe).items():
        assert records[name]["trained_tokens"] == number
        assert records[name]["loss"] == pytest.approx(total / number, rel=1e-5)
