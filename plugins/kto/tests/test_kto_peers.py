"""The loss against that of TRL on the same models and answers; `nox -s peers` makes the environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from arctic_huggingface.chat.labelled import DESIRABLE, KIND, MISMATCHED

WORKER = Path(__file__).parent / "worker_trl_kto.py"


def padded(documents):
    """Ids, attention and the mask of answers as TRL has them."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids, masks = zip(*documents, strict=True)
    attention = [torch.ones_like(each) for each in ids]
    return [pad_sequence(list(each), batch_first=True) for each in (ids, attention, masks)]


@pytest.mark.peers
def test_the_loss_is_that_of_trl(build_run, kto_recipe, tmp_path):
    import torch

    python = os.environ.get("ARCTIC_TRL_PYTHON")
    if not python:
        pytest.skip("ARCTIC_TRL_PYTHON names no interpreter with TRL: run nox -s peers")
    with build_run(kto_recipe | {"micro_batch_size": 12}) as run, torch.no_grad():
        step = next(run.trainer.train_dataloader.epoch(0))
        run.trainer.before_losses(step)
        total, weight = run.trainer.loss(step[0])
        own, others, labels = [], [], []
        for number in step[0].rows:
            row = {name: torch.as_tensor(values).long() for name, values in run.rows["train"][number].items()}
            second = int((row["position_ids"] == 0).nonzero()[1])
            ids, kinds = row["input_ids"], row[KIND]
            own.append((ids[:second], (row["labels"][:second] != -100).long()))
            others.append((ids[second:], (kinds[second:] == MISMATCHED).long()))
            labels.append(int(kinds[0] == DESIRABLE))
    names = ("input_ids", "attention_mask", "completion_mask")
    batch = dict(zip(names, padded(own), strict=True)) | {"label": torch.tensor(labels)}
    batch |= {f"KL_{name}": values for name, values in zip(names, padded(others), strict=True)}
    torch.save(batch, tmp_path / "batch.pt")
    folders = [kto_recipe[name]["name_or_path"] for name in ("model", "ref_model")]
    command = [python, str(WORKER), *folders, str(tmp_path / "batch.pt"), str(tmp_path / "trl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = float(done.stdout.split("loss")[-1])
    assert (total / weight).item() == pytest.approx(theirs, rel=1e-4)
