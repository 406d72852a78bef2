"""Every error that Arctic raises on purpose.

An error says what is wrong, where it is, and what to do about it; its class decides the exit code of the command.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs


class ArcticError(Exception):
    """A fault that Arctic can explain.

    Args:
        message: what is wrong, in one sentence.
        where: the place, such as ``recipe.yaml:3:5`` or ``arctic-plugin-sft 0.1.0``.
        remedy: what to do about it, in one sentence.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  {self.remedy}" if self.remedy else head

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # exceptions with keyword arguments do not pickle by themselves; ranks and workers send them
        return _rebuild, (type(self), self.__dict__.copy())


class UsageError(ArcticError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = 2


class PluginError(ArcticError):
    """A plugin cannot be imported, registered, found, or answered a hook wrongly."""

    exit_code = 3


class DataError(ArcticError):
    """A data source is missing or holds rows that cannot be used."""

    exit_code = 4


class BadRow(DataError):
    """One row of the data cannot be used. ``data.on_bad_row`` says whether that ends the run or is counted.

    Args:
        message: what is wrong with the row, in one sentence.
        category: what rows of this kind are counted under, the same words for each: ``malformed JSON``.
        where: its place, as ``file:line`` where the source knows it.
        remedy: what to do about it.
    """

    def __init__(self, message: str, *, category: str, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message, where=where, remedy=remedy)
        self.category = category


class CheckpointError(ArcticError):
    """A checkpoint cannot be written, found, trusted or read."""

    exit_code = 5


class DiskError(ArcticError):
    """A file of the run or of prepared data cannot be written: its disk is full or read-only."""

    exit_code = 5


class TrainingStopped(ArcticError):
    """Training ended itself: a loss that is not finite, a limit, the kill switch."""

    exit_code = 6


class StoppedOnRequest(TrainingStopped):
    """Somebody asked the run to stop, and it did."""


class Interrupted(ArcticError):
    """Somebody stopped the run with a signal; its exit code is 128 and the signal's number.

    Args:
        message: by what and when.
        signal: the number of the signal.
        remedy: what was saved.
    """

    def __init__(self, message: str, *, signal: int, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.exit_code = 128 + signal


@attrs.frozen
class Problem:
    """One thing wrong in a recipe. Lines and columns count from 1; 0 means that the recipe came as a mapping."""

    message: str
    path: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    remedy: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        parts = [part for part in (place, self.path, self.message) if part]
        return ": ".join(parts) + (f"; {self.remedy}" if self.remedy else "")


class RecipeError(ArcticError):
    """A recipe is wrong, with every problem found in it, in the order of its lines.

    Attributes:
        is_complete: whether all was checked; some checks need keys that are right.
    """

    exit_code = 2

    def __init__(self, problems: Iterable[Problem] | Problem | str, *, is_complete: bool = True) -> None:
        self.is_complete = is_complete
        if isinstance(problems, str):
            problems = Problem(problems)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems = sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def _rebuild(cls: type[ArcticError], state: dict) -> ArcticError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state["message"],)
    return error
