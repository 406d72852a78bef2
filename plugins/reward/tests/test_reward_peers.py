"""The loss against that of TRL on the same model and pairs; `nox -s peers` makes the environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "worker_trl_reward.py"


@pytest.mark.peers
def test_the_loss_is_that_of_trl(build_run, reward_recipe, exported, tmp_path):
    import torch
    from torch.nn.utils.rnn import pad_sequence

    python = os.environ.get("ARCTIC_TRL_PYTHON")
    if not python:
        pytest.skip("ARCTIC_TRL_PYTHON names no interpreter with TRL: run nox -s peers")
    folder, _ = exported
    recipe = reward_recipe | {"model": reward_recipe["model"] | {"name_or_path": str(folder)}, "micro_batch_size": 16}
    with build_run(recipe) as run, torch.no_grad():
        (batch,) = next(run.trainer.train_dataloader.epoch(0))
        total, weight = run.trainer.loss(batch)
        documents, margins = [], []
        for number in batch.rows:
            row = {name: torch.as_tensor(values) for name, values in run.rows["train"][number].items()}
            second = int((row["position_ids"] == 0).nonzero()[1])
            documents.append((row["input_ids"][:second].long(), row["input_ids"][second:].long()))
            margins.append(0.25 if row["margin"][0].isinf() else float(row["margin"][0]))
    texts = [chosen for chosen, _ in documents] + [rejected for _, rejected in documents]
    pad_id = run.trainer.tokenizer.pad_token_id
    inputs = {
        "input_ids": pad_sequence(texts, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], batch_first=True),
        "margin": torch.tensor(margins),
    }
    torch.save(inputs, tmp_path / "batch.pt")
    command = [python, str(WORKER), str(folder), str(tmp_path / "batch.pt"), str(tmp_path / "trl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = float(done.stdout.split("loss")[-1])
    assert (total / weight).item() == pytest.approx(theirs, rel=1e-4)
