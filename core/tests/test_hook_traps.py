"""The traps of pluggy at registration: what it would drop, misread or fail on late is refused at once, with words."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from arctic_training import hookimpl, hookspecs
from arctic_training.errors import PluginError
from arctic_training.plugins import PluginManager

HERE = __file__


@pytest.fixture
def manager() -> PluginManager:
    return PluginManager(hookspecs)


def module_of(**functions: Any) -> types.ModuleType:
    module = types.ModuleType("arctic_trap")
    vars(module).update(functions)
    return module


def refusal(manager: PluginManager, plugin: Any) -> PluginError:
    """The error with which a plugin is refused; nothing of it may remain."""
    with pytest.raises(PluginError) as caught:
        manager.register(plugin, "trap", distribution="arctic-plugin-trap", version="1.2")
    assert manager.plugins == []
    assert manager.fingerprint() == []
    assert not any(manager.implementations(hook) for hook in manager.specifications)
    return caught.value


def register_loss(components: Any) -> None:
    components.loss("trap", "arctic_trap:Loss")


# ---- 1: wrong argument names


def test_a_wrong_argument_is_refused_naming_plugin_distribution_place_and_the_allowed_names(
    manager: PluginManager,
) -> None:
    @hookimpl
    def arctic_build_loss(configuration: Any, run: Any) -> Any: ...

    error = refusal(manager, module_of(arctic_build_loss=arctic_build_loss))
    line = arctic_build_loss.__code__.co_firstlineno
    assert "plugin 'trap' (arctic-plugin-trap 1.2)" in error.message
    assert "'configuration'" in error.message
    assert "did you mean 'config'?" in error.message
    assert error.where == f"{HERE}:{line}"
    assert error.remedy is not None
    assert "config, run" in error.remedy
    assert "-p no:trap" in error.remedy


def test_a_refused_plugin_leaves_no_component_and_may_be_registered_once_it_is_right(manager: PluginManager) -> None:
    @hookimpl
    def arctic_build_loss(configuration: Any) -> Any: ...

    functions = {"arctic_register_components": hookimpl(register_loss), "arctic_build_loss": arctic_build_loss}
    refusal(manager, module_of(**functions))
    assert manager.registry.names("loss") == []
    del functions["arctic_build_loss"]
    manager.register(module_of(**functions), "trap")
    assert manager.registry.names("loss") == ["trap"]


def test_a_plugin_whose_components_fail_leaves_none_of_its_hooks(manager: PluginManager) -> None:
    @hookimpl
    def arctic_register_components(components: Any) -> None:
        components.loss("early", "arctic_trap:Loss")
        raise LookupError("no loss today")

    @hookimpl
    def arctic_build_loss(config: Any) -> Any: ...

    error = refusal(
        manager,
        module_of(arctic_build_loss=arctic_build_loss, arctic_register_components=arctic_register_components),
    )
    assert "LookupError: no loss today" in error.message
    assert manager.registry.names("loss") == []


# ---- 2: defaults, keyword-only, stars, decorators that hide names


def test_an_argument_with_a_default_is_refused_since_it_would_never_be_passed(manager: PluginManager) -> None:
    @hookimpl
    def arctic_build_loss(config: Any, run: Any = None) -> Any: ...

    assert "gives 'run' a default" in refusal(manager, module_of(arctic_build_loss=arctic_build_loss)).message


def test_a_keyword_only_argument_is_refused_instead_of_failing_when_the_hook_is_called(manager: PluginManager) -> None:
    @hookimpl
    def arctic_build_loss(config: Any, *, run: Any) -> Any: ...

    assert "'run' by keyword only" in refusal(manager, module_of(arctic_build_loss=arctic_build_loss)).message


def test_stars_are_refused_since_they_hide_what_is_wanted(manager: PluginManager) -> None:
    @hookimpl
    def positional(*arguments: Any) -> Any: ...

    @hookimpl
    def keyword(**arguments: Any) -> Any: ...

    assert "takes *arguments" in refusal(manager, module_of(arctic_build_loss=positional)).message
    assert "takes **arguments" in refusal(manager, module_of(arctic_build_loss=keyword)).message


def test_a_decorator_that_hides_the_names_is_refused_and_one_that_keeps_them_is_not(manager: PluginManager) -> None:
    def careless(function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any) -> Any:
            return function(*arguments)

        return inner

    def careful(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(function)(careless(function))

    def arctic_build_loss(config: Any, run: Any) -> Any:
        return ("built", config, run)

    hidden = refusal(manager, module_of(arctic_build_loss=hookimpl(careless(arctic_build_loss))))
    assert "functools.wraps" in hidden.message
    unmarked = refusal(manager, module_of(arctic_build_loss=careless(hookimpl(arctic_build_loss))))
    assert "lacks the marker" in unmarked.message
    manager.register(module_of(arctic_build_loss=careful(hookimpl(arctic_build_loss))), "careful")
    assert manager.hook.arctic_build_loss(config=1, run=2) == ("built", 1, 2)


def test_a_decorator_that_states_another_signature_is_refused(manager: PluginManager) -> None:
    @hookimpl
    def arctic_build_loss(settings: Any) -> Any: ...

    stated = inspect.Signature([inspect.Parameter("config", inspect.Parameter.POSITIONAL_OR_KEYWORD)])
    arctic_build_loss.__signature__ = stated  # type: ignore[attr-defined]
    assert "another signature" in refusal(manager, module_of(arctic_build_loss=arctic_build_loss)).message


def test_a_generator_that_is_no_wrapper_and_a_wrapper_that_is_no_generator_are_refused(manager: PluginManager) -> None:
    @hookimpl
    def generator(config: Any) -> Iterator[Any]:
        yield config

    @hookimpl(wrapper=True)
    def plain(config: Any) -> Any:
        return config

    @hookimpl(hookwrapper=True)
    def old(config: Any) -> Iterator[Any]:
        yield

    @hookimpl
    async def asynchronous(config: Any) -> Any:
        return config

    assert "wrapper=True" in str(refusal(manager, module_of(arctic_build_loss=generator)))
    assert "has no yield" in refusal(manager, module_of(arctic_build_loss=plain)).message
    assert "old kind" in refusal(manager, module_of(arctic_build_loss=old)).message
    assert "asynchronous" in refusal(manager, module_of(arctic_build_loss=asynchronous)).message


# ---- 3: misspelt names


def test_a_misspelt_hook_is_refused_with_the_nearest_name(manager: PluginManager) -> None:
    @hookimpl
    def arctic_build_modle(config: Any) -> Any: ...

    error = refusal(manager, module_of(arctic_build_modle=arctic_build_modle))
    assert "arctic_build_modle is no hook; did you mean 'arctic_build_model'?" in error.message


def test_a_marked_function_without_the_prefix_is_refused_too(manager: PluginManager) -> None:
    @hookimpl
    def artic_build_model(config: Any) -> Any: ...

    error = refusal(manager, module_of(artic_build_model=artic_build_model))
    assert "did you mean 'arctic_build_model'?" in error.message


def test_a_hook_without_the_marker_is_refused_and_a_helper_with_the_prefix_is_not(manager: PluginManager) -> None:
    def arctic_build_loss(config: Any) -> Any: ...

    def arctic_build_losss(config: Any) -> Any: ...

    def arctic_version_of_mine() -> str: ...

    assert "lacks the marker" in refusal(manager, module_of(arctic_build_loss=arctic_build_loss)).message
    assert (
        "did you mean 'arctic_build_loss'?"
        in refusal(manager, module_of(arctic_build_losss=arctic_build_losss)).message
    )
    manager.register(module_of(arctic_version_of_mine=arctic_version_of_mine), "helper")


def test_a_hook_of_a_later_version_may_be_implemented_if_it_is_marked_optional(manager: PluginManager) -> None:
    @hookimpl(optionalhook=True)
    def arctic_of_tomorrow(whatever: Any) -> Any: ...

    manager.register(module_of(arctic_of_tomorrow=arctic_of_tomorrow), "early")
    manager.check_pending()


def test_a_hook_may_be_implemented_under_another_name(manager: PluginManager) -> None:
    @hookimpl(specname="arctic_build_loss")
    def sharper(config: Any) -> Any:
        return f"sharp {config}"

    manager.register(module_of(sharper=sharper), "sharp")
    assert manager.hook.arctic_build_loss(config="loss", run=None) == "sharp loss"


# ---- 4: attributes that fire


def test_no_property_fires_and_no_lazy_attribute_is_imported(manager: PluginManager) -> None:
    fired = []

    class Plugin:
        @property
        def model(self) -> Any:
            fired.append("property")
            raise RuntimeError("not ready")

        @functools.cached_property
        def weights(self) -> Any:
            fired.append("cached property")

        def __getattr__(self, name: str) -> Any:
            fired.append(name)
            raise AttributeError(name)

        @hookimpl
        def arctic_build_loss(self, config: Any) -> Any:
            return self, config

    lazy = module_of(__getattr__=fired.append)
    plugin = Plugin()
    manager.register(plugin, "instance")
    manager.register(lazy, "lazy")
    assert manager.hook.arctic_build_loss(config=1, run=None) == (plugin, 1)
    manager.fingerprint()
    assert fired == []


def test_a_property_with_the_name_of_a_hook_is_refused_unread(manager: PluginManager) -> None:
    class Plugin:
        @property
        def arctic_build_loss(self) -> Any:
            raise RuntimeError("read")

    assert "is a property" in refusal(manager, Plugin()).message


def test_methods_of_every_sort_are_called_as_python_binds_them(manager: PluginManager) -> None:
    class Base:
        @hookimpl
        def arctic_build_loss(self, config: Any) -> Any:
            return "method", config

    class Plugin(Base):
        @staticmethod
        @hookimpl
        def arctic_build_optimizer(model: Any) -> Any:
            return "static", model

        @classmethod
        @hookimpl
        def arctic_build_scheduler(cls, optimizer: Any) -> Any:
            return cls, optimizer

    plugin = Plugin()

    @hookimpl
    def own(run: Any) -> Any:
        return "own", run

    plugin.arctic_build_trainer = own  # type: ignore[attr-defined]
    manager.register(plugin, "methods")
    assert manager.hook.arctic_build_loss(config=1, run=0) == ("method", 1)
    assert manager.hook.arctic_build_optimizer(model=2, config=0, run=0) == ("static", 2)
    assert manager.hook.arctic_build_scheduler(optimizer=3, config=0, run=0) == (Plugin, 3)
    assert manager.hook.arctic_build_trainer(run=4) == ("own", 4)


# ---- 11: equality, hashing, classes


def test_plugins_that_compare_equal_are_still_two(manager: PluginManager) -> None:
    @dataclasses.dataclass
    class Plugin:
        answers: list[int]

        @hookimpl
        def arctic_checkpoint_state(self, trainer: Any) -> Any:
            self.answers.append(1)
            return id(self)

    first, second = Plugin([]), Plugin([])
    assert first == second
    with pytest.raises(TypeError):
        hash(first)
    manager.register(first, "first")
    manager.register(second, "second")
    collected = manager.collect("arctic_checkpoint_state", trainer=None)
    assert [(plugin.name, value) for plugin, value in collected] == [("second", id(second)), ("first", id(first))]
    assert [plugin.name for plugin in manager.plugins] == ["first", "second"]


def test_one_object_or_one_name_is_registered_once(manager: PluginManager) -> None:
    plugin = module_of(arctic_build_loss=hookimpl(lambda config: 1))
    manager.register(plugin, "one", distribution="arctic-one", version="1")
    with pytest.raises(PluginError, match=r"plugin 'two'.*plugin 'one' \(arctic-one 1\).*the same object"):
        manager.register(plugin, "two")
    with pytest.raises(PluginError, match="under that name"):
        manager.register(module_of(), "one", distribution="arctic-other", version="1")
    assert manager.fingerprint() == ["one arctic-one 1"]


def test_a_class_is_refused_and_the_remedy_makes_an_instance(manager: PluginManager) -> None:
    class Plugin:
        @hookimpl
        def arctic_build_loss(self, config: Any) -> Any: ...

    error = refusal(manager, Plugin)
    assert "gives the class" in error.message
    assert "plugin = Plugin()" in str(error.remedy)
