"""A run that stopped in its second epoch goes on with the very next row: losses to the bit, rows in their turn."""

from __future__ import annotations

import itertools
import json

import pytest

from arctic_training import hookimpl
from arctic_training.distributed import World
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve
from arctic_training.run import Run
from arctic_training.state import TrainState

pytest.importorskip("arctic_sft")

STOP = 2
FORMS = {
    "rows": {},
    "packs": {"pack_samples": True, "max_length": 96},
    "stream of packs": {"pack_samples": True, "max_length": 96, "streaming": True, "stream_buffer": 9},
}


class RowRecorder:
    """Notes the token ids of every micro-batch that is trained on."""

    def __init__(self):
        self.batches = []

    @hookimpl
    def arctic_step_start(self, step, batch, trainer):
        self.batches.append((step, [micro_batch["input_ids"].tolist() for micro_batch in batch]))


@pytest.fixture
def recipe(tiny_model, tiny_chats):
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32", "hf_config_kwargs": {"attention_dropout": 0.1}},
        "data": {"sources": [str(tiny_chats)], "dl_num_workers": 0, "num_proc": 1, "max_length": 256, "div_length": 16},
        "optimizer": {"type": "adamw", "learning_rate": 3e-3},
        "scheduler": {"name": "cosine"},
        "engine": {"type": "torch"},
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "checkpoint": [{"output_dir": "checkpoints", "auto_resume": True, "save_end_of_training": True}],
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_run_stopped_in_epoch_two_goes_on_to_the_bit(run_recipe, plugin_manager, recipe, form):
    recipe["data"] |= FORMS[form]
    steps_per_epoch = 12 if form == "rows" else None
    recipe["train_iters"] = 3 * 12 if form == "rows" else 24
    recorder = RowRecorder()
    plugin_manager.register(recorder, "recorder")

    def train(**keys):
        recorder.batches = []
        run = run_recipe(recipe | keys)
        return [record["loss"] for record in run.metrics if record["kind"] == "train"], list(recorder.batches), run

    whole, rows, alone = train(run_dir="whole", checkpoint=[])
    epochs = [record["epoch"] for record in alone.metrics if record["kind"] == "train"]
    assert epochs[-1] > 1
    stop = 17 if steps_per_epoch else next(number for number, epoch in enumerate(epochs) if epoch >= 1) + 3
    save = [{**recipe["checkpoint"][0], "save_every_n_steps": stop}]
    before, rows_before, _ = train(run_dir="part", exit_iteration_this_run=stop, checkpoint=save)
    after, rows_after, _ = train(run_dir="rest")
    assert before + after == whole
    assert rows_before + rows_after == rows


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_goes_on_with_the_next_row(run_recipe, plugin_manager, recipe, form, before, after):
    """Position and rows alone: engines refuse a checkpoint of another number of ranks."""
    recipe["data"] |= FORMS[form]
    recipe |= {"train_iters": 30, "gradient_accumulation_steps": 4 // before}

    def loaders(size):
        found = []
        for rank in range(size):
            config = resolve(
                load_recipe(recipe | {"gradient_accumulation_steps": 4 // size, "run_dir": "loaders"}), plugin_manager
            )
            run = Run(config)
            run.world = World(rank, size, rank, size)
            with run.only_preparing():
                rows = None if config.data.streaming else run.rows["train"]
                loader = plugin_manager.ask(
                    "arctic_build_dataloader", object, dataset=rows, split="train", config=config.data, run=run
                )
            found.append(loader)
        return found

    def steps(size, state, count):
        iterators = [loader.epoch(state.epoch, state.position) for loader in loaders(size)]
        ranks = zip(*iterators, strict=True)
        return [
            [
                ids
                for micro_batches in zip(*step, strict=True)
                for batch in micro_batches
                for ids in batch["input_ids"][: len(batch.rows)].tolist()
            ]
            for step in itertools.islice(ranks, count)
        ]

    if before == 1:
        recipe["checkpoint"][0]["save_every_n_steps"] = STOP
        run = run_recipe(recipe | {"exit_iteration_this_run": STOP, "run_dir": "one"})
        stored = json.loads(next((run.run_dir.parent / "checkpoints").glob("*/train_state.json")).read_text())["state"]
        state = TrainState.from_dict(stored)
    else:
        batches = [list(itertools.islice(loader.epoch(0), STOP)) for loader in loaders(2)]
        assert batches[0][-1].position == batches[1][-1].position
        state = TrainState(position=json.loads(json.dumps(batches[0][-1].position)))
    whole = steps(before, TrainState(), STOP + 2)
    assert len(whole) == STOP + 2
    trimmed = [[strip(ids) for ids in step] for step in whole[STOP:]]
    assert [[strip(ids) for ids in step] for step in steps(after, state, 2)] == trimmed


def strip(ids):
    """A row without its padding, which depends on the rows beside it."""
    pad = 256
    return ids[: next((end for end in range(len(ids), 0, -1) if ids[end - 1] != pad), 0)]
