"""Divides the words after ``arctic run`` among the recipe, its overrides, the launcher and arctic itself.

The launcher's options are unknown here, so whether one takes a value is read from what follows it: a word that is
neither an option nor an override is its value. ``--option=value`` says it beyond doubt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

import attrs
import click

from arctic_training.overrides import TORN, torn_override

_KEY_PATH = re.compile(r"[a-z_][a-z0-9_]*(\.[\w-]+)*=")
"""How an override begins. All keys at the top of a recipe are lower case, so FOO=1 after an option is a value."""

_RECIPE = re.compile(r".+\.ya?ml", re.IGNORECASE)


@attrs.frozen
class Words:
    """A command line divided.

    Attributes:
        recipe: path of the recipe.
        overrides: ``key=value`` texts, in their order.
        launcher: what goes to the launcher, untouched and in its order.
        own: options of arctic with their values.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    own: tuple[str, ...] = ()


def divide(words: Sequence[str], *, with_value: Collection[str] = (), flags: Collection[str] = ()) -> Words:
    """Divide a command line.

    Args:
        words: what follows ``arctic run``.
        with_value: options of arctic that take a value.
        flags: options of arctic that stand alone.

    Raises:
        click.UsageError: there is no recipe or more than one, or an option is nearly one of arctic's.
    """
    own: list[str] = []
    overrides: list[str] = []
    launcher: list[str] = []
    recipe: str | None = None
    awaits_value = ""  # the launcher's option just read, which the next word may belong to
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            launcher.extend(words[index:])
            break
        if word in with_value:
            own.extend(words[index - 1 : index + 1])
            index += 1
            awaits_value = ""
        elif _is_own(word, with_value, flags):
            own.append(word)
            awaits_value = ""
        elif word.startswith("-") and word != "-":
            _refuse_misspelling(word, {*with_value, *flags})
            launcher.append(word)
            awaits_value = "" if "=" in word else word
        elif awaits_value and (awaits_value.endswith("args") or not _KEY_PATH.match(word)):
            launcher.append(word)
            awaits_value = ""
        elif word.startswith("="):
            _refuse_torn(words)
            raise click.UsageError(f"there is no key before the '=' of {word!r}")
        elif recipe is None and not _KEY_PATH.match(word):
            recipe, awaits_value = word, ""
        elif "=" in word:
            overrides.append(word)
            awaits_value = ""
        else:
            _refuse_torn(words)
            raise click.UsageError(f"there are two recipes, {recipe!r} and {word!r}; overrides have the form key=value")
    if recipe is None:
        recipe = _recipe_taken_for_a_value(launcher)
    return Words(recipe, tuple(overrides), tuple(launcher), tuple(own))


def _is_own(word: str, with_value: Collection[str], flags: Collection[str]) -> bool:
    """Whether a word is an option of arctic: as it is, as ``-pVALUE``, or as several short ones in one (``-vv``)."""
    if word in flags:
        return True
    if word.startswith("--"):
        return word.partition("=")[0] in with_value
    if not word.startswith("-") or len(word) < 3:
        return False
    return word.startswith("-pno:") or all(f"-{letter}" in flags for letter in word[1:])


def _refuse_misspelling(word: str, known: Collection[str]) -> None:
    """A misspelt ``--no-code`` must not end up with the launcher, as if code were refused."""
    name = word.partition("=")[0]
    spelt = name.replace("_", "-").lower()
    near = difflib.get_close_matches(spelt, known, n=1, cutoff=0.86) if name.startswith("--") else []
    if near:
        raise click.UsageError(f"there is no option {name}; did you mean {near[0]}?")


def _refuse_torn(words: Sequence[str]) -> None:
    """A shell makes three words of ``optimizer.lr = 1e-4``, and of none of them can be told what it is for."""
    if torn := torn_override(words):
        raise click.UsageError(f"override '{torn}': {TORN}")


def _recipe_taken_for_a_value(launcher: list[str]) -> str:
    """The recipe, when it stands behind an option that takes no value: ``--force_multi recipe.yaml``."""
    for index, word in enumerate(launcher):
        if index and _RECIPE.fullmatch(word) and launcher[index - 1].startswith("-") and not word.startswith("-"):
            return launcher.pop(index)
    raise click.UsageError("a recipe is missing: arctic run RECIPE [key=value ...]")
