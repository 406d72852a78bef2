"""What a script writes: register, get_config, a trainer made by hand; and the recipe's own Python file."""

import subprocess
import sys

import pytest

import arctic_training
from arctic_training import Trainer, get_config, hookimpl, register
from arctic_training.api import configure
from arctic_training.errors import PluginError, RecipeError, UsageError
from arctic_training.testing.tiny import (
    TinyDataFactory,
    TinyModelFactory,
    TinySource,
    TinyTokenizerFactory,
    TinyTrainer,
)

pytestmark = pytest.mark.usefixtures("arctic_home")

TINY = [TinyTrainer, TinyModelFactory, TinyDataFactory, TinySource, TinyTokenizerFactory]


@register
class MarkedTrainer(TinyTrainer):
    name = "marked"


class UnmarkedTrainer(TinyTrainer):
    name = "unmarked"


@pytest.mark.parametrize("name", ["marked", "unmarked"])
def test_a_class_of_the_calling_script_counts_as_registered(tiny_recipe, name):
    register(TinySource)
    config = get_config(tiny_recipe | {"type": name})
    assert config.trainer_class.name == name


def test_a_class_of_the_calling_function_counts_too(tiny_recipe):
    register(TinySource)

    class Local(TinyTrainer):
        name = "local"

    assert get_config(tiny_recipe | {"type": "local"}).trainer_class is Local


def test_a_trainer_made_by_hand_trains(tiny_recipe):
    register(TinySource)
    losses = []

    class Local(TinyTrainer):
        name = "local"

        def loss(self, batch):
            loss = super().loss(batch)
            losses.append(loss.sum.item())
            return loss

    trainer = Local(get_config(tiny_recipe | {"type": "local", "epochs": 2}))
    trainer.train()
    assert trainer.global_step == trainer.training_horizon == 32
    assert losses[-1] < losses[0]


def test_registering_anything_but_a_component_is_an_error():
    with pytest.raises(TypeError, match="marks component classes"):
        register(dict)


class OwnModelFactory(TinyModelFactory):
    name = "own_model"


def test_an_annotation_as_text_names_classes_of_the_same_module(tiny_recipe):
    class Local(TinyTrainer):
        name = "local"
        model_factory: "OwnModelFactory | TinyModelFactory"

    assert Local.declared("model_factory") == (OwnModelFactory, TinyModelFactory)
    config = configure(tiny_recipe | {"type": "local"}, classes=[*TINY, Local])
    assert config.model.component is OwnModelFactory


def test_a_plugin_that_is_not_installed_is_named_by_its_exports(monkeypatch):
    from arctic_training import _exports

    monkeypatch.setitem(_exports.EXPORTS["arctic_training"], "SFTTrainer", "arctic_sft_absent:SFTTrainer")
    monkeypatch.setitem(_exports.DISTRIBUTIONS, "arctic_sft_absent", "arctic-plugin-sft")
    monkeypatch.delitem(vars(arctic_training), "SFTTrainer", raising=False)
    with pytest.raises(ImportError, match="pip install arctic-plugin-sft"):
        arctic_training.SFTTrainer  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        arctic_training.Nonsense  # noqa: B018


def test_importing_arctic_costs_no_heavy_library():
    code = (
        "import sys, arctic_training, arctic_training.api; print([m for m in sys.modules if m in {'torch', 'numpy'}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


TRAIN_PY = """
from arctic_training import hookimpl
from arctic_training.testing.tiny import *

class OwnTrainer(TinyTrainer):
    name = "own"

class Unnamed(TinyTrainer):
    pass

@hookimpl
def arctic_train_start(trainer):
    print("own hook runs")
"""


@pytest.fixture
def write_recipe(arctic_home, tiny_recipe):
    import json

    folder = arctic_home / "project"
    folder.mkdir()

    def write(content=TRAIN_PY, file="train.py", **keys):
        if content is not None:
            (folder / file).write_text(content)
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(tiny_recipe | keys))
        return path

    return write


def own(path, **options):
    return configure(path, classes=TINY, **options)


@pytest.mark.parametrize("name", ["own", "Unnamed"])
def test_train_py_beside_the_recipe_is_found(write_recipe, name):
    assert own(write_recipe(type=name)).trainer_class.__name__ in ("OwnTrainer", "Unnamed")


def test_code_names_another_file_relative_to_the_recipe(write_recipe):
    config = own(_with_code(write_recipe))
    assert config.loaded_code.path.name == "mine.py"
    assert len(config.loaded_code.sha256) == 64


