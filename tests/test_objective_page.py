"""The objective of the documentation, as it stands there: its loss is its formula, its step the same for each split."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("arctic_sft")

PAGE = Path(__file__).parent.parent / "docs" / "objectives.md"


@pytest.fixture
def recipe(tmp_path, tiny_model, tiny_chats):
    block = re.search(r"<!-- objective -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "objective.py").write_text(block.group(1))
    return {
        "type": "answers",
        "code": str(tmp_path / "objective.py"),
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "max_length": 128, "dl_num_workers": 0, "num_proc": 1},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 8,
        "train_iters": 1,
    }


def test_its_loss_is_the_mean_over_answers_of_their_means(build_run, recipe):
    with build_run(recipe) as run, torch.no_grad():
        model, means = run.trainer.model_unwrapped.eval(), []
        for row in run.rows["train"]:
            ids, labels = (torch.tensor(row[name].tolist()) for name in ("input_ids", "labels"))
            log_p = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            means.append(-log_p[labels[1:] != -100].mean().item())
        total, weight = 0.0, 0.0
        for batch in run.trainer.train_dataloader.epoch(0):
            for micro_batch in batch:
                loss = run.trainer.loss(micro_batch)
                assert float(loss.weight) == run.trainer.loss_weight(micro_batch)
                total, weight = total + float(loss.sum), weight + float(loss.weight)
    assert weight == len(means)
    assert total / weight == pytest.approx(sum(means) / len(means), rel=1e-5)


def test_packs_and_splits_take_the_same_step_and_log_the_same_figures(run_recipe, recipe):
    whole = run_recipe(recipe)
    split = run_recipe(recipe, "micro_batch_size=2", "gradient_accumulation_steps=4")
    [one], [other] = ([line for line in run.metrics if line["kind"] == "train"] for run in (whole, split))
    for name in ("loss", "grad_norm", "tokens_of_an_answer"):
        assert one[name] == pytest.approx(other[name], rel=1e-4), name
