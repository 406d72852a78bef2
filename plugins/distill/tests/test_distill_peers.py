"""The divergences against those of TRL: ``ARCTIC_TRL_PYTHON`` names an interpreter that has it."""

from __future__ import annotations

import os
import subprocess

import pytest

pytestmark = pytest.mark.peers

THEIRS = """
import sys, torch
from trl.experimental.gkd.gkd_trainer import GKDTrainer
folder = sys.argv[1]
given = torch.load(f"{folder}/given.pt")
student = given["student"].requires_grad_()
found = []
for beta in given["betas"]:
    loss = GKDTrainer.generalized_jsd_loss(
        student[None], given["teacher"][None], beta=beta, temperature=given["temperature"], reduction="sum"
    )
    found.append((loss.item(), torch.autograd.grad(loss, student)[0]))
torch.save(found, f"{folder}/found.pt")
"""


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_each_divergence_and_its_gradient_are_those_of_trl(tmp_path, temperature):
    """TRL's beta is 0 for forward KL, 1 for reverse KL; it leaves out the square of the temperature."""
    import torch

    from arctic_distill.divergence import divergences, tempered

    if "ARCTIC_TRL_PYTHON" not in os.environ:
        pytest.skip("ARCTIC_TRL_PYTHON names no interpreter with TRL: run nox -s peers")
    student, teacher = torch.randn(2, 9, 200, generator=torch.manual_seed(0)) * 3
    kinds = {0: "forward_kl", 1: "reverse_kl", 0.5: "jensen_shannon", 0.2: "jensen_shannon"}
    given = {"student": student, "teacher": teacher, "betas": list(kinds), "temperature": temperature}
    torch.save(given, tmp_path / "given.pt")
    subprocess.run([os.environ["ARCTIC_TRL_PYTHON"], "-c", THEIRS, str(tmp_path)], check=True, timeout=600)
    theirs = torch.load(tmp_path / "found.pt")
    for (beta, kind), (value, gradient) in zip(kinds.items(), theirs, strict=True):
        logits = student.clone().requires_grad_()
        found = divergences(tempered(teacher, temperature), tempered(logits, temperature), kind, beta).sum()
        found.backward()
        assert found.item() == pytest.approx(value, rel=1e-4)
        torch.testing.assert_close(logits.grad, gradient, rtol=1e-4, atol=1e-5)
