"""Prepared rows: what is written is what is read, and the cache never gives other rows than asked for."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training.errors import DataError
from arctic_training.prepared import PreparedRows, write_rows

numbers = st.lists(st.integers(-(2**40), 2**40), max_size=12)


@given(st.lists(st.fixed_dictionaries({"ids": numbers, "score": st.floats(-1e6, 1e6), "n": st.integers(0, 99)})))
@settings(max_examples=40, deadline=None)
def test_rows_come_back_as_they_were_written(tmp_path_factory, rows):
    stored = write_rows(rows, tmp_path_factory.mktemp("rows"), {"dropped": 3})
    assert len(stored) == len(rows)
    assert stored.facts == {"dropped": 3}
    for row, original in zip(stored, rows, strict=True):
        assert row["ids"].tolist() == original["ids"]
        assert (float(row["score"]), int(row["n"])) == (original["score"], original["n"])


def test_small_numbers_take_four_bytes_and_lengths_cost_no_reading(tmp_path):
    stored = write_rows([{"input_ids": [1, 2, 3]}, {"input_ids": []}, {"input_ids": [70000]}], tmp_path)
    assert stored[0]["input_ids"].dtype == np.int32
    assert stored.lengths().tolist() == [3, 0, 1]


def test_a_row_with_other_columns_is_refused_by_number(tmp_path):
    with pytest.raises(ValueError, match=r"row 1 has the columns \['b'\]"):
        write_rows([{"a": [1]}, {"b": [1]}], tmp_path)


def test_workers_map_the_files_instead_of_copying_them(tmp_path):
    stored = write_rows([{"input_ids": list(range(1000))} for _ in range(100)], tmp_path)
    pickled = pickle.dumps(stored)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[99]["input_ids"][-1] == 999
    assert isinstance(pickle.loads(pickled), PreparedRows)


def loads(recorder):
    return len(recorder.of("arctic_load_data"))


def test_prepared_rows_are_used_again(run_recipe, tiny_recipe, hook_recorder):
    run_recipe(tiny_recipe | {"train_iters": 1})
    run_recipe(tiny_recipe | {"train_iters": 1, "seed": 1})
    assert loads(hook_recorder) == 1


@pytest.mark.parametrize(
    "change",
    [{"max_length": 9}, {"seed": 7}, {"sources": [{"type": "tiny", "texts": ["one", "two"]}]}],
    ids=["max_length", "seed", "source"],
)
def test_what_changes_the_rows_changes_the_cache(run_recipe, tiny_recipe, hook_recorder, change):
    run_recipe(tiny_recipe | {"train_iters": 1})
    tiny_recipe["data"] = tiny_recipe["data"] | change
    run_recipe(tiny_recipe | {"train_iters": 1})
    assert loads(hook_recorder) == 2


def test_a_missing_cache_is_an_error_when_the_recipe_says_so(run_recipe, tiny_recipe):
    tiny_recipe["data"]["fail_on_missing_cache"] = True
    with pytest.raises(DataError, match="not cached"):
        run_recipe(tiny_recipe)
    tiny_recipe["data"]["fail_on_missing_cache"] = False
    run_recipe(tiny_recipe)
    tiny_recipe["data"]["fail_on_missing_cache"] = True
    run_recipe(tiny_recipe)


def test_samples_are_drawn_without_replacement_and_the_same_each_time(run_recipe, tiny_recipe):
    def texts(**sampling):
        tiny_recipe["data"]["sources"] = [{"type": "tiny", "texts": [f"text {n:02}" for n in range(40)], **sampling}]
        run = run_recipe(tiny_recipe | {"train_iters": 1})
        return [bytes(row["input_ids"].tolist()).decode() for row in run.rows["train"]]

    tenth = texts(sample_ratio=0.1)
    assert len(tenth) == len(set(tenth)) == 4
    assert texts(sample_count=4) == tenth == texts(sample_ratio=0.1)
    assert texts(sample_ratio=0.1, sample_seed=1) != tenth


def test_training_and_evaluation_rows_are_apart_and_complete(run_recipe, tiny_recipe):
    tiny_recipe["data"]["sources"] = [{"type": "tiny", "texts": [f"text {n:02}" for n in range(40)]}]
    tiny_recipe["data"]["train_eval_split"] = [0.75, 0.25]
    run = run_recipe(tiny_recipe | {"train_iters": 1, "eval_interval": 1})
    parts = [{bytes(row["input_ids"].tolist()) for row in run.rows[split]} for split in ("train", "eval")]
    assert [len(part) for part in parts] == [30, 10]
    assert not parts[0] & parts[1]


def test_a_changed_line_beside_the_factory_prepares_the_data_anew(tmp_path, monkeypatch):
    import importlib
    import sys

    from arctic_training.cache_key import source_hash

    package = tmp_path / "beside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "factory.py").write_text("class Factory: pass\n")
    (package / "helper.py").write_text("limit = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        factory = importlib.import_module("beside.factory").Factory
        before = source_hash(factory)
        assert source_hash(factory) == before
        (package / "helper.py").write_text("limit = 2\n")
        assert source_hash(factory) != before
    finally:
        sys.modules.pop("beside", None)
        sys.modules.pop("beside.factory", None)


def test_rows_of_a_source_that_cannot_tell_what_it_loads_do_not_outlive_the_run(
    run_recipe, tiny_recipe, plugin_manager
):
    from arctic_training.testing.tiny import TinySource

    class Silent(TinySource):
        name = "silent"

        def fingerprint(self):
            return None

    plugin_manager.register_classes([Silent], "test")
    for texts in (["one", "two"], ["three", "four", "five"]):
        tiny_recipe["data"]["sources"] = [{"type": "silent", "texts": texts}]
        run = run_recipe(tiny_recipe | {"train_iters": 1, "run_dir": "same"})
        assert len(run.rows["train"]) == len(texts)
        assert len(list((run.run_dir / "data").iterdir())) == 1


def test_the_record_of_a_run_tells_its_data_and_tokenizer(run_recipe, tiny_recipe):
    import json

    run = run_recipe(tiny_recipe | {"train_iters": 1})
    record = json.loads((run.run_dir / "run.json").read_text())
    assert record["data"]["train"]["rows"] == 64
    assert len(record["data"]["train"]["cache"]) == 32
    assert len(record["tokenizer"]) == 64


def test_factories_of_one_file_do_not_share_rows(run_recipe, tiny_recipe, plugin_manager):
    from arctic_training.testing.tiny import TinyDataFactory, TinyTrainer

    class Whole(TinyDataFactory):
        name = "whole"

    class Ten(TinyDataFactory):
        name = "ten"

        def process(self, dataset):
            return super().process(dataset)[:10]

    class Choosing(TinyTrainer):
        name = "choosing"
        data_factory: Whole | Ten

    plugin_manager.register_classes([Whole, Ten, Choosing], "test")
    counts = []
    for name in ("whole", "ten"):
        tiny_recipe["data"]["type"] = name
        counts.append(len(run_recipe(tiny_recipe | {"type": "choosing", "train_iters": 1}).rows["train"]))
    assert counts == [64, 10]


def test_code_that_stands_in_no_file_is_never_trusted_to_be_the_same(monkeypatch):
    import sys
    from types import ModuleType

    from arctic_training.cache_key import source_hash
    from arctic_training.testing.tiny import TinyDataFactory

    monkeypatch.setitem(sys.modules, "a_notebook", ModuleType("a_notebook"))
    assert source_hash(type("Typed", (TinyDataFactory,), {"__module__": "a_notebook"})) is None


def test_a_changed_hook_of_a_file_prepares_the_data_anew(run_recipe, tiny_recipe, plugin_manager, arctic_home):
    import importlib.util

    def run_with(code):
        path = arctic_home / "shortening.py"
        path.write_text(code)
        spec = importlib.util.spec_from_file_location("shortening", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        plugin_manager.register(module, "shortening")
        try:
            return len(run_recipe(tiny_recipe | {"train_iters": 1}).rows["train"])
        finally:
            plugin_manager.unregister(module)

    code = (
        "from arctic_training import hookimpl\n"
        "@hookimpl(wrapper=True)\n"
        "def arctic_prepare_data():\n"
        "    rows = yield\n"
        "    return rows[:{number}]\n"
    )
    assert [run_with(code.format(number=number)) for number in (8, 4)] == [8, 4]


@pytest.mark.parametrize("error", [FileNotFoundError("no such rows"), ValueError("not a number")])
def test_what_a_source_raises_is_not_blamed_on_the_cache(run_recipe, tiny_recipe, plugin_manager, error):
    from arctic_training.testing.tiny import TinySource

    class Failing(TinySource):
        name = "failing"

        def load(self, config, split):
            raise error

    plugin_manager.register_classes([Failing], "test")
    tiny_recipe["data"]["sources"] = [{"type": "failing"}]
    with pytest.raises(type(error), match=str(error)):
        run_recipe(tiny_recipe)


def test_rows_that_go_through_a_hook_without_a_file_are_never_kept(run_recipe, tiny_recipe, plugin_manager):
    from types import SimpleNamespace

    from arctic_training import hookimpl

    namespace = {"hookimpl": hookimpl}
    exec("@hookimpl(wrapper=True)\ndef arctic_prepare_data():\n    return (yield)[:5]\n", namespace)
    plugin_manager.register(SimpleNamespace(arctic_prepare_data=namespace["arctic_prepare_data"]), "typed")
    run = run_recipe(tiny_recipe | {"train_iters": 1})
    assert len(run.rows["train"]) == 5
    assert run.data_facts["train"]["cache"] is None
