"""The registry: what is registered is found by kind and name, imported late, and missed with useful words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from arctic_training import hookspecs
from arctic_training.errors import PluginError
from arctic_training.loss import LossConfig, LossFactory
from arctic_training.plugins import PluginManager
from arctic_training.provenance import PluginInfo
from arctic_training.registry import KINDS, Components, Registry, UnknownComponent


class PlainLoss(LossFactory):
    name = "plain"
    config: LossConfig

    def create_loss(self) -> Any:
        return sum


class NamelessLoss(PlainLoss):
    """Inherits the name of its parent, and goes by its own."""


class UnfinishedLoss(LossFactory):
    name = "unfinished"
    config: LossConfig


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def focal() -> PluginInfo:
    return PluginInfo("focal", "arctic-plugin-focal", "0.2", where="arctic_focal.plugin")


@pytest.fixture
def rival() -> PluginInfo:
    return PluginInfo("rival", "Arctic_Plugin.Rival", "3.0", where="arctic_rival.plugin")


def test_every_kind_has_a_method_of_its_own(registry: Registry, focal: PluginInfo) -> None:
    components = Components(registry, focal)
    for kind in KINDS:
        getattr(components, kind)(f"my-{kind}", f"arctic_focal.{kind}:Mine")
    assert focal.components == [(kind, f"my-{kind}") for kind in KINDS]
    assert all(registry.names(kind) == [f"my-{kind}"] for kind in KINDS)
    assert not [name for name in vars(Components) if not name.startswith("_") and name not in KINDS]


def test_a_target_is_imported_when_it_is_asked_for_and_not_before(
    registry: Registry, focal: PluginInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "class Nest:\n    from arctic_training.loss import CrossEntropyFactory as Loss\n"
    (tmp_path / "late_losses.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    registry.add("loss", "late", "late_losses:Nest.Loss", focal)
    assert "late_losses" not in sys.modules
    assert registry.get("loss", "late").__name__ == "CrossEntropyFactory"
    assert registry.provider("loss", "late") is focal


def test_an_unknown_name_tells_the_nearest_and_all_that_are_there(registry: Registry, focal: PluginInfo) -> None:
    registry.add("loss", "focal", PlainLoss, focal)
    registry.add("loss", "plain", PlainLoss, focal)
    with pytest.raises(UnknownComponent) as caught:
        registry.get("loss", "vocal", needed_by="the trainer 'sft'")
    assert caught.value.message == "there is no loss 'vocal', needed by the trainer 'sft'; did you mean 'focal'?"
    assert caught.value.remedy == "installed are: focal, plain"


def test_an_unknown_name_of_a_known_distribution_tells_what_to_install(registry: Registry) -> None:
    with pytest.raises(UnknownComponent, match="it comes with arctic-plugin-dpo") as caught:
        registry.get("trainer", "dpo")
    assert caught.value.remedy == "pip install arctic-plugin-dpo"


def test_an_unknown_kind_is_refused_with_the_nearest(registry: Registry, focal: PluginInfo) -> None:
    with pytest.raises(PluginError, match="did you mean 'scheduler'"):
        registry.add("schedule", "wave", PlainLoss, focal)
    with pytest.raises(PluginError, match="did you mean 'scheduler'"):
        registry.get("schedule", "wave")


@pytest.mark.parametrize("name", ["", "a:b", " padded", 3, None])
def test_a_name_that_a_recipe_could_not_say_is_refused(registry: Registry, focal: PluginInfo, name: Any) -> None:
    with pytest.raises(PluginError, match=r"plugin 'focal' \(arctic-plugin-focal 0.2\).*cannot be the name"):
        registry.add("loss", name, PlainLoss, focal)


@pytest.mark.parametrize("target", ["arctic_focal", "arctic_focal:", ":Loss", "", 3, None])
def test_a_target_that_names_no_class_is_refused(registry: Registry, focal: PluginInfo, target: Any) -> None:
    with pytest.raises(PluginError, match="has the target"):
        registry.add("loss", "focal", target, focal)


def test_one_plugin_that_offers_a_name_twice_is_refused_at_once(registry: Registry, focal: PluginInfo) -> None:
    registry.add("loss", "focal", "arctic_focal:One", focal)
    with pytest.raises(PluginError, match="offers the loss 'focal' twice: arctic_focal:One and arctic_focal:Two"):
        registry.add("loss", "focal", "arctic_focal:Two", focal)


def test_a_name_offered_twice_is_told_with_both_distributions_versions_and_the_ways_out(
    registry: Registry, focal: PluginInfo, rival: PluginInfo
) -> None:
    registry.add("loss", "focal", PlainLoss, focal)
    registry.add("loss", "focal", NamelessLoss, rival)
    registry.add("optimizer", "focal", PlainLoss, rival)
    (ambiguity,) = registry.ambiguities()
    assert (ambiguity.name, ambiguity.distribution, ambiguity.version) == ("rival", "Arctic_Plugin.Rival", "3.0")
    text = str(ambiguity.error)
    for word in ("arctic-plugin-focal 0.2", "Arctic_Plugin.Rival 3.0", "arctic-plugin-focal:focal", "-p no:rival"):
        assert word in text


def test_a_name_with_its_distribution_ends_the_ambiguity(
    registry: Registry, focal: PluginInfo, rival: PluginInfo
) -> None:
    registry.add("loss", "focal", PlainLoss, focal)
    registry.add("loss", "focal", NamelessLoss, rival)
    assert registry.get("loss", "focal") is PlainLoss  # a recipe can be validated; a run stops on the ambiguity
    assert registry.ambiguities()
    assert registry.get("loss", "arctic-plugin-rival:focal") is NamelessLoss
    assert registry.ambiguities() == []
    assert registry.get("loss", "focal:focal") is PlainLoss
    with pytest.raises(UnknownComponent, match=r"is offered by plugin 'focal'.* and by plugin 'rival'"):
        registry.get("loss", "arctic-plugin-other:focal")


def test_what_is_discarded_is_forgotten(registry: Registry, focal: PluginInfo, rival: PluginInfo) -> None:
    registry.add("loss", "focal", PlainLoss, focal)
    registry.add("loss", "focal", NamelessLoss, rival)
    registry.discard(focal)
    assert registry.get("loss", "focal") is NamelessLoss
    assert registry.ambiguities() == []
    assert focal.components == []


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("arctic_nowhere.losses:Loss", "No module named 'arctic_nowhere'"),
        ("arctic_training.loss:NoSuchLoss", "has no attribute 'NoSuchLoss'"),
        ("arctic_training.loss:IGNORE_INDEX", "is no class derived from Component"),
        ("builtins:dict", "is no class derived from Component"),
        ("arctic_training.optimizer:AdamWFactory", "is of the kind optimizer, not loss"),
        (UnfinishedLoss, "does not implement create_loss"),
    ],
)
def test_a_target_that_is_no_component_of_its_kind_names_the_plugin(
    registry: Registry, focal: PluginInfo, target: Any, problem: str
) -> None:
    registry.add("loss", "focal", target, focal)
    with pytest.raises(PluginError) as caught:
        registry.get("loss", "focal")
    assert problem in caught.value.message
    assert "plugin 'focal' (arctic-plugin-focal 0.2)" in caught.value.message
    assert "-p no:focal" in str(caught.value.remedy)


def test_a_target_that_needs_a_missing_module_says_what_to_install(
    registry: Registry, focal: PluginInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy_losses.py").write_text("import frobnicate.core\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.add("loss", "needy", "needy_losses:Loss", focal)
    with pytest.raises(PluginError) as caught:
        registry.get("loss", "needy")
    assert str(caught.value.remedy).startswith("pip install frobnicate; or ")
    assert caught.value.where == f"{tmp_path / 'needy_losses.py'}:1"


def test_declared_classes_go_by_their_own_name_and_abstract_ones_are_passed_over() -> None:
    manager = PluginManager(hookspecs)
    info = manager.register_classes([PlainLoss, NamelessLoss, UnfinishedLoss], "train.py")
    assert info.components == [("loss", "plain"), ("loss", "NamelessLoss")]
    assert manager.registry.get("loss", "NamelessLoss") is NamelessLoss
    assert manager.registry.provider("loss", "plain") is info
    assert manager.fingerprint() == ["train.py"]


def test_a_class_that_is_declared_once_and_found_twice_is_registered_once() -> None:
    manager = PluginManager(hookspecs)
    manager.register_classes([PlainLoss], "train.py")
    manager.register_classes([PlainLoss, PlainLoss], "train.py")
    assert [info.components for info in manager.plugins] == [[("loss", "plain")]]
    assert manager.broken == []


def test_two_declared_classes_with_one_name_are_refused() -> None:
    other = type("Other", (PlainLoss,), {"name": "plain"})
    with pytest.raises(PluginError, match=r"plugin 'train.py' offers the loss 'plain' twice: .*PlainLoss and .*Other"):
        PluginManager(hookspecs).register_classes([PlainLoss, other], "train.py")


def test_a_declared_class_with_the_name_of_a_plugins_is_an_ambiguity(focal: PluginInfo) -> None:
    manager = PluginManager(hookspecs)
    manager.registry.add("loss", "plain", NamelessLoss, focal)
    manager.register_classes([PlainLoss], "train.py")
    with pytest.raises(PluginError, match=r"plugin 'focal'.* and by plugin 'train.py'"):
        manager.refuse_broken()
    assert manager.registry.get("loss", "train.py:plain") is PlainLoss
    manager.refuse_broken()
