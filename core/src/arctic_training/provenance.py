"""Who provided what: the record of each plugin, and the words in which messages name a plugin and a place in its code.

Every message about a plugin says its name, its distribution with version, and file:line where there is one.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterable
from typing import Any

import attrs

from arctic_training.errors import PluginError


@attrs.define(eq=False)
class PluginInfo:
    """One plugin as ``arctic plugins`` lists it.

    ``status`` is active, blocked or broken. ``hooks`` and ``components`` hold what the plugin offers, ``error`` the
    first line of what is wrong with a broken one, ``where`` its module and attribute, or its file.
    """

    name: str
    distribution: str = ""
    version: str = ""
    status: str = "active"
    summary: str = ""
    error: str = ""
    hooks: list[str] = attrs.field(factory=list)
    components: list[tuple[str, str]] = attrs.field(factory=list)
    where: str = ""

    @property
    def source(self) -> str:
        """``distribution version``, or where the plugin comes from when no distribution brings it."""
        return f"{self.distribution} {self.version}".strip() or self.where

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.source})" if self.source else f"plugin {self.name!r}"

    @property
    def repair(self) -> str:
        """What a user can do about a fault of this plugin."""
        if self.distribution:
            return f"repair, upgrade or uninstall {self.distribution}, or block the plugin with -p no:{self.name}"
        return f"repair it, or block it with -p no:{self.name}"


@attrs.frozen(eq=False)
class Broken:
    """A plugin, or a demand on plugins, that is not met: ``run`` stops on it, other commands say it in one line."""

    name: str
    distribution: str
    version: str
    error: PluginError

    def __str__(self) -> str:
        return first_line(self.error.message)


def first_line(text: str) -> str:
    """The first line of a text that may be empty."""
    return next(iter(text.strip().splitlines()), "")


def location_of(function: Any) -> str:
    """``file:line`` of a function, looking through decorators that keep ``__wrapped__``; empty for one written in C."""
    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def location_of_fault(error: BaseException, package: str = "") -> str:
    """``file:line`` at which an exception arose: the innermost frame in ``package``, or of all if none is given."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 1}"
    frames = list(traceback.walk_tb(error.__traceback__))
    for frame, line in reversed(frames):
        if package and frame.f_globals.get("__name__", "").partition(".")[0] == package:
            return f"{frame.f_code.co_filename}:{line}"
    own = [(frame, line) for frame, line in frames if not frame.f_code.co_filename.startswith("<frozen ")]
    return f"{own[-1][0].f_code.co_filename}:{own[-1][1]}" if own and not package else ""


def describe_fault(error: BaseException) -> str:
    """``ValueError: text`` in one line."""
    if isinstance(error, SystemExit):
        return f"SystemExit({error.code!r})"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    line = first_line(text or "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def add_note(error: BaseException, note: str) -> None:
    """Attach a note to an exception as ``BaseException.add_note`` does, on Python 3.10 too."""
    notes = getattr(error, "__notes__", None)
    if notes is None:
        error.__notes__ = notes = []
    notes.append(note)


def is_named(info: PluginInfo, names: Iterable[str]) -> bool:
    """Whether one of ``names`` is the name of a plugin or of its distribution, however spelt."""
    own = {normalized(name) for name in (info.name, info.distribution) if name}
    return any(normalized(name) in own for name in names)


def normalized(distribution: str) -> str:
    """The name of a distribution in the form in which two spellings of it are equal."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def did_you_mean(word: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str:
    """``; did you mean 'x'?`` for the nearest candidate, or nothing."""
    match = nearest(word, candidates, cutoff=cutoff)
    return f"; did you mean {match!r}?" if match else ""


def nearest(word: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The candidate most like ``word``, or an empty string."""
    import difflib  # only wanted once something is wrong

    return next(iter(difflib.get_close_matches(word, list(candidates), n=1, cutoff=cutoff)), "")
