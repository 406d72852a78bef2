"""The traps of pluggy at the call: who answered, in which order, what wrappers did, and whose fault it was."""

from __future__ import annotations

import types
from typing import Any

import pytest

from arctic_training import hookimpl, hookspecs
from arctic_training.errors import PluginError
from arctic_training.plugins import PluginManager


@pytest.fixture
def manager() -> PluginManager:
    return PluginManager(hookspecs)


def module_of(**functions: Any) -> types.ModuleType:
    module = types.ModuleType("arctic_trap")
    vars(module).update(functions)
    return module


# ---- 5: first results


@pytest.mark.parametrize("answer", [0, False, [], ""])
def test_an_empty_answer_is_an_answer(manager: PluginManager, answer: Any) -> None:
    def asked_for_later(config: Any) -> Any:
        raise AssertionError("asked though there was an answer")

    manager.register(module_of(arctic_build_loss=hookimpl(asked_for_later)), "first")
    manager.register(module_of(arctic_build_loss=hookimpl(lambda config: answer)), "last")
    assert manager.ask("arctic_build_loss", object, config=1, run=None) == answer


def test_no_answer_is_an_error_that_names_the_hook_and_who_was_asked(manager: PluginManager) -> None:
    with pytest.raises(PluginError, match="no plugin answered arctic_build_loss"):
        manager.ask("arctic_build_loss", object, config=1, run=None)
    manager.register(module_of(arctic_build_loss=hookimpl(lambda config: None)), "silent")
    with pytest.raises(PluginError, match="asked were: silent"):
        manager.ask("arctic_build_loss", object, config=1, run=None)


def test_asking_for_a_hook_that_does_not_exist_names_the_nearest(manager: PluginManager) -> None:
    with pytest.raises(PluginError, match="did you mean 'arctic_build_loss'"):
        manager.ask("arctic_build_los", object)


# ---- 6: provenance of what is collected


def test_what_is_collected_says_whose_it_is_and_none_is_left_out(manager: PluginManager) -> None:
    for name, state in (("adam", {"m": 1}), ("silent", None), ("zero", 0)):
        manager.register(_with_state(state), name)
    collected = manager.collect("arctic_checkpoint_state", trainer=None)
    assert [(plugin.name, value) for plugin, value in collected] == [("zero", 0), ("adam", {"m": 1})]


def _with_state(state: Any) -> types.ModuleType:
    @hookimpl
    def arctic_checkpoint_state(trainer: Any) -> Any:
        return state

    return module_of(arctic_checkpoint_state=arctic_checkpoint_state)


# ---- 7 and 8: wrappers


def test_wrappers_decorate_the_answer_from_the_inside_out(manager: PluginManager) -> None:
    def wrapper_named(name: str) -> types.ModuleType:
        @hookimpl(wrapper=True)
        def arctic_build_loss(config: Any) -> Any:
            result = yield
            return f"{name}({result})"

        return module_of(arctic_build_loss=arctic_build_loss)

    manager.register(module_of(arctic_build_loss=hookimpl(lambda config: "loss")), "base")
    manager.register(wrapper_named("inner"), "inner")
    manager.register(wrapper_named("outer"), "outer")
    assert manager.ask("arctic_build_loss", str, config=None, run=None) == "outer(inner(loss))"
    order = [(name, kind) for name, kind, _ in manager.implementations("arctic_build_loss")]
    assert order == [("outer", "wrapper"), ("inner", "wrapper"), ("base", "")]


def test_a_wrapper_that_returns_nothing_is_named(manager: PluginManager) -> None:
    @hookimpl(wrapper=True)
    def arctic_build_loss(config: Any) -> Any:
        yield

    manager.register(module_of(arctic_build_loss=hookimpl(lambda config: "loss")), "base")
    manager.register(module_of(arctic_build_loss=arctic_build_loss), "hole", distribution="arctic-hole", version="3")
    for call in (
        lambda: manager.ask("arctic_build_loss", str, config=None, run=None),
        lambda: manager.hook.arctic_build_loss(config=None, run=None),
    ):
        with pytest.raises(PluginError, match="its wrapper around arctic_build_loss returned nothing") as caught:
            call()
        assert "plugin 'hole' (arctic-hole 3)" in caught.value.message
        assert caught.value.where == f"{__file__}:{arctic_build_loss.__code__.co_firstlineno}"
        assert "return result" in str(caught.value.remedy)


def test_a_wrapper_around_observers_may_return_nothing(manager: PluginManager) -> None:
    seen = []

    @hookimpl(wrapper=True)
    def arctic_epoch_start(epoch: int) -> Any:
        seen.append("before")
        yield
        seen.append("after")

    manager.register(module_of(arctic_epoch_start=hookimpl(lambda epoch: seen.append(epoch))), "observer")
    manager.register(module_of(arctic_epoch_start=arctic_epoch_start), "clock")
    manager.hook.arctic_epoch_start(epoch=3, trainer=None)
    assert seen == ["before", 3, "after"]


