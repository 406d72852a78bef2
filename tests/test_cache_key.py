"""The key of prepared rows: every input of it gives another key when it changes, and nothing else does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from arctic_causal.data import CausalDataFactory
from arctic_causal.source import HFCausalDataSource
from arctic_huggingface.source import HFDataSource, HFInstructDataSource
from arctic_huggingface.task_sources import HFLabelledDataSource, HFPreferenceDataSource
from arctic_sft.data import SFTDataFactory
from arctic_training.api import configure
from arctic_training.cache_key import differences, digest, key_parts
from arctic_training.config import keys_of
from arctic_training.run import Run

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
PACKS = {"pack_samples": True}
SKIPS = {"on_bad_row": "skip"}
WEIGHTS = {"sources": [{"name_or_path": "rows.jsonl", "weight": 1}, {"name_or_path": "more.jsonl", "weight": 2}]}


@attrs.frozen
class Case:
    """A changed value, whether it gives another key, and what else the recipe must say for that."""

    value: Any
    changes: bool = True
    beside: Mapping[str, Any] = attrs.field(factory=dict)


DATA_KEYS = {
    "type": Case("other_sft"),
    "sources": Case(["more.jsonl"]),
    "eval_sources": Case(["more.jsonl"], changes=False),
    "train_eval_split": Case([0.9, 0.1]),
    "max_length": Case(64),
    "num_proc": Case(3, changes=False),
    "dl_num_workers": Case(5, changes=False),
    "seed": Case(7, changes=False),
    "weight_by": Case("rows", beside=WEIGHTS),
    "on_bad_row": Case("skip"),
    "max_bad_fraction": Case(0.5, beside=SKIPS),
    "streaming": Case(True, changes=False),
    "stream_buffer": Case(99, changes=False, beside={"streaming": True}),
    "use_data_cache": Case(False, changes=False),
    "cache_processed_data": Case(False, changes=False),
    "cache_dir": Case("elsewhere", changes=False),
    "cache_fs_type": Case("shared", changes=False),
    "fail_on_missing_cache": Case(True, changes=False),
    "over_long": Case("truncate_left"),
    "filter_samples": Case(False),
    "pad_to": Case("max_length", changes=False),
    "div_length": Case(64, changes=False),
    "pack_samples": Case(True),
    "always_max_length": Case(True, beside=PACKS),
    "drop_last": Case(True, beside=PACKS),
    "fuse_positions_prob": Case(0.5, beside=PACKS),
    "repeat_to_pack_max_length": Case(True, beside=PACKS),
    "mask_inputs": Case(False),
    "ignore_empty_think": Case(True),
    "train_turns": Case("last"),
    "mask_reasoning": Case(True),
}
"""Keys of ``data``, of the factory ``sft`` and all that it inherits."""

SOURCE_KEYS = {
    "type": Case("other_source"),
    "name": Case("called otherwise", changes=False),
    "split": Case("train[:50%]"),
    "sample_ratio": Case(0.5),
    "sample_count": Case(2),
    "sample_seed": Case(7, beside={"sample_ratio": 0.5}),
    "process": Case(False),
    "weight": Case(2.0),
    "passes": Case(2.0),
    "max_trained_tokens": Case(10),
    "name_or_path": Case("same.jsonl", changes=False),
    "kwargs": Case({"field": "rows"}),
    "split_mapping": Case({"train": "train_sft"}),
    "content_key": Case("said"),
    "role_mapping": Case({"user": "question", "assistant": "answer"}),
    "format": Case("messages"),
    "column_mapping": Case({"chosen": "better"}),
    "label_column": Case("good"),
    "column": Case("body"),
}
"""Keys of sources: those that all have, and those of the sources of the huggingface plugin."""

SOURCES = (HFDataSource, HFInstructDataSource, HFPreferenceDataSource, HFLabelledDataSource, HFCausalDataSource)
SOURCE_CASES = [(source, info.name) for source in SOURCES for info in keys_of(source.config_class())]

OTHERS = """
from arctic_huggingface.source import HFDataSource
from arctic_sft.data import SFTDataFactory

