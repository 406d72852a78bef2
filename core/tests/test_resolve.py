"""Resolution: which class each section of a recipe is structured into, and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from arctic_training import hookimpl
from arctic_training.config import Config, FreeConfig, KeyProblem, key
from arctic_training.data import DataConfig, DataFactory, DataSource, SourceConfig
from arctic_training.dump import dump, plain
from arctic_training.errors import PluginError, RecipeError
from arctic_training.model import ModelConfig, ModelFactory
from arctic_training.optimizer import AdamWFactory, OptimizerConfig
from arctic_training.plugins import PluginManager, create_plugin_manager
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve
from arctic_training.tokenizer import TokenizerFactory
from arctic_training.trainer import Trainer
from arctic_training.trainer_config import TrainerConfig


class PlainModelConfig(ModelConfig):
    depth: int = key(2, ge=1)


class PlainModelFactory(ModelFactory):
    name = "plain"
    config: PlainModelConfig

    def create_config(self) -> Any:
        return None

    def create_model(self, config: Any) -> Any:
        return None


class OtherModelFactory(PlainModelFactory):
    name = "other"


class StrangeModelFactory(ModelFactory):
    name = "strange"

    def create_config(self) -> Any:
        return None

    def create_model(self, config: Any) -> Any:
        return None


class NamelessModelFactory(PlainModelFactory):
    """Inherits its ``name``, which stays the name of its base."""


class WordsTokenizerFactory(TokenizerFactory):
    name = "words"

    def create_tokenizer(self) -> Any:
        return None


class FileConfig(SourceConfig):
    name_or_path: str


class FileSource(DataSource):
    name = "file"
    config: FileConfig

    def load(self, config: SourceConfig, split: str) -> Any:
        return []


class SilenceSource(DataSource):
    name = "silence"

    def load(self, config: SourceConfig, split: str) -> Any:
        return []


class RowsConfig(DataConfig):
    wide: bool = False


class RowsFactory(DataFactory):
    name = "rows"
    config: RowsConfig
    default_source: ClassVar[str] = "file"

    def process(self, dataset: Any) -> Any:
        return dataset

    def collate(self, rows: list[Any]) -> Any:
        return {}


class PlainTrainer(Trainer):
    name = "plain_trainer"
    model_factory: PlainModelFactory | OtherModelFactory
    data_factory: RowsFactory
    tokenizer_factory: WordsTokenizerFactory


class AnyModelTrainer(PlainTrainer):
    name = "any_model"
    model_factory: ModelFactory


class NamelessModelTrainer(PlainTrainer):
    name = "nameless_model"
    model_factory: NamelessModelFactory


class FocalConfig(Config):
    gamma: float = key(2.0, ge=0)


class StrictConfig(FreeConfig):
    @classmethod
    def structure_free(cls, mapping: Mapping[str, Any]) -> tuple[Any, list[KeyProblem]]:
        wrong = [name for name in mapping if name != "bucket"]
        return dict(mapping), [KeyProblem((name,), "unknown key", of="key", remedy="only 'bucket'") for name in wrong]


class SmallPlugin:
    """Offers one component of each kind that core leaves to plugins."""

    @hookimpl
    def arctic_register_components(self, components: Any) -> None:
        for trainer in (PlainTrainer, AnyModelTrainer, NamelessModelTrainer):
            components.trainer(trainer.name, trainer)
        for model in (PlainModelFactory, OtherModelFactory, StrangeModelFactory):
            components.model(model.name, model)
        components.data("rows", RowsFactory)
        components.tokenizer("words", WordsTokenizerFactory)
        components.data_source("file", FileSource)
        components.data_source("silence", SilenceSource)


class SectionsPlugin:
    def __init__(self, **sections: type) -> None:
        self.sections = sections

    @hookimpl
    def arctic_register_config_sections(self) -> dict[str, type]:
        return self.sections


@pytest.fixture
def plugins() -> PluginManager:
    manager = create_plugin_manager(autoload=False, environment={})
    manager.register(SmallPlugin(), "small")
    return manager


RECIPE = {"type": "plain_trainer", "model": {"name_or_path": "m"}, "data": {"sources": ["somewhere"]}}


def config_of(
    plugins: PluginManager, *overrides: str, recipe: Mapping[str, Any] = RECIPE, **more: Any
) -> TrainerConfig:
    return resolve(load_recipe({**recipe, **more}, overrides), plugins)


def problems(plugins: PluginManager, *overrides: str, recipe: Mapping[str, Any] = RECIPE, **more: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        config_of(plugins, *overrides, recipe=recipe, **more)
    return [str(problem) for problem in caught.value.problems]


def test_an_omitted_type_is_the_first_class_that_the_trainer_annotates(plugins):
    config = config_of(plugins)
    assert (config.trainer_class, config.type) == (PlainTrainer, "plain_trainer")
    assert (config.model.component, config.model.type) == (PlainModelFactory, "plain")
    assert isinstance(config.model, PlainModelConfig)
    assert config.data.component is RowsFactory
    assert config.tokenizer.component is WordsTokenizerFactory
    assert "type" not in config.model.given


def test_what_the_trainer_leaves_open_is_the_first_default_that_is_registered(plugins):
    config = config_of(plugins)
    assert (config.optimizer.component, config.optimizer.type) == (AdamWFactory, "adamw")
    assert isinstance(config.optimizer, OptimizerConfig)
    assert config.scheduler.type == "constant"
    assert config.loss.type == "cross_entropy"


def test_engine_and_checkpoint_are_left_to_the_run(plugins):
    config = config_of(plugins, checkpoint={"output_dir": "out"})
    assert (config.engine.type, config.engine.component) == ("auto", None)
    assert [(entry.type, entry.component, entry.output_dir) for entry in config.checkpoint] == [("auto", None, "out")]
    listed = config_of(plugins, checkpoint=[{"output_dir": "a"}, {"type": "torch", "output_dir": "b"}])
    assert [entry.type for entry in listed.checkpoint] == ["auto", "torch"]
    assert config_of(plugins).checkpoint == []


def test_a_type_names_another_class_of_the_annotation(plugins):
    config = config_of(plugins, "model.type=other", "model.depth=3")
    assert (config.model.component, config.model.depth) == (OtherModelFactory, 3)


def test_a_class_without_a_name_of_its_own_is_not_taken_for_its_base(plugins):
    config = config_of(plugins, type="nameless_model")
    assert (config.model.component, config.model.type) == (NamelessModelFactory, "NamelessModelFactory")
    (problem,) = problems(plugins, "model.type=plain", type="nameless_model")
    assert "works with NamelessModelFactory" in problem


def test_a_component_that_the_trainer_does_not_declare_needs_skip_validation(plugins):
    (problem,) = problems(plugins, model={"name_or_path": "m", "type": "strange"})
    assert problem == (
        "model.type: the trainer 'plain_trainer' works with PlainModelFactory or OtherModelFactory, and 'strange' is "
        "none; 'skip_validation: true' lets it through"
    )
    config = config_of(plugins, skip_validation=True, model={"name_or_path": "m", "type": "strange"})
    assert config.model.component is StrangeModelFactory


def test_an_abstract_annotation_takes_any_registered_class(plugins):
    assert config_of(plugins, "model.type=strange", type="any_model").model.component is StrangeModelFactory
    (problem,) = problems(plugins, type="any_model")
    assert problem.startswith(
        "model.type: there is no model 'huggingface' here: it comes with arctic-plugin-huggingface"
    )


def test_a_source_may_be_written_in_short(plugins):
    sources = [
        "a/b",
        "a/b:test[:10%]",
        "silence",
        "silence:x",
        {"name_or_path": "p"},
        "hf://d/e:train",
        "x:a[1:]+b[:5%]",
    ]
    config = config_of(plugins, data={"sources": sources, "eval_sources": ["a", {"type": "silence"}]}, eval_interval=1)
    found = [(s.type, getattr(s, "name_or_path", None), s.split) for s in config.data.sources]
    assert found == [
        ("file", "a/b", "train"),
        ("file", "a/b", "test[:10%]"),
        ("silence", None, "train"),
        ("silence", None, "x"),
        ("file", "p", "train"),
        ("file", "hf://d/e", "train"),
        ("file", "x", "a[1:]+b[:5%]"),
    ]
    assert [source.split for source in config.data.eval_sources] == ["eval", "eval"]
    assert config_of(plugins, "data.sources.0.split=train[:1%]").data.sources[0].split == "train[:1%]"


@pytest.mark.parametrize("source", ["", ":train", "a:", "a:train[", "a:train[x]", "a:b:c", 5, ["a"], None])
def test_a_source_that_is_no_shorthand_is_refused(plugins, source):
    (problem,) = problems(plugins, data={"sources": [source]})
    assert problem.startswith("data.sources.0")


def test_a_trainer_that_is_not_there_is_named_with_what_brings_it(plugins):
    assert problems(plugins, type="plain_trainr") == [
        "type: there is no trainer 'plain_trainr'; did you mean 'plain_trainer'?"
    ]
    assert config_of(plugins, type="small:plain_trainer").trainer_class is PlainTrainer
    (problem,) = problems(plugins, type="large:plain_trainer")
    assert problem.startswith("type: there is no trainer 'large:plain_trainer'; 'plain_trainer' is offered by")
    (problem,) = problems(plugins, type="dpo")
    assert "it comes with arctic-plugin-dpo" in problem
    (problem,) = problems(plugins, recipe={"model": {"name_or_path": "m"}})
    assert problem.startswith("type: there is no trainer 'sft' here: it comes with arctic-plugin-sft")


def test_keys_of_trainers_yet_to_come_say_who_brings_them(plugins):
    found = problems(plugins, beta=0.1, ref_model={}, data={"sources": ["a"], "max_prompt_length": 5})
    assert len(found) == 3
    assert all("arctic-plugin-dpo" in problem for problem in found)


def test_problems_of_all_sections_are_told_at_once(plugins):
    found = problems(
        plugins,
        epoch=1,
        model={"name_or_path": 5, "detph": 1},
        optimizer={"type": "adamx", "lr": 1},
        data={"sources": [{"type": "file"}, {"type": "fiel"}], "widee": True},
        checkpoint=[{"output_dirr": 1}],
    )
    assert [problem.split(";")[0] for problem in found] == [
        "epoch: unknown key",
        "model.detph: unknown key",
        "model.name_or_path: expected text, found the number 5",
        "data.widee: unknown key",
        "data.sources.0.name_or_path: the key 'name_or_path' is required (text)",
        "data.sources.1.type: there is no data source 'fiel'",
        "optimizer.type: there is no optimizer 'adamx'",
        "checkpoint.0.output_dirr: unknown key",
        "checkpoint.0.output_dir: the key 'output_dir' is required (text)",
    ]


def test_null_is_an_empty_list_and_an_empty_mapping(plugins):
    config = config_of(plugins, "data.eval_sources=null", "deepspeed=null", "checkpoint=null")
    assert (config.data.eval_sources, config.deepspeed, config.checkpoint) == ([], {}, [])


def test_a_loss_is_refused_where_the_trainer_has_its_own(plugins, tmp_path):
    class OwnLossTrainer(PlainTrainer):
        name = "own_loss"
        has_own_loss = True

    class OwnLossPlugin:
        @hookimpl
        def arctic_register_components(self, components: Any) -> None:
            components.trainer("own_loss", OwnLossTrainer)

    plugins.register(OwnLossPlugin(), "own_loss")
    (problem,) = problems(plugins, type="own_loss", loss={"type": "cross_entropy"})
    assert problem == "loss: has no effect on the trainer 'own_loss', whose loss is its own: leave it out"
    (tmp_path / "dumped.yaml").write_text(dump(config_of(plugins, "type=own_loss")))
    resolve(load_recipe(tmp_path / "dumped.yaml"), plugins)


def test_a_section_of_a_plugin_is_held_to_the_same_standard(plugins):
    plugins.register(SectionsPlugin(focal=FocalConfig), "focal")
    assert config_of(plugins).sections == {"focal": FocalConfig()}
    assert config_of(plugins, "focal.gamma=1.5").sections["focal"].gamma == 1.5
    assert problems(plugins, focal={"gama": 1}) == ["focal.gama: unknown key; did you mean 'gamma'?"]
    assert problems(plugins, focl={"gamma": 1})[0].startswith("focl: unknown key; did you mean 'focal'?")


def test_a_section_cannot_take_the_name_of_a_key_or_of_another_section(plugins):
    plugins.register(SectionsPlugin(model=FocalConfig), "grabber")
    with pytest.raises(PluginError, match=r"grabber.*'model' is a key of TrainerConfig already"):
        config_of(plugins)


def test_two_plugins_cannot_bring_one_section(plugins):
    plugins.register(SectionsPlugin(focal=FocalConfig), "one")
    plugins.register(SectionsPlugin(focal=FocalConfig), "two")
    with pytest.raises(PluginError, match=r"'focal' is also brought by"):
        config_of(plugins)


def test_a_free_section_is_checked_by_the_plugin_that_knows_its_keys(plugins):
    (problem,) = problems(plugins, deepspeed={"bucket": "5e8"})
    assert problem == (
        "deepspeed: the section needs arctic-plugin-deepspeed, which is not installed; "
        "pip install arctic-plugin-deepspeed"
    )
    assert config_of(plugins, deepspeed={}).deepspeed == {}
    plugins.register(SectionsPlugin(deepspeed=StrictConfig), "strict")
    config = config_of(plugins, deepspeed={"bucket": "32Ki"})
    assert config.deepspeed == {"bucket": 32768}
    assert "deepspeed" in config.given
    assert config.sections == {}
    assert problems(plugins, deepspeed={"buckt": 1}) == ["deepspeed.buckt: unknown key; only 'bucket'"]
    assert problems(plugins, deepspeed=[1]) == ["deepspeed: expected a mapping, found a list"]


@pytest.mark.parametrize("section", ["wandb", "logger"])
def test_a_key_that_looks_like_what_overrides_leave_behind_is_an_unknown_key(plugins, section):
    (problem,) = problems(plugins, **{section: {"=": None}})
    assert problem.startswith(f"{section}.=: unknown key")


def test_epochs_beside_train_iters_are_a_warning_since_the_steps_win(plugins):
    (warning,) = config_of(plugins, train_iters=5, epochs=3).warnings
    assert warning == "epochs: is 3 and has no effect, since train_iters says how many steps to train"
    assert config_of(plugins, train_iters=5).warnings == []
    assert config_of(plugins, epochs=3).warnings == []


def test_evaluation_is_asked_for_exactly_when_there_is_data_for_it(plugins):
    assert problems(plugins, eval_interval=5)[0].startswith("eval_interval: ")
    data = {"sources": ["a"], "eval_sources": ["b"]}
    assert problems(plugins, data=data) == [
        "eval_interval: is not given, and there is evaluation data: give a number of steps"
    ]
    assert problems(plugins, data=data, eval_interval=0) == [
        "eval_interval: is 0, and there is evaluation data: give a number of steps"
    ]


def test_a_recipe_with_a_misspelt_key_is_known_not_to_be_checked_to_the_end(plugins):
    with pytest.raises(RecipeError) as caught:
        config_of(plugins, sede=1)
    assert not caught.value.is_complete


def test_code_beside_a_recipe_brings_classes(plugins, tmp_path):
    (tmp_path / "train.py").write_text(
        "from arctic_training.optimizer import AdamWFactory\nclass Mine(AdamWFactory):\n    name = 'mine'\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "type: plain_trainer\nmodel: {name_or_path: m}\ndata: {sources: [a]}\noptimizer: {type: mine, lr: 1e-3}\n"
    )
    config = resolve(load_recipe(recipe), plugins)
    assert (config.optimizer.component.__name__, config.optimizer.learning_rate) == ("Mine", 1e-3)
    assert f"code: {tmp_path / 'train.py'}" in dump(config).replace('"', "")
    fresh = create_plugin_manager(autoload=False, environment={})
    fresh.register(SmallPlugin(), "small")
    with pytest.raises(RecipeError, match="there is no optimizer 'mine'"):
        resolve(load_recipe(recipe), fresh, code=False)


def test_a_dumped_recipe_says_where_each_value_comes_from_and_reads_back_the_same(plugins, tmp_path):
    plugins.register(SectionsPlugin(focal=FocalConfig, deepspeed=StrictConfig), "focal")
    (tmp_path / "base.yaml").write_text("optimizer:\n  lr: 3e-4\nseed: 7\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "extends: base.yaml\ntype: plain_trainer\nmodel:\n  name_or_path: 'on'\n  save_name: \"a: \\u0001 é 😀 \\n\"\n"
        "data:\n  sources:\n    - some/where:train[:1%]\n    - type: silence\n"
        "checkpoint: {output_dir: out}\ndeepspeed: {bucket: 1e-7}\nfocal: {gamma: .inf}\n"
    )
    config = resolve(load_recipe(recipe, ["epochs=3"]), plugins)
    text = dump(config)
    for line in (
        "type: plain_trainer  # recipe.yaml:2",
        "epochs: 3  # override",
        "seed: 7  # base.yaml:3",
        "  learning_rate: 0.0003  # base.yaml:2",
        "  betas: [0.9, 0.999]  # default",
        '  name_or_path: "on"  # recipe.yaml:4',
        "      name_or_path: some/where  # recipe.yaml:8",
        "    - type: silence  # recipe.yaml:9",
        "  - type: auto  # default",
        "    output_dir: out  # recipe.yaml:10",
        "  gamma: .inf  # recipe.yaml:12",
    ):
        assert line in text.splitlines()
    (tmp_path / "again.yaml").write_text(text)
    again = resolve(load_recipe(tmp_path / "again.yaml"), plugins)
    assert plain(again) == plain(config)
    assert again == config
    assert again.sections == config.sections
    assert again.warnings == []
    assert plain(resolve(load_recipe(plain(config)), plugins)) == plain(config)


def test_resolving_imports_no_training_library():
    heavy = "torch", "transformers", "datasets", "deepspeed", "numpy"
    code = (
        f"import sys, arctic_training.resolve, arctic_training.dump; sys.exit(any(m in sys.modules for m in {heavy}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unmet_requirement_explains_a_trainer_that_nobody_offers():
    from arctic_training.api import configure
    from arctic_training.errors import PluginError

    with pytest.raises(PluginError, match="absent-plugin") as caught:
        configure({"type": "absent", "plugins": {"require": ["absent-plugin>=2"]}, "model": {}, "data": {}})
    assert caught.value.exit_code == 3
