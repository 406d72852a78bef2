"""What becomes of every row of a stream: trained on, or refused and counted, as if it had been prepared."""

from __future__ import annotations

import json

import pytest

from arctic_training import hookimpl
from arctic_training.errors import BadRow, DataError
from arctic_training.wording import counted_by_name

pytest.importorskip("arctic_sft")


def chat(number, turns=1):
    messages = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"What is {number} plus {turn}?"})
        messages.append({"role": "assistant", "content": f"It is {number + turn}."})
    return {"messages": messages}


@pytest.fixture
def recipe(tiny_model):
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {
            "sources": ["chats.jsonl"],
            "streaming": True,
            "stream_buffer": 50,
            "num_proc": 1,
            "dl_num_workers": 0,
            "max_length": 256,
            "pack_samples": True,
        },
        "optimizer": {"type": "adamw"},
        "engine": {"type": "torch"},
        "train_iters": 1,
    }


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def documents(loader):
    """The documents of an epoch, each as its tokens and the number of those that are trained."""
    found = []
    for step in loader.epoch(0):
        for batch in step:
            for ids, labels, positions in zip(
                *(batch[name].tolist() for name in ("input_ids", "labels", "position_ids")), strict=True
            ):
                firsts = [number for number, position in enumerate(positions) if position == 0]
                for begin, end in zip(firsts, [*firsts[1:], len(ids)], strict=True):
                    if trained := sum(label != -100 for label in labels[begin:end]):
                        found.append((tuple(ids[begin:end]), trained))
    return sorted(found)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_row_of_a_stream_is_refused_or_trained_and_the_counts_say_so(
    build_run, recipe, arctic_home, num_workers, capsys
):
    rows = [chat(number) for number in range(230)]
    rows[17], rows[130], rows[229] = "{", chat(0, turns=0), {"messages": [{"role": "user", "content": "Hi"}]}
    write(arctic_home / "chats.jsonl", rows)
    recipe["data"] |= {"on_bad_row": "skip", "dl_num_workers": num_workers}
    with build_run(recipe) as run:
        assert len(documents(run.trainer.train_dataloader)) == 227
        counts = run.component("data").preparation.counts
    refused = {name: number for name, number in counts.items() if name.startswith("rows refused")}
    assert (counts["rows read"], counts["rows kept"], sum(refused.values())) == (230, 227, 3)
    said = capsys.readouterr().err
    for name in refused:
        assert any(f"{counted_by_name(number, name)} so far" in said for number in (1, 2))


def test_rows_that_are_made_of_several_turns_are_read_once(build_run, recipe, arctic_home):
    write(arctic_home / "chats.jsonl", [chat(number, turns=3) for number in range(20)])
    recipe["data"]["train_turns"] = "one_row_per_turn"
    with build_run(recipe) as run:
        assert len(documents(run.trainer.train_dataloader)) == 60
        counts = run.component("data").preparation.counts
    assert counts == {"rows read": 20, "rows made from several turns": 40, "rows kept": 60}


def test_a_stream_ends_the_run_once_too_many_rows_are_refused_of_those_read_so_far(build_run, recipe, arctic_home):
    """Of the first thousand rows 5 %, which are 50; later of all that were read."""
    rows = [chat(number) for number in range(2000)]
    rows[100:140] = ["{"] * 40
    rows[1500:1550] = ["{"] * 50
    write(arctic_home / "chats.jsonl", rows)
    recipe["data"] |= {"on_bad_row": "skip", "stream_buffer": 200}
    with build_run(recipe) as run, pytest.raises(DataError, match="90 of the first 1,600 rows"):
        for _ in run.trainer.train_dataloader.epoch(0):
            pass


def test_a_bad_row_of_a_stream_is_an_error_with_file_and_line(build_run, recipe, arctic_home):
    write(arctic_home / "chats.jsonl", [*(chat(number) for number in range(60)), "{", chat(1)])
    with build_run(recipe) as run:
        steps = run.trainer.train_dataloader.epoch(0)
        next(steps)
        with pytest.raises(BadRow, match=r"chats\.jsonl:61: "):
            list(steps)


@pytest.mark.parametrize("name", ["load", "process", "mixed", "finish"])
def test_a_data_factory_with_stages_of_its_own_is_told_that_a_stream_does_not_go_through_them(
    build_run, plugin_manager, recipe, arctic_home, name
):
    from arctic_sft import SFTDataFactory, SFTTrainer

    own = type("Own", (SFTDataFactory,), {"name": "own", name: lambda self, given: getattr(super(), name)(given)})
    trainer = type("Trainer", (SFTTrainer,), {"name": "own", "__annotations__": {"data_factory": own}})
    plugin_manager.register_classes([own, trainer], "own")
    write(arctic_home / "chats.jsonl", [chat(1)])
    recipe["type"] = "own"
    with pytest.raises(DataError, match=f"Own has a {name} of its own"), build_run(recipe):
        pass


def test_a_plugin_whose_hook_a_stream_does_not_call_is_named(build_run, plugin_manager, recipe, arctic_home, capsys):
    class Cleaner:
        @hookimpl(wrapper=True)
        def arctic_load_data(self, config, split, run):
            return (yield)

    write(arctic_home / "chats.jsonl", [chat(1)])
    with build_run(recipe):
        pass
    assert "do not go through" not in capsys.readouterr().err
    plugin_manager.register(Cleaner(), "cleaner")
    with build_run(recipe):
        pass
    assert "warning: streaming: training rows do not go through arctic_load_data of cleaner" in capsys.readouterr().err