class OtherData(SFTDataFactory):
    name = "other_sft"

class OtherSource(HFDataSource):
    name = "other_source"
"""

Parts = Callable[..., dict[str, Any]]


@pytest.fixture
def key(arctic_home: Path) -> Parts:
    """The parts of the key of a recipe's training data, as a run makes them; changes are sections of the recipe."""
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"{n}"}]} for n in "12"]
    for name, lines in (("rows.jsonl", rows), ("same.jsonl", rows), ("more.jsonl", rows[:1])):
        (arctic_home / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    recipe = arctic_home / "recipe.yaml"

    def parts(
        data: Mapping[str, Any] | None = None, *, split: str = "train", block: tuple[str, ...] = (), **sections: Any
    ) -> dict[str, Any]:
        merged = {
            "run_dir": "run",
            "model": {"name_or_path": str(QUICKSTART / "model"), "init": "random", "dtype": "fp32"},
            "engine": {"type": "torch"},
            "checkpoint": [],
            "eval_interval": 1 if {"eval_sources", "train_eval_split"} & set(data or {}) else 0,
            "train_iters": 1,
            "data": {"sources": ["rows.jsonl"], "max_length": 128, **(data or {})},
            **sections,
        }
        recipe.write_text(json.dumps(merged))  # JSON is YAML
        run = Run(configure(recipe, block=block))
        with run.only_preparing(rows=False):
            found = key_parts(run, split, run.config.data.sources_of(split))
        assert found is not None
        return json.loads(json.dumps(found))

    return parts


@pytest.fixture
def plain(key: Parts, plain_keys: dict[str, Any]) -> Parts:
    """The same, made once for each ``data`` section: where nothing else has changed."""

    def parts(data: Mapping[str, Any]) -> dict[str, Any]:
        name = json.dumps(data)
        if name not in plain_keys:
            plain_keys[name] = key(data)
        return plain_keys[name]

    return parts


@pytest.fixture(scope="module")
def plain_keys() -> dict[str, Any]:
    return {}


def source(cls: type, **keys: Any) -> dict[str, Any]:
    return {"sources": [{"type": cls.name, "name_or_path": "rows.jsonl", **keys}]}


def changed(one: Any, other: Any) -> list[str]:
    """The names of the parts that differ; none exactly where the keys are equal."""
    names = [name for name, _, _ in differences(one, other)]
    assert (digest(one) == digest(other)) == (not names)
    return names


def test_every_key_of_the_data_section_is_classified():
    assert set(DATA_KEYS) == {info.name for info in keys_of(SFTDataFactory.config_class())}


def test_every_key_of_documents_is_classified_and_those_with_other_defaults_matter(key):
    assert {info.name for info in keys_of(CausalDataFactory.config_class())} <= set(DATA_KEYS)
    before = key(type="causal")
    for name, value in (("pack_samples", False), ("filter_samples", True)):
        assert changed(before, key({name: value}, type="causal"))


def test_every_key_of_a_source_is_classified():
    assert set(SOURCE_KEYS) == {name for _, name in SOURCE_CASES}


@pytest.mark.parametrize("name", DATA_KEYS)
def test_a_key_of_the_data_section_gives_another_key_exactly_where_it_matters(key, plain, name, arctic_home):
    (arctic_home / "train.py").write_text(OTHERS)
    case = DATA_KEYS[name]
    assert bool(changed(plain(case.beside), key({**case.beside, name: case.value}))) == case.changes


@pytest.mark.parametrize(("cls", "name"), SOURCE_CASES, ids=[f"{cls.name}-{name}" for cls, name in SOURCE_CASES])
def test_a_key_of_a_source_gives_another_key_exactly_where_it_matters(key, plain, cls, name, arctic_home):
    (arctic_home / "train.py").write_text(OTHERS)
    case = SOURCE_KEYS[name]
    before = plain(source(cls, **case.beside))
    assert bool(changed(before, key(source(cls, **{**case.beside, name: case.value})))) == case.changes


def test_what_has_no_effect_with_the_others_as_they_are_does_not_matter(key):
    plain = key()
    for name in ("weight_by", "max_bad_fraction"):
        assert not changed(plain, key({name: DATA_KEYS[name].value}))
    assert not changed(plain, key(source(HFInstructDataSource, sample_seed=7)))


@pytest.mark.parametrize(
    "drawing",
    [PACKS | {"fuse_positions_prob": 0.5}, WEIGHTS, {"train_eval_split": [0.5, 0.5]}],
    ids=["fuse_positions_prob", "mixture", "train_eval_split"],
)
def test_the_seed_matters_where_something_is_drawn(key, drawing):
    assert changed(key(drawing), key({**drawing, "seed": 7})) == ["options.seed"]


def test_training_and_evaluation_rows_of_one_file_are_kept_apart(key):
    data = {"sources": ["rows.jsonl:train"], "eval_sources": ["rows.jsonl:train"]}
    assert "use" in changed(key(data), key(data, split="eval"))


def test_one_byte_of_a_source_is_seen_and_its_name_is_not(key, arctic_home):
    before = key()
    file = arctic_home / "rows.jsonl"
    (arctic_home / "moved").mkdir()
    moved = shutil.copy(file, arctic_home / "moved" / "renamed.jsonl")
    assert not changed(before, key({"sources": [str(moved)]}))
    file.write_bytes(file.read_bytes().replace(b"Hi", b"hi", 1))
    assert changed(before, key()) == ["sources.0.content"]


def test_the_order_and_the_number_of_sources_matter(key):
    both = key({"sources": ["rows.jsonl", "more.jsonl"]})
    assert changed(both, key({"sources": ["more.jsonl", "rows.jsonl"]})) == ["sources.0.content", "sources.1.content"]
    assert changed(both, key()) == ["sources.1"]


def test_a_token_opens_a_door_and_decides_nothing_behind_it(key):
    secret = key(source(HFInstructDataSource, kwargs={"token": "secret"}))
    assert not changed(key(), secret)
    assert "secret" not in json.dumps(secret)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the quickstart's model folder."""
    return Path(shutil.copytree(QUICKSTART / "model", tmp_path / "model"))


def with_model(folder: Path, **tokenizer: Any) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(folder), "init": "random", "dtype": "fp32"},
        "tokenizer": {"type": "huggingface", **tokenizer},
    }


