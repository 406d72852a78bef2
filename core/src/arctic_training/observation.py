"""Watches hook implementations at work: who answered, which wrapper lost the answer, in whose code an exception arose.

pluggy hands results on without saying whose they are. Each function is therefore registered inside a thin one that
notes the value on the trail of the call that is being watched; without a trail it costs one comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from arctic_training.errors import ArcticError, PluginError
from arctic_training.provenance import PluginInfo, add_note
from arctic_training.signatures import Implementation

Expected = type | tuple[type, ...] | Callable[[Any], bool]


@attrs.frozen(eq=False)
class Event:
    """An implementation ended with a value."""

    plugin: PluginInfo
    implementation: Implementation
    value: Any


@attrs.frozen(eq=False)
class Trail:
    """What the implementations of one hook gave during one call, in the order in which they ended."""

    hook: str
    events: list[Event] = attrs.field(factory=list)


class Watch:
    """Holds the trail of the call that is being watched, if any. Calls nest; each has a trail of its own."""

    def __init__(self) -> None:
        self.trail: Trail | None = None

    @contextmanager
    def following(self, hook: str) -> Iterator[Trail]:
        """Follow the calls of one hook until the block ends."""
        outer, self.trail = self.trail, Trail(hook)
        try:
            yield self.trail
        finally:
            self.trail = outer

    def watched(self, implementation: Implementation, plugin: PluginInfo) -> Callable[..., Any]:
        """The function to register with pluggy in place of the implementation's own."""
        hook, function = implementation.hook, implementation.function

        def ended(value: Any) -> Any:
            if self.trail is not None and self.trail.hook == hook:
                self.trail.events.append(Event(plugin, implementation, value))
            return value

        def answer(*arguments: Any) -> Any:
            try:
                value = function(*arguments)
            except Exception as error:
                _note_origin(error, plugin, implementation)
                raise
            return value if self.trail is None else ended(value)

        def wrap(*arguments: Any) -> Generator[None, Any, Any]:
            try:
                value = yield from _wrapped(function(*arguments), plugin, implementation)
            except Exception as error:
                _note_origin(error, plugin, implementation)
                raise
            return ended(value)

        watched = functools.wraps(function)(wrap if implementation.wrapper else answer)
        vars(watched).update(arctic_impl=implementation.options, arctic_where=implementation.where)
        return watched


def _wrapped(
    generator: Generator[Any, Any, Any], plugin: PluginInfo, implementation: Implementation
) -> Generator[None, Any, Any]:
    """Drive a wrapper through its one yield, and hold it to returning a result where it was given one."""
    try:
        next(generator)
    except StopIteration:
        raise _misbehaved(plugin, implementation, "ended without a yield, so the others were not called") from None
    result = None
    try:
        try:
            result = yield
        except BaseException as error:  # noqa: BLE001 - handed on, whatever it is
            generator.throw(error)
        else:
            generator.send(result)
    except StopIteration as end:
        if implementation.firstresult and result is not None and end.value is None:
            raise _misbehaved(plugin, implementation, "returned nothing, and the result is lost") from None
        return end.value
    generator.close()
    raise _misbehaved(plugin, implementation, "yielded a second time")


def _misbehaved(plugin: PluginInfo, implementation: Implementation, problem: str) -> PluginError:
    return PluginError(
        f"{plugin}: its wrapper around {implementation.hook} {problem}",
        where=implementation.where,
        remedy=f"a wrapper says `result = yield` once and ends with `return result`; or {plugin.repair}",
    )


def trace_line(hook: str, implementations: Sequence[Any], arguments: Iterable[str]) -> str:
    """One hook call in one line: the hook, the names of its arguments, who implements it in running order."""
    names = [f"{each.plugin_name}{' (wrapper)' if each.wrapper else ''}" for each in reversed(implementations)]
    return f"hook {hook}({', '.join(arguments)}): {', '.join(names) or 'nobody'}"


def accepted(value: Any, expected: Expected) -> bool:
    """Whether a value is what was asked for: an instance of a type or of one of several, or what a predicate takes."""
    return isinstance(value, expected) if isinstance(expected, (type, tuple)) else bool(expected(value))


def verdict(trail: Trail, result: Any, expected: Expected) -> PluginError | None:
    """What is wrong with the result of a watched call, naming the implementation at fault, or None if it is right."""
    if result is not None and accepted(result, expected):
        return None
    for event in trail.events:
        if event.value is not None and not accepted(event.value, expected):
            return _wrong_type(trail.hook, event, expected)
    return _unanswered(trail)


def _wrong_type(hook: str, event: Event, expected: Expected) -> PluginError:
    deed = f"its wrapper around {hook} returned" if event.implementation.wrapper else f"it answered {hook} with"
    return PluginError(
        f"{event.plugin}: {deed} {_described(event.value)}, {_expectation(expected)}",
        where=event.implementation.where,
        remedy=f"return what the hook asks for, or None to leave it to others; or {event.plugin.repair}",
    )


def _unanswered(trail: Trail) -> PluginError:
    asked = ", ".join(dict.fromkeys(event.plugin.name for event in trail.events))
    return PluginError(
        f"no plugin answered {trail.hook}" + (f"; asked were: {asked}" if asked else ""),
        remedy="install a plugin that implements it; `arctic plugins hooks` shows who implements what",
    )


def _described(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__qualname__} {text}" if len(text) <= 40 else f"a value of type {type(value).__qualname__}"


def _expectation(expected: Expected) -> str:
    if isinstance(expected, tuple):
        return f"not {' or '.join(member.__qualname__ for member in expected)}"
    if isinstance(expected, type):
        return f"not {expected.__qualname__}"
    if expected is callable:
        return "which cannot be called"
    return f"which fails the check {getattr(expected, '__name__', 'of this hook').strip('_')}"


def _note_origin(error: Exception, plugin: PluginInfo, implementation: Implementation) -> None:
    """Say once, in the innermost implementation that an exception leaves, whose code it was."""
    if isinstance(error, ArcticError) or getattr(error, "arctic_plugin", None) is not None:
        return
    try:
        error.arctic_plugin = plugin  # type: ignore[attr-defined]
    except AttributeError:  # an exception class with __slots__ takes no note either
        return
    add_note(error, f"raised in {implementation.hook} of {plugin}, {implementation.where}")
