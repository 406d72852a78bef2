"""Mixtures: what an epoch holds of each source, and the loss over each."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training import hookimpl
from arctic_training.mixture import Share, draw

pytest.importorskip("arctic_sft")


# ---- drawing


counts = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=60), min_size=1, max_size=4)


@given(counts, st.data())
@settings(max_examples=60, deadline=None)
def test_with_weights_an_epoch_is_in_proportion_and_no_row_is_used_too_often(trained, data):
    import numpy as np

    arrays = [np.array(numbers, np.int64) for numbers in trained]
    shares = [Share(data.draw(st.floats(0.1, 10)), data.draw(st.sampled_from([0.5, 1.0, 2.0, 3.0]))) for _ in arrays]
    drawn = draw(shares, arrays, "trained_tokens", seed=data.draw(st.integers(0, 99)))
    got = [int(numbers[rows].sum()) for numbers, rows in zip(arrays, drawn, strict=True)]
    epoch = min(int(a.sum()) * share.passes / share.weight for a, share in zip(arrays, shares, strict=True))
    for numbers, rows, share, taken in zip(arrays, drawn, shares, got, strict=True):
        assert abs(taken - epoch * share.weight) <= numbers.max() / 2 + 1e-6
        times = np.bincount(rows, minlength=len(numbers))
        assert times.max() <= -(-share.passes // 1)
        assert times.max() - times.min() <= 1


def test_without_weights_each_source_gives_its_passes_and_no_more_than_its_cap():
    import numpy as np

    rows = [np.full(100, 10)] * 3
    twice, half, capped = draw(
        [Share(passes=2.0), Share(passes=0.5), Share(most_trained_tokens=70)], rows, "trained_tokens", seed=1
    )
    assert [len(twice), len(half), len(capped)] == [200, 50, 7]
    assert (np.bincount(twice) == 2).all()


def test_weights_by_rows_count_rows():
    import numpy as np

    long, short = draw([Share(1.0), Share(3.0)], [np.full(300, 90), np.full(300, 3)], "rows", seed=1)
    assert [len(long), len(short)] == [100, 300]


# ---- a real run


class SourceCounter:
    """Adds up trained tokens by source, of what is trained on."""

    def __init__(self):
        self.trained = {}
        self.batches = {}

    @hookimpl
    def arctic_step_start(self, step, batch, trainer):
        self.batches[step] = list(batch)
        for micro_batch in batch:
            trained = micro_batch["labels"][:, 1:] != -100
            for source in micro_batch.source_ids[:, 1:][trained].tolist():
                self.trained[source] = self.trained.get(source, 0) + 1


@pytest.fixture
def recipe(tiny_model, tmp_path):
    sources = []
    for name, rows, weight in (("letters", 300, 2.0), ("numbers", 500, 1.0), ("poems", 200, 1.0)):
        path = tmp_path / f"{name}.jsonl"
        lines = [
            {"messages": [{"role": "user", "content": f"{name} {n}?"},
                          {"role": "assistant", "content": f"{name[:3]} " * (1 + n % 9)}]}
            for n in range(rows)
        ]  # fmt: skip
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources.append({"name": name, "name_or_path": str(path), "weight": weight})
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": sources, "dl_num_workers": 0, "num_proc": 1, "max_length": 512, "pack_samples": True},
        "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        "engine": {"type": "torch"},
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_log_iter_interval": 0,
    }


def test_an_epoch_of_three_weighted_sources_is_within_a_hundredth_of_its_weights(run_recipe, plugin_manager, recipe):
    counter = SourceCounter()
    plugin_manager.register(counter, "counter")
    run = run_recipe(recipe)
    total = sum(counter.trained.values())
    for source, weight in enumerate((0.5, 0.25, 0.25)):
        assert counter.trained[source] / total == pytest.approx(weight, rel=0.01)
    facts = json.loads((run.run_dir / "run.json").read_text())["data"]["train"]
    assert [source["name"] for source in facts["sources"]] == ["letters", "numbers", "poems"]
    assert [source["trained_tokens"] for source in facts["sources"]] == [counter.trained[n] for n in range(3)]


def test_the_loss_over_each_source_is_in_the_metrics(run_recipe, plugin_manager, recipe, tiny_model):
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    counter = SourceCounter()
    plugin_manager.register(counter, "counter")
    run = run_recipe(recipe | {"train_iters": 1})
    (record,) = [record for record in run.metrics if record["kind"] == "train"]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    sums, numbers = [0.0] * 3, [0] * 3
    for batch in counter.batches[1]:
        with torch.no_grad():
            logits = model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).logits.double()
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
        trained = batch["labels"][:, 1:].flatten() != -100
        for loss, source in zip(
            losses[trained].tolist(), batch.source_ids[:, 1:].flatten()[trained].tolist(), strict=True
        ):
            sums[source] += loss
            numbers[source] += 1
    for source, name in enumerate(("letters", "numbers", "poems")):
        assert record[f"loss/{name}"] == pytest.approx(sums[source] / numbers[source], rel=1e-5)
    assert record["loss"] == pytest.approx(sum(sums) / sum(numbers), rel=1e-5)


def test_a_run_of_one_source_has_no_losses_by_source(run_recipe, recipe):
    recipe["data"]["sources"] = [recipe["data"]["sources"][0] | {"weight": None}]
    run = run_recipe(recipe | {"train_iters": 1})
    assert not [name for name in run.metrics[0] if name.startswith("loss/")]


def test_a_stream_is_mixed_by_rows(run_recipe, plugin_manager, recipe):
    recipe["data"] |= {"streaming": True, "stream_buffer": 100, "weight_by": "rows"}
    counter = SourceCounter()
    plugin_manager.register(counter, "counter")
    run = run_recipe(recipe | {"train_iters": 8})
    records = [record for record in run.metrics if record["kind"] == "train"]
    assert all({"loss/letters", "loss/numbers", "loss/poems"} <= set(record) for record in records)
    assert counter.trained[0] > counter.trained[1]


def test_an_epoch_of_a_stream_has_rows_in_proportion_to_the_weights(build_run, recipe):
    recipe["data"] |= {"streaming": True, "stream_buffer": 64, "weight_by": "rows"}
    rows = [0, 0, 0]
    with build_run(recipe | {"train_iters": 1}) as run:
        for micro_batch in itertools.chain.from_iterable(run.trainer.train_dataloader.epoch(0)):
            positions, sources, ids = (micro_batch["position_ids"], micro_batch.source_ids, micro_batch["input_ids"])
            begins = (positions == 0) & (ids == ids[0, 0])  # padding counts from 0 too
            for source in sources[begins].tolist():
                rows[source] += 1
    assert [number / sum(rows) for number in rows] == pytest.approx([0.5, 0.25, 0.25], rel=0.03)
    assert max(rows[0] / 300, rows[2] / 200) > 0.95, "an epoch lasts until a source ends"


def test_evaluation_sources_take_no_weight(recipe):
    from arctic_training import get_config
    from arctic_training.errors import RecipeError

    recipe["data"]["eval_sources"] = [recipe["data"]["sources"][0]]
    recipe["eval_interval"] = 1
    with pytest.raises(RecipeError, match="evaluation sees every row once"):
        get_config(recipe)