def _with_code(write_recipe):
    return write_recipe(file="mine.py", type="own", code="mine.py")


def test_hooks_of_the_recipes_code_run(write_recipe, capsys):
    config = own(write_recipe(type="own", train_iters=1))
    config.trainer_class(config).train()
    captured = capsys.readouterr()
    assert "own hook runs" in captured.out
    assert f"code: project/train.py, sha256 {config.loaded_code.sha256[:16]}" in captured.err


def test_code_that_is_not_there_is_an_error_with_its_place(write_recipe):
    with pytest.raises(RecipeError, match=r"recipe.yaml:1:\d+: code: there is no file .*absent.py"):
        own(write_recipe(None, code="absent.py"))


def test_refused_code_ends_a_recipe_that_names_it_and_is_passed_over_where_it_only_lies_there(write_recipe):
    with pytest.raises(UsageError, match="--no-code refuses it"):
        own(_with_code(write_recipe), code=False)
    config = own(write_recipe("raise SystemExit(9)", type="tiny"), code=False)
    assert config.loaded_code is None


def test_code_that_raises_names_its_line(write_recipe):
    with pytest.raises(PluginError, match=r"train.py:3: .*ZeroDivisionError"):
        own(write_recipe("\n\n1 / 0\n"))


def test_code_that_cannot_be_parsed_names_its_line(write_recipe):
    with pytest.raises(PluginError, match=r"train.py:2: .*SyntaxError"):
        own(write_recipe("\nclass :\n"))


def test_a_link_in_a_folder_that_others_write_to_is_refused(write_recipe, arctic_home):
    path = write_recipe(None, type="tiny")
    (arctic_home / "elsewhere.py").write_text("raise SystemExit(9)")
    (path.parent / "train.py").symlink_to(arctic_home / "elsewhere.py")
    path.parent.chmod(0o777)
    with pytest.raises(RecipeError, match="a link in a folder that others can write to"):
        own(path)


def test_two_recipes_do_not_share_their_code(write_recipe):
    first = own(write_recipe(type="own")).trainer_class
    second = own(write_recipe(TRAIN_PY + "# changed", type="own")).trainer_class
    assert first is not second


def test_the_base_of_all_trainers_can_be_imported_by_name():
    assert issubclass(TinyTrainer, Trainer)


def test_a_trainer_that_refused_code_would_bring_is_explained(write_recipe):
    with pytest.raises(RecipeError, match=r"there is no trainer 'own'.*train.py beside the recipe was refused"):
        own(write_recipe(type="own"), code=False)


def test_threads_that_wait_sleep_soon_unless_the_user_says_otherwise(monkeypatch):
    import os

    from arctic_training.distributed import wait_without_spinning

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_without_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    wait_without_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_without_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ


def made_by_hand(recipe, plugin_manager, trainer=TinyTrainer):
    from arctic_training.recipe import load_recipe
    from arctic_training.resolve import resolve

    return trainer(resolve(load_recipe(recipe), plugin_manager))


def test_each_call_of_train_is_a_run(tiny_recipe, plugin_manager, arctic_home):
    trainer = made_by_hand(tiny_recipe | {"train_iters": 2}, plugin_manager)
    trainer.train()
    first = trainer.run
    trainer.train()
    assert trainer.run is not first
    assert trainer.global_step == 2


def test_a_trainer_whose_run_could_not_be_built_can_try_again(tiny_recipe, plugin_manager, arctic_home):
    class FailsOnce:
        has_failed = False

        @hookimpl
        def arctic_build_loss(self, config, run):
            if not self.has_failed:
                self.has_failed = True
                raise RuntimeError("not yet")

    plugin_manager.register(FailsOnce(), "fails once")
    trainer = made_by_hand(tiny_recipe | {"train_iters": 2}, plugin_manager)
    with pytest.raises(RuntimeError, match="not yet"):
        trainer.train()
    trainer.train()
    assert trainer.global_step == 2


def test_a_trainer_that_the_recipe_was_not_resolved_for_is_refused(tiny_recipe, plugin_manager, arctic_home):
    class Wide(TinyModelFactory):
        name = "wide"

    class WideTrainer(TinyTrainer):
        name = "wide"
        model_factory: Wide

    plugin_manager.register_classes([Wide, WideTrainer], "test")
    with pytest.raises(UsageError, match=r"WideTrainer declares another model_factory.*\n.*type: wide"):
        made_by_hand(tiny_recipe, plugin_manager, WideTrainer).train()
