"""What becomes of rows: the counts add up for every mix of rows and options, and no token is lost, doubled or moved."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_sft import SFTDataConfig, SFTDataFactory
from arctic_training.data import DataConfig, DataFactory, SourceConfig
from arctic_training.errors import DataError

MODEL = Path(__file__).parents[1] / "examples/quickstart/model"
LONGEST = 40
BAD = [
    {"messages": []},
    {"messages": "text"},
    {"text": "no chat"},
    "no row",
    {"messages": [{"role": "user", "content": "a"}]},
]


@cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL, bos_token="<|pad|>")


class Given(SourceConfig):
    """A source whose rows the test holds."""


def make_factory(sources, **data):
    keys = {"num_proc": 1, "max_length": LONGEST, "on_bad_row": "skip", "max_bad_fraction": 1.0} | data
    config = SFTDataConfig(sources=[Given(type="given", split="train", **source) for source in sources], **keys)
    run = SimpleNamespace(
        config=SimpleNamespace(tokenizer=SimpleNamespace(tokenize_kwargs={})),
        trainer=SimpleNamespace(tokenizer=tokenizer()),
        model_max_length=None,
    )
    return SFTDataFactory(config, run)


def total(counts, beginning):
    return sum(number for name, number in counts.items() if name.startswith(beginning))


def assert_counts_add_up(counts, num_rows):
    used = counts["rows read"] - total(counts, "rows refused, ")
    added = (
        counts.get("rows made from several turns", 0)
        + counts.get("rows made by splitting", 0)
        + total(counts, "rows repeated ")
    )
    assert counts["rows read"] == num_rows
    assert used + added == counts["rows kept"] + total(counts, "rows dropped, ")


WORDS = st.integers(1, 20).flatmap(lambda count: st.sampled_from("ab").map(lambda letter: f"{letter} " * count))
CHATS = st.lists(WORDS, min_size=1, max_size=3).map(
    lambda words: {
        "messages": [
            {"role": role, "content": text}
            for word in words
            for role, text in (("user", f"say {word}"), ("assistant", word.strip()))
        ]
    }
)
ROWS = st.lists(st.one_of(CHATS, CHATS, CHATS, st.sampled_from(BAD)), min_size=1, max_size=12)
SOURCES = st.lists(ROWS, min_size=1, max_size=3)
PACKING = st.sampled_from(
    [
        {},
        {"pack_samples": True},
        {"pack_samples": True, "always_max_length": True},
        {"pack_samples": True, "repeat_to_pack_max_length": True},
        {"pack_samples": True, "drop_last": True},
        {"pack_samples": True, "fuse_positions_prob": 0.5},
    ]
)
OVER_LONG = st.sampled_from(["drop", "truncate_right", "truncate_left", "split"])
TURNS = st.sampled_from([{}, {"train_turns": "last"}, {"train_turns": "one_row_per_turn"}, {"mask_inputs": False}])


@st.composite
def shares(draw, number):
    if draw(st.booleans()):
        return [{}] * number
    share = {"passes": st.sampled_from([0.5, 1.0, 2.3])}
    if draw(st.booleans()):
        share["weight"] = st.sampled_from([0.5, 1.0, 3.0])
    return [{name: draw(values) for name, values in share.items()} for _ in range(number)]


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.data())
def test_every_row_that_is_read_is_refused_dropped_or_kept(data):
    sources = data.draw(SOURCES)
    keys = data.draw(PACKING) | data.draw(TURNS) | {"over_long": data.draw(OVER_LONG)}
    keys |= {"max_length": data.draw(st.sampled_from([12, 25, 40, 200])), "seed": data.draw(st.integers(0, 3))}
    keys["weight_by"] = data.draw(st.sampled_from(["rows", "trained_tokens"]))
    factory = make_factory(data.draw(shares(len(sources))), **keys)
    try:
        prepared = factory.prepare(sources, "train")
    except DataError as error:
        if error.message.startswith("chats need a column") or "has a weight and no row left" in error.message:
            return
        left = "no train rows are left after preparation" if any(map(len, sources)) else "there are no rows in "
        assert error.message.startswith(left)
    else:
        documents = len(prepared.packs.rows)
        if not total(factory.counts, "packs dropped") and not keys.get("always_max_length"):
            assert documents == factory.counts["rows kept"]
    assert_counts_add_up(factory.counts, sum(map(len, sources)))


# ---- tokens


@cache
def encoder(turns):
    return make_factory([{}], **dict(turns)).encoder()


def oracle(chats, **turns):
    """The rows of each chat, encoded by itself and left as they are."""
    rows = []
    for chat in chats:
        encoded = encoder(tuple(turns.items()))([chat], ["here"])
        begin = 0
        for length in encoded.lengths.tolist():
            rows.append({name: values[begin : begin + length].tolist() for name, values in encoded.columns.items()})
            begin += length
    return rows


def documents_of(rows):
    """The documents of prepared rows as (ids, labels)."""
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        starts = np.flatnonzero(row["position_ids"] == 0) if "position_ids" in row else np.array([0])
        for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield ids[begin:end].tolist(), labels[begin:end].tolist()


def pieces_of(row, policy):
    """What shall become of a row: the bounds of its pieces."""
    length = len(row["input_ids"])
    if length <= LONGEST:
        return [(0, length)]
    if policy == "split":
        return [(begin, min(begin + LONGEST, length)) for begin in range(0, length, LONGEST)]
    return {"drop": [], "truncate_right": [(0, LONGEST)], "truncate_left": [(length - LONGEST, length)]}[policy]


def piece(row, begin, end):
    return row["input_ids"][begin:end], [-100, *row["labels"][begin + 1 : end]]


GOOD_AND_BAD = st.lists(st.one_of(CHATS, CHATS, CHATS, st.sampled_from(BAD)), min_size=1, max_size=15).map(
    lambda rows: [{"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}, *rows]
)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(rows=GOOD_AND_BAD, policy=OVER_LONG, turns=TURNS, packed=st.booleans())
def test_no_token_is_lost_doubled_or_moved_and_labels_stay_in_their_document(rows, policy, turns, packed):
    factory = make_factory([{}], over_long=policy, pack_samples=packed, **turns)
    found = list(documents_of(factory.prepare([rows], "train")))
    expected = [piece(row, *bounds) for row in oracle(rows, **turns) for bounds in pieces_of(row, policy)]
    expected = [(ids, labels) for ids, labels in expected if any(label != -100 for label in labels)]
    if not packed:
        assert found == expected
    assert Counter(map(str, found)) == Counter(map(str, expected))
    assert all(len(ids) <= LONGEST for ids, _ in found)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(rows=GOOD_AND_BAD, turns=TURNS)
def test_packs_that_are_filled_to_the_last_token_hold_the_rows_end_to_end(rows, turns):
    factory = make_factory([{}], filter_samples=False, pack_samples=True, always_max_length=True, **turns)
    prepared = factory.prepare([rows], "train")
    dropped = factory.counts.get("packs dropped, nothing to train on in them", 0)
    whole = oracle(rows, **turns)
    ids = [token for row in whole for token in row["input_ids"]]
    labels = [label for row in whole for label in (-100, *row["labels"][1:])]
    packs, length = [], len(ids)
    ends = set(np.cumsum([len(row["input_ids"]) for row in whole]).tolist())
    for begin in range(0, length, LONGEST):
        end = min(begin + LONGEST, length)
        starts = [begin, *(position for position in range(begin + 1, end) if position in ends)]
        expected = [-100 if position in starts else labels[position] for position in range(begin, end)]
        packs.append((ids[begin:end], expected))
    kept = [(tokens, expected) for tokens, expected in packs if any(label != -100 for label in expected)]
    assert [(row["input_ids"].tolist(), row["labels"].tolist()) for row in prepared] == kept
    assert len(packs) - len(kept) == dropped


# ---- factories of other kinds


class Filtering(DataFactory):
    """Drops rows in ``process`` without a word, and in ``finish`` with one."""

    name = "filtering"

    def process(self, dataset):
        return [row for row in dataset if row["input_ids"][0] != 1]

    def finish(self, dataset):
        kept = [dataset[number] for number in range(len(dataset)) if dataset[number]["input_ids"][0] != 2]
        self.count("rows dropped, of the kind 2", len(dataset) - len(kept))
        return kept

    def collate(self, rows):
        return {}


@pytest.mark.parametrize("passes", [1.0, 2.5])
def test_what_a_factory_of_ones_own_leaves_out_without_a_word_is_counted(passes):
    config = DataConfig(sources=[Given(type="given", split="train", passes=passes)])
    factory = Filtering(config, SimpleNamespace(trainer=None, model_max_length=None))
    rows = [{"input_ids": [kind, 5], "labels": [-100, 5]} for kind in (0, 1, 2, 0, 1, 0)]
    kept = len(factory.prepare([rows], "train"))
    counts = factory.counts
    assert (counts["rows read"], counts["rows kept"]) == (6, kept)
    assert counts["rows dropped, left out by process"] == 2
    assert_counts_add_up(counts, 6)


class Adding(SFTDataFactory):
    """Takes the short rows out of what the sft data factory makes."""

    def process(self, dataset):
        made = super().process(dataset)
        return [row for row in made if len(row["input_ids"]) > 20]


def test_a_subclass_that_filters_the_rows_it_inherits_loses_none_without_a_count():
    chats = [
        {"messages": [{"role": "user", "content": "a " * n}, {"role": "assistant", "content": "b"}]} for n in range(20)
    ]
    base = make_factory([{}])
    factory = Adding(base.config, base.run)
    prepared = factory.prepare([[*chats, {"messages": []}]], "train")
    assert factory.counts["rows dropped, left out by process"] > 0
    assert factory.counts["rows kept"] == len(prepared)
    assert_counts_add_up(factory.counts, 21)


def test_a_chat_of_several_rows_one_of_which_is_bad_is_refused_as_one_row():
    turns = ["a", "b", "c", tokenizer().bos_token * 2]
    bad, good = (
        {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]}
        for texts in (turns, turns[:2] * 2)
    )
    factory = make_factory([{}], train_turns="one_row_per_turn")
    assert len(factory.prepare([[bad, good]], "train")) == 2
    assert factory.counts == {
        "rows read": 2,
        "rows refused, two BOS": 1,
        "rows made from several turns": 1,
        "rows kept": 2,
    }
