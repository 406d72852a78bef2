"""The loss against its formula in float64, whatever the split and the packing, and against an adapter that is off."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager

import pytest

from arctic_huggingface.reference import make_reference


def chats_of(run, path):
    """Token ids and the number of prompt tokens of each answer, with its label, by the template's own words."""
    tokenizer = run.trainer.tokenizer
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    prompts = [
        tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_dict=False)
        for row in rows
    ]
    wholes = [tokenizer.apply_chat_template(row["messages"], return_dict=False) for row in rows]
    return [(whole, len(prompt), row["label"]) for whole, prompt, row in zip(wholes, prompts, rows, strict=True)]


def log_p(model, ids, prompt):
    """log p of an answer, without the line break behind its end, by a plain loop in float64."""
    import torch

    log_p_LV = model(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return sum(log_p_LV[place - 1, ids[place]] for place in range(prompt, len(ids) - 1))


def ethayarajh_2024(policy, reference, chats, beta, desirable, undesirable):
    """The mean of lambda_y - v(x, y) over answers (arXiv:2402.01306, equation 7): v is lambda_D sigmoid(beta (r - z0))
    of a desirable answer and lambda_U sigmoid(beta (z0 - r)) of another; z0 is estimated by answers of other prompts,
    here of the next row, and at least 0."""
    import torch

    def ratio(ids, prompt):
        with torch.no_grad():
            expected = log_p(reference, ids, prompt)
        return log_p(policy, ids, prompt) - expected

    with torch.no_grad():
        others = [
            ratio(ids[:prompt] + chats[(number + 1) % len(chats)][0][chats[(number + 1) % len(chats)][1] :], prompt)
            for number, (ids, prompt, _) in enumerate(chats)
        ]
        z0 = max(sum(others) / len(others), torch.zeros((), dtype=torch.float64))
    losses = []
    for ids, prompt, good in chats:
        r = ratio(ids, prompt)
        losses.append(
            desirable - desirable / (1 + torch.exp(-beta * (r - z0)))
            if good
            else undesirable - undesirable / (1 + torch.exp(-beta * (z0 - r)))
        )
    return sum(losses) / len(losses), z0


@pytest.mark.parametrize("better", ["model", "ref_model"])  # the baseline is above 0, or held at 0
@pytest.mark.parametrize("packed", [False, True])
def test_value_and_gradient_are_those_of_the_paper(build_run, kto_recipe, answers, better, packed):
    import torch

    recipe = kto_recipe | {"micro_batch_size": 2 if packed else 24, "gradient_accumulation_steps": 24}
    with build_run(recipe, f"data.pack_samples={packed}".lower(), "data.max_length=200") as run:
        trainer = run.trainer
        policy = trainer.model_unwrapped.double()
        trainer.reference.model.double()
        chats = chats_of(run, answers)
        with torch.no_grad():  # weights so far apart that the baseline has a sign
            for parameter in (policy if better == "ref_model" else trainer.reference.model).parameters():
                parameter.mul_(3.0)
        gradients = []
        expected, z0 = ethayarajh_2024(policy, trainer.reference.model, chats, 0.5, 1.0, 1.5)
        expected.backward()
        gradients.append({name: each.grad.clone() for name, each in policy.named_parameters()})
        policy.zero_grad()
        (batch,) = trainer.train_dataloader.epoch(0)
        weight, _, _ = trainer.weigh(batch)
        trainer.before_losses(batch)
        total = sum(trainer.normalised_loss(part, weight) for part in batch)
        total.backward()
    assert weight == 24
    assert (trainer.baseline > 0) == (better == "model")
    assert trainer.baseline == pytest.approx(z0.item(), rel=1e-6)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in policy.named_parameters():
        largest = gradients[0][name].abs().max().item()
        assert (parameter.grad - gradients[0][name]).abs().max().item() <= 1e-6 * largest


@pytest.mark.parametrize(
    "split",
    [
        ("micro_batch_size=2", "gradient_accumulation_steps=6"),
        ("micro_batch_size=1", "gradient_accumulation_steps=12"),
    ],
)
def test_a_step_its_baseline_and_its_figures_do_not_depend_on_the_split(run_recipe, kto_recipe, split):
    recipe = kto_recipe | {"train_iters": 2}
    whole = run_recipe(recipe, "micro_batch_size=12")
    parts = run_recipe(recipe, *split)
    names = (
        "loss",
        "grad_norm",
        "kl",
        "rewards/margin",
        "rewards/desirable",
        "rewards/undesirable",
        "rewards/accuracy",
    )
    for one, other in zip(whole.metrics[:2], parts.metrics[:2], strict=True):
        assert [other[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-4, abs=1e-6)


def test_packing_changes_nothing_in_evaluation(run_recipe, kto_recipe, answers):
    recipe = kto_recipe | {"eval_interval": 1, "evaluate_at_start": True, "train_iters": 1}
    recipe |= {"data": recipe["data"] | {"eval_sources": [str(answers)], "max_length": 200}}
    plain, packed = (
        next(line for line in run_recipe(recipe, f"data.pack_samples={choice}").metrics if line["kind"] == "eval")
        for choice in ("false", "true")
    )
    assert packed["rows"] < plain["rows"] == 24
    for name in ("loss", "kl", "rewards/margin", "rewards/accuracy", "log_probabilities/desirable"):
        assert packed[name] == pytest.approx(plain[name], rel=1e-5)


def test_the_adapter_that_is_off_is_the_reference(build_run, kto_recipe):
    """An adapter by its face alone: a context in which the model is what it was before."""
    import torch

    recipe = kto_recipe | {"model": kto_recipe["ref_model"]}
    with build_run(recipe) as run:
        trainer = run.trainer
        (batch, *_) = trainer.train_dataloader.epoch(0)
        model = trainer.model_unwrapped
        before = copy.deepcopy(model.state_dict())

        @contextmanager
        def disable_adapter():
            changed = copy.deepcopy(model.state_dict())
            model.load_state_dict(before)
            yield
            model.load_state_dict(changed)

        losses = []
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
            for _ in range(2):
                trainer.before_losses(batch)
                losses.append(float(trainer.loss(batch[0]).sum))
                model.disable_adapter = disable_adapter
                trainer.config.ref_model = None
                trainer.reference = make_reference(trainer)
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(4 * 0.5, rel=1e-3)


def test_dropout_is_off_in_both_models(run_recipe, kto_recipe):
    recipe = kto_recipe | {"train_iters": 2}
    dropping = {"hf_config_kwargs": {"attention_dropout": 0.5}}
    plain = run_recipe(recipe)
    run = run_recipe(recipe | {name: recipe[name] | dropping for name in ("model", "ref_model")})
    assert [line["loss"] for line in run.metrics[:2]] == [line["loss"] for line in plain.metrics[:2]]
