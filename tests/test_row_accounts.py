"""Bad rows: each is told with file, line and reason; what is skipped is counted, and the counts add up to all rows."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_training.errors import DataError
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve
from arctic_training.run import Run

pytest.importorskip("arctic_sft")


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


GOOD = json.dumps(chat("What is two plus two?", "Four."))
BAD_LINES = {
    "malformed JSON": (b'{"messages": [', "this line is not JSON"),
    "invalid UTF-8": (b'{"messages": "\xff\xfe"}', "UTF-8"),
    "wrong type": (b'["a", "list"]', "must be an object with named fields, not a value of type list"),
    "missing column": (b'{"something": "else"}', "holds none of the chats that are known"),
    "empty chat": (b'{"messages": []}', "nothing in 'messages'"),
    "no answer": (json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode(), "no assistant message"),
    "roles out of order": (
        json.dumps({"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Oh"}]}).encode(),
        "has the role assistant at the beginning",
    ),
    "unknown role": (
        json.dumps({"messages": [{"role": "wizard", "content": "Hi"}, {"role": "user", "content": "Oh"}]}).encode(),
        "unknown role 'wizard'",
    ),
    "nothing to train on": (
        json.dumps(
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh", "train": False}]}
        ).encode(),
        "train: false",
    ),
}


@pytest.fixture
def prepare(arctic_home, plugin_manager, tiny_model):
    """Prepares the rows of files with keys of the data section; gives the run, whose facts tell what became of them."""

    def run_of(*names, **keys):
        recipe = {
            "type": "sft",
            "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
            "data": {"sources": list(names), "num_proc": 1, "max_length": 64, **keys},
            "engine": {"type": "torch"},
            "run_dir": "run",
        }
        run = Run(resolve(load_recipe(recipe), plugin_manager))
        with run.only_preparing():
            pass
        return run

    return run_of


def write(path, lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return str(path)


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_row_ends_the_run_with_its_file_and_line(prepare, tmp_path, kind):
    line, reason = BAD_LINES[kind]
    name = write(tmp_path / "chats.jsonl", [GOOD, "", GOOD, line, GOOD])
    with pytest.raises(DataError, match=r"chats\.jsonl:4") as caught:
        prepare(name)
    assert reason in str(caught.value)
    assert caught.value.exit_code == 4
    assert caught.value.remedy


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_skipped_row_is_counted_and_listed_with_its_place(prepare, tmp_path, kind, place):
    line, reason = BAD_LINES[kind]
    lines = [line, *[GOOD] * 30] if place == "first" else [*[GOOD] * 30, line]
    run = prepare(write(tmp_path / "chats.jsonl", lines), on_bad_row="skip")
    facts = run.data_facts["train"]
    counts = facts["counts"]
    (refused,) = [name for name in counts if name.startswith("rows refused")]
    assert counts[refused] == 1
    assert (counts["rows read"], counts["rows kept"]) == (31, 30)
    (told,) = facts["refused"]
    assert told["where"].startswith(f"{tmp_path}/chats.jsonl:{1 if place == 'first' else 31}")
    assert reason in told["reason"]
    assert f"rows refused, {told['category']}" == refused


def test_more_bad_rows_than_the_recipe_allows_end_the_run_with_examples(prepare, tmp_path):
    name = write(tmp_path / "chats.jsonl", [*[GOOD] * 18, b"{", b"{"])
    with pytest.raises(DataError, match=r"2 of the first 20 rows cannot be used.*\(0\.05\) of 20") as caught:
        prepare(name, on_bad_row="skip")
    assert "chats.jsonl:19" in str(caught.value)
    run = prepare(name, on_bad_row="skip", max_bad_fraction=0.1)
    assert run.data_facts["train"]["counts"]["rows refused, malformed JSON"] == 2


def test_bad_rows_are_found_in_every_process_and_told_in_their_order(prepare, tmp_path):
    lines = [GOOD] * 2500
    for number in (7, 1300, 2400):
        lines[number] = "{"
    name = write(tmp_path / "chats.jsonl", lines)
    with pytest.raises(DataError, match=r"chats\.jsonl:8"):
        prepare(name, num_proc=2)
    run = prepare(name, num_proc=2, on_bad_row="skip")
    places = [refused["where"] for refused in run.data_facts["train"]["refused"]]
    assert [place.split(":")[1].split()[0] for place in places] == ["8", "1301", "2401"]


def test_a_csv_row_is_told_by_its_line(prepare, tmp_path):
    rows = ["question,answer", *['"What\nis it?",A thing.'] * 20, "only one field", "What?,That."]
    run = prepare(write(tmp_path / "chats.csv", rows), on_bad_row="skip")
    (refused,) = run.data_facts["train"]["refused"]
    assert refused["where"].startswith(f"{tmp_path}/chats.csv:42")
    assert run.data_facts["train"]["counts"]["rows kept"] == 21


# ---- nothing is lost without a count


def row_of(kind, number):
    said = {"short": "Yes.", "long": "Yes, and more. " * 12, "two turns": "Maybe."}
    if kind == "bad":
        return {"messages": [{"role": "user", "content": f"What is {number}?"}]}
    row = chat(f"What is {number}?", said[kind])
    if kind == "two turns":
        row["messages"] += chat("And then?", f"Then {number + 1}.")["messages"]
    return row


rows = st.lists(st.sampled_from(["short", "long", "two turns", "bad"]), min_size=1, max_size=25)
policies = st.fixed_dictionaries(
    {
        "over_long": st.sampled_from(["drop", "truncate_right", "truncate_left", "split"]),
        "train_turns": st.sampled_from([None, "last", "one_row_per_turn"]),
        "pack_samples": st.booleans(),
        "mask_inputs": st.just(True),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows, min_size=1, max_size=3), policies, st.data())
def test_the_counts_add_up_to_all_rows(tiny_model, sources, options, data):
    from transformers import AutoTokenizer

    from arctic_sft import SFTDataConfig, SFTDataFactory
    from arctic_training.data import SourceConfig
    from arctic_training.preparation import Preparation

    weighted = data.draw(st.booleans())
    passes = [data.draw(st.sampled_from([1.0, 0.5, 2.0])) for _ in sources]
    entries = [
        SourceConfig(weight=1.0 + number if weighted else None, passes=times) for number, times in enumerate(passes)
    ]
    config = SFTDataConfig(
        sources=entries, num_proc=1, max_length=80, on_bad_row="skip", max_bad_fraction=1.0, **options
    )
    run = SimpleNamespace(
        trainer=SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tiny_model)), model_max_length=None
    )
    factory = SFTDataFactory(config, run)
    factory.preparation = Preparation("train", entries, config)
    loaded = [[row_of(kind, number) for number, kind in enumerate(kinds)] for kinds in sources]
    try:
        prepared = factory.prepare(loaded, "train")
    except DataError as error:  # no row is left, of all sources or of one with a weight
        if "has a weight" in str(error):
            return
        prepared = []
    counts = factory.counts

    def total(beginning):
        return sum(number for name, number in counts.items() if name.startswith(beginning))

    used = sum(kind != "bad" for kinds in sources for kind in kinds)
    assert counts["rows read"] == sum(map(len, sources)) == total("rows refused") + used
    made = used + total("rows made") + total("rows repeated")
    assert made == counts.get("rows kept", 0) + total("rows dropped")
    if len(prepared):
        assert sum(len(prepared.packs.pieces(number)) for number in range(len(prepared))) == counts["rows kept"]
