"""The loss against its formulas, written out in float64: value and gradient of every divergence."""

from __future__ import annotations

import pytest

DIVERGENCES = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jensen_shannon", 0.5), ("jensen_shannon", 0.1)]


def expected_divergence(kind, beta, teacher, student, temperature):
    """Sum over tokens of D(P, Q) in float64, from logits (N, V): KL(P || Q) (arXiv:1503.02531), KL(Q || P)
    (arXiv:2306.08543), beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q (arXiv:2306.13649)."""
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    if kind == "forward_kl":
        return (p * (p / q).log()).sum()
    if kind == "reverse_kl":
        return (q * (q / p).log()).sum()
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
def test_each_divergence_is_its_formula(kind, beta, temperature):
    import torch

    from arctic_distill.divergence import divergences

    teacher, student = torch.randn(2, 7, 50, dtype=torch.float64, generator=torch.manual_seed(0)) * 3
    values = []
    for compute in (
        lambda logits: divergences(
            (teacher / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1), kind, beta
        ).sum(),
        lambda logits: expected_divergence(kind, beta, teacher, logits, temperature),
    ):
        logits = student.clone().requires_grad_()
        value = compute(logits)
        value.backward()
        values.append((value.item(), logits.grad))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-6)
    assert torch.allclose(values[0][1], values[1][1], rtol=1e-6, atol=1e-9)


def test_the_jensen_shannon_divergence_tends_to_the_two_kl_divergences():
    import torch

    from arctic_distill.divergence import divergences

    teacher, student = torch.randn(2, 5, 9, dtype=torch.float64, generator=torch.manual_seed(0)).log_softmax(-1)
    near_0 = divergences(teacher, student, "jensen_shannon", 1e-7) / 1e-7
    near_1 = divergences(teacher, student, "jensen_shannon", 1 - 1e-7) / 1e-7
    assert torch.allclose(near_0, divergences(teacher, student, "forward_kl", 0.5), rtol=1e-5)
    assert torch.allclose(near_1, divergences(teacher, student, "reverse_kl", 0.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "beta", "chunk"),
    [("forward_kl", 0.5, None), ("reverse_kl", 0.5, 600), ("jensen_shannon", 0.1, 5000)],
)
def test_the_loss_of_a_batch_and_its_gradient_are_the_formula(
    build_run, distill_recipe, monkeypatch, kind, beta, chunk
):
    """w_d T^2 D - w_s log q + w_h H, over the trained tokens of a micro-batch, in float64, from models of float64."""
    import torch

    from arctic_training import chunks

    if chunk:
        monkeypatch.setattr(chunks, "NUMBERS_AT_A_TIME", chunk)
    weights = {"distillation_weight": 0.7, "sft_weight": 0.4, "hidden_weight": 0.3, "temperature": 1.5}
    beta_key = {"jensen_shannon_weight": beta} if kind == "jensen_shannon" else {}
    recipe = distill_recipe | weights | beta_key | {"divergence": kind, "hidden_layers": [[1, 2], [2, 3]]}
    with build_run(recipe) as run:
        trainer = run.trainer
        model = trainer.model_unwrapped
        batch = next(trainer.train_dataloader.epoch(0))[0]
        found = trainer.loss(batch)
        found.sum.backward()
        gradients = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
        model.zero_grad()
        model.double()
        teacher = trainer.teacher.double()
        expected = torch.zeros((), dtype=torch.float64)
        count = 0
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            asked = {"input_ids": ids[None], "output_hidden_states": True}
            student, with_teacher = model(**asked), teacher(**asked)
            where = (labels[1:] != -100).nonzero()[:, 0]
            q_logits, p_logits = student.logits[0, where], with_teacher.logits[0, where]
            expected = expected + 0.7 * 1.5**2 * expected_divergence(kind, beta, p_logits, q_logits, 1.5)
            expected = expected - 0.4 * q_logits.log_softmax(-1).gather(-1, labels[where + 1][:, None]).sum()
            for own, theirs in ((1, 2), (2, 3)):
                apart = student.hidden_states[own][0, where] - with_teacher.hidden_states[theirs][0, where]
                expected = expected + 0.3 * (apart**2).sum() / (2 * 32)
            count += len(where)
        expected.backward()
        assert found.weight == count
        assert found.sum.item() == pytest.approx(expected.item(), rel=1e-6)
        largest = max(parameter.grad.abs().max().item() for parameter in model.parameters())
        for name, parameter in model.named_parameters():
            assert torch.allclose(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6 * largest), name


def test_a_vocabulary_that_is_padded_counts_as_the_words_that_both_have():
    import torch

    from arctic_distill.trainer import DistillTrainer, DistillTrainerConfig

    logits = torch.randn(3, 10, generator=torch.manual_seed(0))
    padded = torch.cat([logits, torch.randn(3, 6, generator=torch.manual_seed(1))], dim=-1)
    trainer = DistillTrainer.__new__(DistillTrainer)
    trainer.config, trainer.teacher = DistillTrainerConfig.__new__(DistillTrainerConfig), object()
    trainer.config.temperature, trainer.config.divergence, trainer.config.jensen_shannon_weight = 1.0, "forward_kl", 0.5
    for student, teacher in ((logits, padded), (padded, logits)):
        divergence, *_ = trainer._terms(student, torch.tensor([1, 2, 3]), teacher)
        assert divergence.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
def test_what_is_stored_gives_the_divergence_of_the_likeliest_words_and_all_others_as_one(kind, beta):
    import torch

    from arctic_distill.divergence import coarsened, divergences

    teacher, student = torch.randn(2, 7, 50, dtype=torch.float64, generator=torch.manual_seed(0)) * 3
    ids = teacher.topk(5).indices
    found = divergences(
        coarsened(teacher.log_softmax(-1), ids), coarsened(student.log_softmax(-1), ids), kind, beta
    ).sum()
    outcomes = []
    for logits in (teacher, student):
        p = logits.softmax(-1)
        likeliest = p.gather(-1, ids)
        outcomes.append(torch.cat([likeliest, 1 - likeliest.sum(-1, keepdim=True)], -1).log())
    assert found.item() == pytest.approx(expected_divergence(kind, beta, *outcomes, 1.0).item(), rel=1e-6)
    assert found.item() <= expected_divergence(kind, beta, teacher, student, 1.0).item()
