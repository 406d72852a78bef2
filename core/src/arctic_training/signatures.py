"""Finds the hook implementations of a plugin object and refuses those that pluggy would drop, misread or fail on later.

Only names with the prefix ``arctic_`` and functions that carry the marker are looked at, without reading an attribute:
no property fires and nothing lazy is imported.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from arctic_training.errors import PluginError
from arctic_training.provenance import PluginInfo, did_you_mean, location_of, nearest

PREFIX = "arctic_"
IMPLEMENTATION_MARKER = "arctic_impl"
SPECIFICATION_MARKER = "arctic_spec"
UNWRAPPABLE = frozenset({"arctic_register_components", "arctic_register_commands"})
"""Hooks that are called once for each plugin with a registrar of its own."""


@attrs.frozen
class Specification:
    """A hook: its name, the arguments that an implementation may name, and whether the first answer wins."""

    name: str
    arguments: tuple[str, ...]
    firstresult: bool


@attrs.frozen(eq=False)
class Implementation:
    """A function of a plugin that implements a hook.

    ``function`` is bound, ``options`` are those of the marker, ``firstresult`` says whether the first answer wins.
    """

    hook: str
    attribute: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    where: str
    firstresult: bool = False

    @property
    def wrapper(self) -> bool:
        return bool(self.options.get("wrapper"))

    @property
    def takes_arguments(self) -> bool:
        return bool(_names_in_code(self.function))


def specifications_of(module: Any) -> dict[str, Specification]:
    """Every hook that a module of hookspecs declares, by name, in the order of the module."""
    found = {}
    for name, value in vars(module).items():
        options = getattr(value, SPECIFICATION_MARKER, None) if inspect.isfunction(value) else None
        if options is not None:
            arguments = value.__code__.co_varnames[: value.__code__.co_argcount]
            found[name] = Specification(name, arguments, bool(options.get("firstresult")))
    return found


def implementations_of(plugin: Any, info: PluginInfo, hooks: Mapping[str, Specification]) -> list[Implementation]:
    """The hook implementations of a plugin, checked.

    Raises:
        PluginError: the plugin is a class, or an implementation has an unknown hook name, lacks the marker, has an
            argument that the hook does not pass, or takes arguments in a way that hides or defaults them.
    """
    if inspect.isclass(plugin):
        raise PluginError(
            f"{info} gives the class {plugin.__qualname__}, and hooks are called on instances",
            where=info.where or None,
            remedy=f"write `plugin = {plugin.__name__}()` and name `{plugin.__module__}:plugin`; or {info.repair}",
        )
    return [
        _checked(implementation, info, hooks)
        for attribute, value, bind in _static_attributes(plugin)
        if (implementation := _implementation(attribute, value, bind, info, hooks)) is not None
    ]


def _static_attributes(plugin: Any) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """Name and value as they lie in the dictionary of a module, an instance or its classes, and how to bind each."""
    try:
        own = object.__getattribute__(plugin, "__dict__")
    except AttributeError:  # an instance with __slots__
        own = {}
    for name, value in list(own.items()):
        yield name, value, lambda value: value
    if isinstance(plugin, types.ModuleType):
        return
    seen = set(own)
    for base in type(plugin).__mro__:
        for name, value in vars(base).items():
            if name not in seen:
                seen.add(name)
                yield name, value, lambda value: value.__get__(plugin, type(plugin))


def _implementation(
    attribute: str, value: Any, bind: Callable[[Any], Any], info: PluginInfo, hooks: Mapping[str, Specification]
) -> Implementation | None:
    function = value.__func__ if isinstance(value, (staticmethod, classmethod, types.MethodType)) else value
    if not isinstance(function, types.FunctionType):
        if attribute in hooks:
            raise _refusal(info, attribute, f"is {_kind_of(value)}, not a function", info.where, "write `def`")
        return None
    if SPECIFICATION_MARKER in vars(function):
        return None
    options = vars(function).get(IMPLEMENTATION_MARKER) or vars(value).get(IMPLEMENTATION_MARKER)
    where = location_of(function)
    if options is None:
        _refuse_unmarked(info, attribute, where, hooks)
        return None
    return Implementation(options.get("specname") or attribute, attribute, bind(value), options, where)


def _refuse_unmarked(info: PluginInfo, attribute: str, where: str, hooks: Mapping[str, Specification]) -> None:
    if not attribute.startswith(PREFIX):
        return
    if attribute in hooks:
        raise _refusal(
            info,
            attribute,
            "has the name of a hook and lacks the marker, so it would never be called",
            where,
            "put `@hookimpl` (from arctic_training) above it, outside any other decorator",
        )
    match = nearest(attribute, hooks, cutoff=0.9)
    if match:
        raise _refusal(
            info,
            attribute,
            f"is no hook and lacks the marker; did you mean {match!r}?",
            where,
            f"rename it to {match} and put `@hookimpl` above it, or name a helper without {PREFIX!r}",
        )


def _checked(implementation: Implementation, info: PluginInfo, hooks: Mapping[str, Specification]) -> Implementation:
    specification = hooks.get(implementation.hook)
    if specification is None:
        if implementation.options.get("optionalhook"):
            return implementation
        hint = did_you_mean(implementation.hook, hooks)
        raise _refusal(
            info,
            implementation.hook,
            f"is no hook{hint}",
            implementation.where,
            "`arctic plugins hooks` lists them; a hook of a newer version is marked `@hookimpl(optionalhook=True)`",
        )
    _check_options(implementation, info)
    _check_arguments(implementation, info, specification)
    return attrs.evolve(implementation, firstresult=specification.firstresult)


def _check_options(implementation: Implementation, info: PluginInfo) -> None:
    options, function = implementation.options, inspect.unwrap(implementation.function)
    hook, where = implementation.hook, implementation.where
    if options.get("hookwrapper"):
        raise _refusal(info, hook, "is a wrapper of the old kind", where, "write wrapper=True and `result = yield`")
    if options.get("tryfirst") and options.get("trylast"):
        raise _refusal(info, hook, "is marked both tryfirst and trylast", where, "keep one of them")
    if implementation.wrapper and hook in UNWRAPPABLE:
        raise _refusal(info, hook, "is a wrapper, and this hook is not wrapped", where, "register what is yours")
    if implementation.wrapper and not inspect.isgeneratorfunction(function):
        raise _refusal(info, hook, "is marked wrapper=True and has no yield", where, "write `result = yield`")
    if not implementation.wrapper and inspect.isgeneratorfunction(function):
        remedy = "mark it `@hookimpl(wrapper=True)`, or return the values instead of yielding them"
        raise _refusal(info, hook, "yields and is not marked as a wrapper", where, remedy)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise _refusal(info, hook, "is asynchronous, and hooks are called plainly", where, "write `def`")


def _check_arguments(implementation: Implementation, info: PluginInfo, specification: Specification) -> None:
    allowed = ", ".join(specification.arguments) or "none"
    remedy = f"it may take any of these, by name, without defaults: {allowed}"
    hook, where = implementation.hook, implementation.where
    parameters = _signature(implementation.function).parameters.values()
    for parameter in parameters:
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            problem = f"takes {stars}{name}, which hides what it wants (as a decorator without functools.wraps does)"
            raise _refusal(info, hook, problem, where, remedy)
        if name not in specification.arguments:
            problem = f"takes {name!r}, which the hook does not pass{did_you_mean(name, specification.arguments)}"
            raise _refusal(info, hook, problem, where, remedy)
        if parameter.default is not parameter.empty:
            raise _refusal(info, hook, f"gives {name!r} a default, and would never be passed it", where, remedy)
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise _refusal(info, hook, f"takes {name!r} by keyword only, and hooks pass by position", where, remedy)
    if _names_in_code(implementation.function) != [parameter.name for parameter in parameters]:
        raise _refusal(info, hook, "has a decorator that states another signature than the function's", where, remedy)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature without evaluating annotations, which may name what only type checkers import."""
    if sys.version_info >= (3, 14):
        as_text = importlib.import_module("annotationlib").Format.STRING
        return inspect.signature(function, annotation_format=as_text)
    return inspect.signature(function)


def _names_in_code(function: Any) -> list[str]:
    code = inspect.unwrap(function).__code__
    names = list(code.co_varnames[: code.co_argcount])
    return names[1:] if isinstance(function, types.MethodType) else names


def _refusal(info: PluginInfo, hook: str, problem: str, where: str, remedy: str) -> PluginError:
    return PluginError(f"{info}: {hook} {problem}", where=where or None, remedy=f"{remedy}; or {info.repair}")


def _kind_of(value: Any) -> str:
    return "a property" if isinstance(value, property) else f"of type {type(value).__name__}"