def test_a_tokenizer_is_known_by_what_it_does_not_by_where_it_lies(key, model):
    assert not changed(key(), key(**with_model(model)))
    assert not changed(key(), key(**with_model(QUICKSTART / "model", name_or_path=str(model))))


def test_a_changed_chat_template_is_named(key, model):
    before = key()
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert changed(before, key(**with_model(model))) == ["tokenizer.chat_template"]
    given = key(**with_model(QUICKSTART / "model", chat_template=template.read_text()))
    assert changed(before, given) == ["tokenizer.chat_template"]


def test_a_changed_merge_is_named(key, model):
    before = key()
    file = model / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"].pop()
    file.write_text(json.dumps(content))
    assert changed(before, key(**with_model(model))) == ["tokenizer.vocabulary"]


def test_changed_special_tokens_are_named(key, model):
    before = key()
    file = model / "tokenizer_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"unk_token": content["eos_token"]}))
    assert changed(before, key(**with_model(model))) == ["tokenizer.special_tokens"]
    arguments = key(**with_model(QUICKSTART / "model", tokenize_kwargs={"split_special_tokens": True}))
    assert changed(before, arguments) == ["tokenizer.arguments"]


@pytest.mark.parametrize("library", ["transformers", "tokenizers", "jinja2"])
def test_another_version_of_what_writes_ids_is_named(key, library, monkeypatch):
    from importlib import metadata

    before, version = key(), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == library else version(name))
    assert changed(before, key()) == [f"tokenizer.{library}"]