@pytest.mark.parametrize(("yields", "problem"), [(0, "without a yield"), (2, "yielded a second time")])
def test_a_wrapper_that_does_not_yield_once_is_named(manager: PluginManager, yields: int, problem: str) -> None:
    @hookimpl(wrapper=True)
    def arctic_build_loss(config: Any) -> Any:
        result = None
        for _ in range(yields):
            result = yield
        return result

    manager.register(module_of(arctic_build_loss=hookimpl(lambda config: "loss")), "base")
    manager.register(module_of(arctic_build_loss=arctic_build_loss), "odd")
    with pytest.raises(PluginError, match=f"plugin 'odd'.*{problem}"):
        manager.ask("arctic_build_loss", str, config=None, run=None)


def test_a_wrapper_may_catch_what_the_inner_ones_raise(manager: PluginManager) -> None:
    def failing(config: Any) -> Any:
        raise OSError("no disk")

    @hookimpl(wrapper=True)
    def arctic_build_loss(config: Any) -> Any:
        try:
            return (yield)
        except OSError as error:
            return f"caught {error}"

    manager.register(module_of(arctic_build_loss=hookimpl(failing)), "failing")
    manager.register(module_of(arctic_build_loss=arctic_build_loss), "net")
    assert manager.ask("arctic_build_loss", str, config=None, run=None) == "caught no disk"


def test_an_answer_of_the_wrong_type_names_the_plugin_that_gave_it(manager: PluginManager) -> None:
    wrong = hookimpl(lambda config: 42)
    manager.register(module_of(arctic_build_loss=wrong), "wrong", distribution="arctic-wrong", version="0.3")
    with pytest.raises(PluginError) as caught:
        manager.ask("arctic_build_loss", (str, bytes), config=None, run=None)
    assert caught.value.message == (
        "plugin 'wrong' (arctic-wrong 0.3): it answered arctic_build_loss with int 42, not str or bytes"
    )
    assert caught.value.where == f"{__file__}:{wrong.__code__.co_firstlineno}"
    with pytest.raises(PluginError, match="which cannot be called"):
        manager.ask("arctic_build_loss", callable, config=None, run=None)


def test_a_wrapper_that_spoils_the_type_is_named_and_not_the_plugin_it_wraps(manager: PluginManager) -> None:
    @hookimpl(wrapper=True)
    def arctic_build_loss(config: Any) -> Any:
        yield
        return 42

    manager.register(module_of(arctic_build_loss=hookimpl(lambda config: "loss")), "base")
    manager.register(module_of(arctic_build_loss=arctic_build_loss), "spoiler")
    with pytest.raises(PluginError, match=r"plugin 'spoiler'.*its wrapper around arctic_build_loss returned int 42"):
        manager.ask("arctic_build_loss", str, config=None, run=None)


def test_an_error_inside_an_implementation_passes_with_a_note_of_whose_it_is(manager: PluginManager) -> None:
    def failing(config: Any) -> Any:
        raise ValueError("bad loss")

    @hookimpl(wrapper=True)
    def passing(config: Any) -> Any:
        return (yield)

    manager.register(module_of(arctic_build_loss=hookimpl(failing)), "guilty")
    manager.register(module_of(arctic_build_loss=passing), "innocent")
    with pytest.raises(ValueError, match="bad loss") as caught:
        manager.ask("arctic_build_loss", str, config=None, run=None)
    (note,) = caught.value.__notes__
    assert "arctic_build_loss of plugin 'guilty'" in note


def test_an_error_of_arctic_passes_unchanged(manager: PluginManager) -> None:
    error = PluginError("mine")

    def failing(config: Any) -> Any:
        raise error

    manager.register(module_of(arctic_build_loss=hookimpl(failing)), "plain")
    with pytest.raises(PluginError) as caught:
        manager.ask("arctic_build_loss", str, config=None, run=None)
    assert caught.value is error
    assert not hasattr(error, "__notes__")


# ---- 9: order


def test_the_one_registered_last_runs_first_between_tryfirst_and_trylast(manager: PluginManager) -> None:
    for name, options in (("late", {"trylast": True}), ("one", {}), ("early", {"tryfirst": True}), ("two", {})):
        manager.register(module_of(arctic_build_loss=hookimpl(**options)(lambda config: None)), name)
    order = [(name, kind) for name, kind, _ in manager.implementations("arctic_build_loss")]
    assert order == [("early", "tryfirst"), ("two", ""), ("one", ""), ("late", "trylast")]
