"""A fine-tuning run computes what a plain PyTorch loop computes."""

import pytest

from arctic_training.errors import ArcticError

pytest.importorskip("arctic_sft")

LEARNING_RATE = 3e-3
STEPS = 30


@pytest.fixture
def recipe(tiny_model, tiny_chats):
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {
            "sources": [str(tiny_chats)],
            "dl_num_workers": 0,
            "num_proc": 1,
            "max_length": 256,
            "div_length": 16,
        },
        "optimizer": {"type": "adamw", "learning_rate": LEARNING_RATE},
        "scheduler": {"name": "cosine", "warmup_ratio": 0.1},
        "engine": {"type": "torch"},
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_iters": STEPS,
        "train_log_iter_interval": 0,
    }


def train_records(run):
    return [record for record in run.metrics if record["kind"] == "train"]


def learning_rate(step, steps=STEPS):
    """Linear warm-up over the first tenth, then half a cosine to 0, written out; ``step`` counts from 0."""
    import math

    warmup = math.ceil(0.1 * steps)
    if step < warmup:
        return LEARNING_RATE * step / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def plain_loop(model, rows, steps):
    """AdamW on the sum of the cross entropies of a step over its number of trained tokens; one row at a time."""
    import torch
    import torch.nn.functional as F

    model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    losses = []
    for step, numbers in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        labels = [torch.as_tensor(rows[number]["labels"]).long() for number in numbers]
        count = sum(int((label[1:] != -100).sum()) for label in labels)
        loss = 0.0
        for number, label in zip(numbers, labels, strict=True):
            inputs = {"input_ids": torch.as_tensor(rows[number]["input_ids"]).long()[None]}
            if "position_ids" in rows[number]:
                inputs["position_ids"] = torch.as_tensor(rows[number]["position_ids"]).long()[None]
            logits = model(**inputs, use_cache=False).logits[0, :-1]
            share = F.cross_entropy(logits, label[1:], ignore_index=-100, reduction="sum") / count
            share.backward()
            loss += share.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return losses


@pytest.mark.parametrize("pack_samples", [False, True], ids=["one row each", "packed"])
def test_thirty_steps_are_those_of_a_plain_loop(run_recipe, recipe, tiny_model, pack_samples):
    from transformers import AutoModelForCausalLM

    recipe["data"]["pack_samples"] = pack_samples
    run = run_recipe(recipe)
    loader, rows = run.trainer.train_dataloader, run.rows["train"]
    size = loader.global_batch_size
    # The last step of an epoch takes the rows that are left.
    steps = [
        [int(number) for number in loader.order(epoch)[start : start + size]]
        for epoch in range(STEPS)
        for start in range(0, len(rows), size)
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32", attn_implementation="sdpa")
    losses = [record["loss"] for record in train_records(run)]
    assert losses == pytest.approx(plain_loop(model, rows, steps[:STEPS]), rel=1e-6)
    assert losses[-1] < 0.8 * losses[0]


def test_the_learning_rate_of_every_step_is_the_closed_form(run_recipe, recipe):
    rates = [record["learning_rate"] for record in train_records(run_recipe(recipe))]
    assert rates == pytest.approx([learning_rate(step) for step in range(STEPS)], rel=1e-6)


def test_a_packed_row_trains_on_the_same_tokens_as_its_documents_alone(run_recipe, recipe):
    """The losses of packed rows are those of their documents one by one: no document sees another."""
    recipe |= {"train_iters": 1, "gradient_accumulation_steps": 32}
    recipe["scheduler"] = {"type": "constant"}
    alone = run_recipe(recipe)
    recipe["data"]["pack_samples"] = True
    packed = run_recipe(recipe)
    (one,), (other,) = train_records(alone), train_records(packed)
    assert one["trained_tokens"] == other["trained_tokens"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    ours, theirs = (run.trainer.model_unwrapped.state_dict() for run in (alone, packed))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "flash_attention_2"])
def test_an_attention_keeps_documents_apart_or_is_refused_by_its_name(run_recipe, recipe, attention):
    """Losses of whole runs, whatever this machine has of these implementations."""
    recipe["model"]["attn_implementation"] = attention
    recipe |= {"train_iters": 1, "gradient_accumulation_steps": 32}
    try:
        alone = run_recipe(recipe)
        recipe["data"]["pack_samples"] = True
        packed = run_recipe(recipe)
    except ArcticError as error:
        assert attention not in ("sdpa", "eager")
        assert attention in str(error)
        return
    (one,), (other,) = train_records(alone), train_records(packed)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