def test_another_version_of_a_plugin_is_named(key, monkeypatch):
    from arctic_training.registry import Registry

    before, provider = key(), Registry.provider

    def newer(self: Registry, kind: str, name: str) -> Any:
        found = provider(self, kind, name)
        return attrs.evolve(found, version="99.0") if found.name == "sft" else found

    monkeypatch.setattr(Registry, "provider", newer)
    assert changed(before, key()) == ["factory.plugin"]


def test_the_code_of_a_factory_beside_the_recipe_and_what_it_imports_matter(key, arctic_home, monkeypatch):
    import sys

    monkeypatch.syspath_prepend(arctic_home)
    code = arctic_home / "train.py"
    code.write_text("import row_helper\n" + OTHERS)
    (arctic_home / "row_helper.py").write_text("limit = 1\n")
    before = key({"type": "other_sft"})
    (arctic_home / "row_helper.py").write_text("limit = 2\n")
    sys.modules.pop("row_helper", None)
    assert changed(before, key({"type": "other_sft"})) == ["factory.code"]
    (arctic_home / "row_helper.py").write_text("limit = 1\n")
    code.write_text(code.read_text() + "\nanother_line = 1\n")
    sys.modules.pop("row_helper", None)
    assert changed(before, key({"type": "other_sft"})) == ["factory.code"]
    sys.modules.pop("row_helper", None)


OWN_FINGERPRINTS = """
from arctic_huggingface.source import HFInstructDataSource
from arctic_huggingface.tokenizer import HFTokenizerFactory

class OwnSource(HFInstructDataSource):
    name = "own"
    def fingerprint(self):
        return open("version").read()

class OwnTokenizer(HFTokenizerFactory):
    name = "own"
    def fingerprint(self, tokenizer):
        return open("version").read()
"""


def test_a_fingerprint_of_ones_own_is_asked_for_instead_of_the_parts_of_its_base(key, arctic_home):
    (arctic_home / "train.py").write_text(OWN_FINGERPRINTS)
    own = {"sources": [{"type": "own", "name_or_path": "rows.jsonl"}]}
    (arctic_home / "version").write_text("1")
    before = key(own, tokenizer={"type": "own"})
    (arctic_home / "version").write_text("2")
    after = key(own, tokenizer={"type": "own"})
    assert changed(before, after) == ["sources.0.content", "tokenizer.fingerprint"]


WRAPPER = """
from arctic_training import hookimpl

@hookimpl(wrapper=True)
def arctic_{hook}():
    rows = yield
    return rows[:{limit}]
"""


@pytest.mark.parametrize("hook", ["load_data", "prepare_data"])
def test_a_hook_that_rows_go_through_matters_and_so_does_its_code(key, arctic_home, hook):
    before = key()
    (arctic_home / "train.py").write_text(WRAPPER.format(hook=hook, limit=8))
    with_wrapper = key()
    assert all(name.startswith(f"hooks.arctic_{hook}") for name in changed(before, with_wrapper))
    (arctic_home / "train.py").write_text(WRAPPER.format(hook=hook, limit=4))
    assert changed(with_wrapper, key()) == [f"hooks.arctic_{hook}.code.train.py"]


OBSERVER = """
from arctic_training import hookimpl

@hookimpl
def arctic_step_end(metrics):
    metrics["seen"] = 1
"""


@pytest.mark.parametrize(
    "sections",
    [
        {"run_dir": "another"},
        {"optimizer": {"type": "adamw", "learning_rate": 0.5}},
        {"model": {"name_or_path": str(QUICKSTART / "model"), "init": "random", "dtype": "bf16"}},
        {"epochs": 7},
        {"seed": 7},
        {"micro_batch_size": 7},
        {"block": ("deepspeed",)},
    ],
    ids=lambda sections: next(iter(sections)),
)
def test_what_rows_do_not_depend_on_does_not_matter(key, sections):
    assert not changed(key(), key(**sections))


def test_a_callback_does_not_matter(key, arctic_home):
    before = key()
    (arctic_home / "train.py").write_text(OBSERVER)
    assert not changed(before, key())
