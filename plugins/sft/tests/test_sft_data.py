"""Rows, packs and micro-batches of the sft data factory, and the counts of what it leaves out."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_training.errors import DataError


def chat(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


CHATS = [{"messages": chat("Hi", "Hello " * n), "source": f"row {n}"} for n in range(1, 9)]


def row(length, trained=None, start=100):
    """A row of ``length`` tokens whose last ``trained`` have labels."""
    ids = list(range(start, start + length))
    trained = length - 1 if trained is None else trained
    return {"input_ids": ids, "labels": [-100] * (length - trained) + ids[length - trained :]}


def rows(*lengths):
    return [row(length, start=1000 * number) for number, length in enumerate(lengths)]


def plain(finished):
    return [{name: list(map(int, values)) for name, values in row.items()} for row in finished]


def lost(factory):
    """What is counted besides the rows that were read and kept."""
    return {name: number for name, number in factory.counts.items() if name not in ("rows read", "rows kept")}


# ---- tokenised rows


def test_a_dataset_and_a_list_of_rows_give_the_same(make_factory):
    from datasets import Dataset

    factory = make_factory(max_length=4096)
    from_list = plain(factory.finish(factory.process(CHATS)))
    from_dataset = plain(factory.finish(factory.process(Dataset.from_list(CHATS))))
    assert from_list == from_dataset
    assert [set(row) for row in from_list] == [{"input_ids", "labels"}] * len(CHATS)


@pytest.mark.parametrize("num_proc", [2, 8])
def test_several_processes_give_the_same_rows_and_packs_in_the_same_order(make_factory, num_proc):
    from datasets import Dataset

    dataset = Dataset.from_list([{"messages": chat(f"Question {n}", f"Answer {n}" * (1 + n % 5))} for n in range(2100)])
    for packed in (False, True):
        options = {"max_length": 64, "pack_samples": packed}
        one, several = make_factory(**options), make_factory(num_proc=num_proc, **options)
        assert plain(one.finish(one.process(dataset))) == plain(several.finish(several.process(dataset)))


@pytest.mark.parametrize("num_proc", [1, 2])
def test_the_row_of_a_bad_chat_is_named_whichever_process_meets_it(make_factory, num_proc):
    from datasets import Dataset

    good, bad = {"messages": chat("Hi", "Hello")}, {"messages": chat("Hi")}
    dataset = Dataset.from_list([good] * 1500 + [bad] + [good] * 600)
    with pytest.raises(DataError, match="row 1500: the chat has no assistant message"):
        make_factory(max_length=4096, num_proc=num_proc).process(dataset)


def test_a_bad_chat_is_placed_as_its_source_places_it(make_factory):
    class Lines(list):
        def where(self, number):
            return f"chats.jsonl:{number + 1}"

    lines = Lines([{"messages": chat("Hi", "Hello")}, {"messages": chat("Hi")}])
    with pytest.raises(DataError, match=r"^chats.jsonl:2 \(row 1\): the chat has no assistant message"):
        make_factory(max_length=4096).process(lines)


def test_a_process_that_is_killed_ends_preparation_with_the_remedy(make_factory):
    class Deadly(list):
        def __getitem__(self, number):
            os.kill(os.getpid(), signal.SIGKILL) if number == 1500 else None
            return super().__getitem__(number)

    with pytest.raises(DataError, match="was killed") as caught:
        make_factory(max_length=4096, num_proc=2).process(Deadly([{"messages": chat("Hi", "Hello")}] * 2000))
    assert "num_proc" in caught.value.remedy


def test_what_columnar_files_add_to_messages_is_taken_away(make_factory):
    from datasets import Dataset

    factory = make_factory(max_length=4096)
    mixed = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "name": "A"}]}]
    assert "name" in Dataset.from_list(mixed)[0]["messages"][0]
    assert plain(factory.process(Dataset.from_list(mixed))) == plain(
        factory.process([{"messages": chat("Hi", "Hello")}])
    )


def test_rows_without_messages_are_refused_with_the_columns_there_are(make_factory):
    with pytest.raises(DataError, match="chats need a column `messages`; found answer, question") as caught:
        make_factory(max_length=8).process([{"question": "a", "answer": "b"}])
    assert "role_mapping" in caught.value.remedy


def test_prepared_rows_without_labels_are_refused_with_the_columns_there_are(make_factory):
    with pytest.raises(DataError, match="input_ids and labels; found input_ids, text"):
        make_factory(max_length=8).finish([{"input_ids": [1], "text": "a"}])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"input_ids": [1, 2], "labels": [1]}, "row 1: 2 input_ids and 1 labels"),
        ({"input_ids": [], "labels": []}, "row 1: no tokens"),
        ({"input_ids": [1, 2], "labels": [1, -100]}, "row 1: no token to train on"),
    ],
)
def test_a_prepared_row_that_cannot_be_trained_is_refused_by_its_number(make_factory, bad, message):
    with pytest.raises(DataError, match=message):
        make_factory(max_length=8).finish([row(3), bad])


def test_the_first_token_of_a_prepared_row_loses_its_label(make_factory):
    finished = plain(make_factory(max_length=8).finish([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}]))
    assert finished[0]["labels"] == [-100, 6, 7]


def test_rows_of_several_sources_follow_one_another(make_factory):
    from datasets import Dataset

    from arctic_training.data import concatenate

    factory = make_factory(max_length=64)
    both = concatenate([Dataset.from_list(rows(3, 4)), rows(5)])
    assert [len(row["input_ids"]) for row in factory.finish(both)] == [3, 4, 5]


# ---- over-long rows


def test_over_long_rows_are_dropped_and_counted(make_factory):
    factory = make_factory(max_length=8)
    assert [len(row["input_ids"]) for row in factory.finish(rows(9, 8, 3, 20))] == [8, 3]
    assert lost(factory) == {"rows dropped, longer than max_length": 2}


def test_max_length_is_the_models_where_the_recipe_gives_none(make_factory):
    factory = make_factory(model_max_length=5)
    assert [len(row["input_ids"]) for row in factory.finish(rows(6, 5))] == [5]


def test_over_long_rows_are_cut_and_counted_when_they_are_not_filtered(make_factory):
    factory = make_factory(max_length=8, filter_samples=False)
    finished = plain(factory.finish([row(12), row(4), row(10, trained=1)]))
    assert [len(row["input_ids"]) for row in finished] == [8, 4]
    assert lost(factory) == {
        "rows cut to max_length": 2,
        "of them in the middle of what is trained": 1,
        "rows dropped, nothing to train on in what is left of them": 1,
    }


def test_over_long_rows_are_an_error_when_packing_without_filter(make_factory):
    factory = make_factory(max_length=8, filter_samples=False, pack_samples=True)
    with pytest.raises(DataError, match=r"row 1 has 12 tokens, and max_length is 8; 2 rows are too long") as caught:
        factory.finish(rows(3, 12, 9))
    assert "data.over_long" in caught.value.remedy


def test_over_long_rows_keep_their_beginning_or_their_end(make_factory):
    for policy, kept in (("truncate_right", [0, 1, 2, 3]), ("truncate_left", [2, 3, 4, 5])):
        factory = make_factory(max_length=4, over_long=policy)
        (cut,) = plain(factory.finish(rows(6)))
        assert cut == {"input_ids": kept, "labels": [-100, *kept[1:]]}
        assert lost(factory) == {"rows cut to max_length": 1, "of them in the middle of what is trained": 1}


def test_a_cut_at_the_edge_of_what_is_trained_is_not_counted_as_one_through_it(make_factory):
    factory = make_factory(max_length=4, over_long="truncate_left")
    assert [row["labels"] for row in plain(factory.finish([row(6, trained=3)]))] == [[-100, 103, 104, 105]]
    assert lost(factory) == {"rows cut to max_length": 1}


def test_over_long_rows_are_split_into_rows_of_their_own(make_factory):
    factory = make_factory(max_length=4, over_long="split")
    finished = plain(factory.finish(rows(9, 3)))
    assert [row["input_ids"] for row in finished] == [[0, 1, 2, 3], [4, 5, 6, 7], [1000, 1001, 1002]]
    assert [row["labels"][0] for row in finished] == [-100] * 3
    assert lost(factory) == {
        "rows split, longer than max_length": 1,
        "rows made by splitting": 2,
        "rows dropped, nothing to train on in what was split off": 1,
    }


def test_over_long_and_filter_samples_say_the_same_and_are_not_given_together(make_factory):
    assert "leave that out" in dict(make_factory(over_long="split", filter_samples=False).config.check())["over_long"]
    assert "over_long" not in dict(make_factory(over_long="split").config.check())


# ---- packs


def test_packs_hold_whole_rows_with_positions_of_their_own(make_factory):
    factory = make_factory(max_length=8, pack_samples=True)
    packs = plain(factory.finish(rows(5, 3, 6)))
    assert packs == [
        {
            "input_ids": [0, 1, 2, 3, 4, 1000, 1001, 1002],
            "labels": [-100, 1, 2, 3, 4, -100, 1001, 1002],
            "position_ids": [0, 1, 2, 3, 4, 0, 1, 2],
        },
        {
            "input_ids": [2000, 2001, 2002, 2003, 2004, 2005],
            "labels": [-100, 2001, 2002, 2003, 2004, 2005],
            "position_ids": [0, 1, 2, 3, 4, 5],
        },
    ]


lengths = st.lists(st.integers(2, 12), min_size=1, max_size=30)
with_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@with_fixture
@given(lengths, st.booleans())
def test_every_row_is_in_the_packs_once_and_no_pack_is_over(make_factory, lengths, always_max_length):
    factory = make_factory(max_length=12, pack_samples=True, always_max_length=always_max_length)
    packs = plain(factory.finish(rows(*lengths)))
    assert all(len(pack["input_ids"]) <= 12 for pack in packs)
    packed = [token for pack in packs for token in pack["input_ids"]]
    missing = {token for row in rows(*lengths) for token in row["input_ids"]} - set(packed)
    assert len(packed) + len(missing) == sum(lengths)
    # A cut may leave a single token for the last pack, which can train nothing.
    assert len(missing) == factory.counts.get("packs dropped, nothing to train on in them", 0) <= always_max_length
    for pack in packs:
        firsts = [i for i, position in enumerate(pack["position_ids"]) if position == 0]
        assert [i for i, label in enumerate(pack["labels"]) if label == -100] == firsts


def test_always_max_length_fills_packs_exactly_and_a_cut_row_goes_on_in_the_next(make_factory):
    factory = make_factory(max_length=6, pack_samples=True, always_max_length=True)
    packs = plain(factory.finish(rows(4, 5, 6)))
    assert [pack["input_ids"] for pack in packs] == [
        [0, 1, 2, 3, 1000, 1001],
        [1002, 1003, 1004, 2000, 2001, 2002],
        [2003, 2004, 2005],
    ]
    assert packs[1]["labels"] == [-100, 1003, 1004, -100, 2001, 2002]
    assert packs[1]["position_ids"] == [0, 1, 2, 0, 1, 2]


def test_always_max_length_cuts_over_long_rows_when_they_are_not_filtered(make_factory):
    factory = make_factory(max_length=4, pack_samples=True, always_max_length=True, filter_samples=False)
    assert [len(pack["input_ids"]) for pack in factory.finish(rows(10))] == [4, 4, 2]


def test_a_pack_without_a_trained_token_is_dropped_and_counted(make_factory):
    factory = make_factory(max_length=4, pack_samples=True, always_max_length=True, filter_samples=False)
    packs = plain(factory.finish([row(8, trained=3)]))
    assert [pack["input_ids"] for pack in packs] == [[104, 105, 106, 107]]
    assert lost(factory) == {"packs dropped, nothing to train on in them": 1}


def test_drop_last_drops_the_emptiest_pack_and_counts_it(make_factory):
    factory = make_factory(max_length=8, pack_samples=True, drop_last=True)
    assert [len(pack["input_ids"]) for pack in factory.finish(rows(3, 8, 7))] == [8, 7]
    assert lost(factory) == {"packs dropped, not full (drop_last)": 1}


def test_drop_last_keeps_packs_that_are_all_full(make_factory):
    factory = make_factory(max_length=8, pack_samples=True, drop_last=True)
    assert len(factory.finish(rows(3, 8, 5))) == 2
    assert lost(factory) == {}


def test_repeating_fills_one_pack_and_is_counted(make_factory):
    factory = make_factory(max_length=20, pack_samples=True, repeat_to_pack_max_length=True)
    (pack,) = plain(factory.finish(rows(3, 4)))
    assert pack["position_ids"] == [*range(3), *range(4)] * 2 + [*range(3)]
    assert lost(factory) == {"rows repeated to fill a pack": 3}


def test_evaluation_sees_every_row_exactly_once_whatever_training_does(make_factory):
    factory = make_factory(
        max_length=20, pack_samples=True, repeat_to_pack_max_length=True, drop_last=True, fuse_positions_prob=1.0
    )
    factory.config.sources = [type("Source", (), {"process": False})]
    (pack,) = plain(factory.prepare([rows(3, 4)], "eval"))
    assert pack["position_ids"] == [*range(3), *range(4)]
    assert lost(factory) == {}


def test_fused_packs_count_positions_through_and_the_draw_follows_the_seed(make_factory):
    def fused(seed, share):
        factory = make_factory(max_length=6, pack_samples=True, fuse_positions_prob=share, seed=seed)
        return [pack["position_ids"][:6] == list(range(6)) for pack in plain(factory.finish(rows(*[3] * 400)))]

    assert fused(1, 1.0) == [True] * 200
    assert fused(1, 0.3) == fused(1, 0.3) != fused(2, 0.3)
    assert 30 < sum(fused(1, 0.3)) < 90


def test_the_documents_of_packs_that_are_given_begin_without_a_label(make_factory):
    pack = {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "position_ids": [0, 1, 0, 1]}
    (row,) = plain(make_factory(max_length=8).finish([pack]))
    assert row["labels"] == [-100, 2, -100, 4]


def test_rows_that_are_packs_already_stay_whole_when_they_are_packed(make_factory):
    pack = {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4], "position_ids": [0, 1, 0, 1]}
    assert plain(make_factory(max_length=8).finish([pack])) == [pack]
    (both,) = plain(make_factory(max_length=8, pack_samples=True).finish([pack, pack]))
    assert both == {name: values * 2 for name, values in pack.items()}
    with pytest.raises(DataError, match="they are packs already"):
        make_factory(max_length=8, pack_samples=True, always_max_length=True).finish([pack])


# ---- micro-batches


def test_a_micro_batch_is_padded_on_the_right_to_a_multiple_of_div_length(make_factory, tokenizer):
    batch = make_factory(max_length=64, div_length=4).collate(rows(3, 6))
    pad = tokenizer.pad_token_id
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "input_ids": (torch.int64, (2, 8)),
        "labels": (torch.int64, (2, 8)),
    }
    assert batch["input_ids"].tolist() == [[0, 1, 2] + [pad] * 5, [*range(1000, 1006), pad, pad]]
    assert batch["labels"].tolist() == [[-100, 1, 2] + [-100] * 5, [-100, *range(1001, 1006), -100, -100]]


def test_padding_never_goes_past_max_length_and_reaches_it_on_demand(make_factory):
    assert make_factory(max_length=10).collate(rows(3, 6))["labels"].shape == (2, 10)
    assert make_factory(max_length=40, pad_to="max_length").collate(rows(3))["labels"].shape == (1, 40)


def test_the_padding_of_a_pack_is_a_document_of_its_own(make_factory):
    factory = make_factory(max_length=8, pack_samples=True, div_length=8)
    batch = factory.collate(list(factory.finish(rows(2, 3))))
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2]]
    assert batch["position_ids"].dtype == torch.int64


def test_the_end_of_text_pads_where_there_is_no_pad_token(make_factory, make_tokenizer):
    tokenizer = make_tokenizer(pad_token=None)
    batch = make_factory(tokenizer, max_length=8, div_length=4).collate(rows(3))
    assert batch["input_ids"][0, 3] == tokenizer.eos_token_id


# ---- keys that contradict each other


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"always_max_length": True}, "always_max_length"),
        ({"drop_last": True}, "drop_last"),
        ({"fuse_positions_prob": 0.5}, "fuse_positions_prob"),
        ({"repeat_to_pack_max_length": True}, "repeat_to_pack_max_length"),
    ],
)
def test_a_key_that_only_packing_gives_a_meaning_needs_packing(make_factory, keys, named):
    problems = dict(make_factory(**keys).config.check())
    assert "pack_samples" in problems[named]
    assert named not in dict(make_factory(pack_samples=True, **keys).config.check())


def test_div_length_must_divide_a_max_length_that_is_padded_to(make_factory):
    from arctic_training.config import annotate

    config = make_factory(pad_to="max_length", max_length=100, div_length=64).config
    annotate(config, given=frozenset({"pad_to", "max_length", "div_length"}))
    assert "does not divide 100" in dict(config.check())["div_length"]
