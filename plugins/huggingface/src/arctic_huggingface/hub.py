"""Names and folders: where a model, tokenizer or dataset that a recipe names is to be found, and why it was not."""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_huggingface.reachable import offline_if_unreachable
from arctic_training.errors import ArcticError, Problem, RecipeError
from arctic_training.retention import MANIFEST, numbered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Refusal = Callable[[str, str], ArcticError]
    """Makes an error of a message and a remedy."""

CONFIG_NAME = "config.json"
"""What transformers knows a model's folder by."""


def refusal(run: Any, key: str) -> Refusal:
    """Makes errors about what the recipe gives for ``key``, with its place in the recipe."""
    path = tuple(key.split("."))
    recipe = getattr(run.config, "recipe", None)

    def refused(message: str, remedy: str) -> ArcticError:
        if recipe is None:
            return RecipeError(Problem(message, path=key, remedy=remedy))
        return RecipeError(recipe.problem(path, message, remedy=remedy))

    return refused


def local_path(name: str, run: Any, refused: Refusal) -> Path | None:
    """The file or folder that ``name`` stands for, or None when it is a name on the hub.

    A relative path is looked for beside the recipe, then in the working directory.

    Args:
        name: as the recipe has it.
        run: the run.
        refused: makes the error for a name that can only be a path (``./x``, ``/x``, ``a/b/c``) where nothing is there.
    """
    path = Path(name).expanduser()
    places = list(dict.fromkeys(folder / path for folder in search_folders(run)))
    for place in places:
        if place.exists():
            return place
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise refused(
            f"there is no {' and no '.join(str(place) for place in places)}",
            "correct the path; a relative one starts beside the recipe or in the working directory",
        )
    return None


def refuse_checkpoints(name: str, folder: Path, refused: Refusal) -> None:
    """Refuse a folder of checkpoints in place of a model, and a checkpoint that training goes on from.

    Args:
        name: the model, as the recipe has it.
        folder: what it stands for.
        refused: makes the error.
    """
    if (folder / CONFIG_NAME).is_file():
        return
    there = numbered(folder)
    exported = [step for step, path in there.items() if (path / CONFIG_NAME).is_file()]
    if exported:
        raise refused(f"{name} holds checkpoints", f"name one: {Path(name) / there[max(exported)].name}")
    if there or (folder / MANIFEST).is_file():
        what = "holds checkpoints" if there else "is a checkpoint"
        remedy = f"make a model of it with `arctic export {name} FOLDER` and name that; resume goes on with training"
        raise refused(f"{name} {what} that training goes on from, and no model", remedy)


def search_folders(run: Any) -> list[Path]:
    """Where relative paths of a recipe start: its own folder, then the working directory."""
    recipe = getattr(run.config, "recipe", None)
    folders = [Path(recipe.directory)] if recipe is not None and recipe.path is not None else []
    return [*folders, Path.cwd()]


WHOLE_LOG = "the log has the whole of it"
"""What to do about what a library says and nobody foresaw."""


@contextmanager
def found(what: str, refused: Refusal, remedy: str = WHOLE_LOG, *, on_hub: bool = False) -> Iterator[None]:
    """Turn what the libraries raise when they cannot find or read something into an error that says what to do.

    Args:
        what: the thing looked for, such as ``model 'name'``.
        refused: makes the error.
        remedy: what to do when it is there and cannot be used.
        on_hub: whether it is looked for on the hub; then that has to answer within seconds, or the cache has to do.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        StrictDataclassError,
    )
    from safetensors import SafetensorError

    def explained(reason: str, remedy: str) -> ArcticError:
        return refused(f"{what}: {reason}", remedy)

    try:
        with offline_if_unreachable(on_hub):
            yield
    except ArcticError:
        raise
    except Exception as error:
        chain = list(_chain(error))
        if any(isinstance(link, GatedRepoError) for link in chain):
            raise explained(
                "access to it is restricted",
                "ask for access on its page, then log in with `hf auth login` or set HF_TOKEN",
            ) from error
        if any(isinstance(link, RevisionNotFoundError) for link in chain):
            raise explained("the hub has no such revision of it", "correct the revision") from error
        if any(isinstance(link, RepositoryNotFoundError) for link in chain):
            raise explained(
                "there is no such folder, and the hub does not know it (or hides it from you)",
                "correct the name, or log in with `hf auth login` if it is private",
            ) from error
        if "trust_remote_code" in str(error):
            raise explained(
                "it needs Python code of its own, which is not run unasked",
                "read that code, then set trust_remote_code: true in this section",
            ) from error
        if _is_offline(chain):
            raise explained(f"it is no local folder, and {_why_offline()}", _OFFLINE_REMEDY) from error
        known = (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError)
        if isinstance(error, (*known, SafetensorError, StrictDataclassError)):
            raise explained(_first_line(error), remedy) from error
        raise


@contextmanager
def no_pickles(name: str, location: str | Path, refused: Refusal) -> Iterator[None]:
    """Tell of weights that are there and are not read, since they are pickles, where only safetensors are asked for.

    Args:
        name: the model, as the user has it.
        location: the folder, or the name on the hub.
        refused: makes the error.
    """
    try:
        yield
    except OSError as error:
        folder = Path(location)
        there = any(folder.glob("*.bin")) if folder.is_dir() else "use_safetensors" in str(error)
        if not there or "safetensors" not in str(error):
            raise
        raise weights_are_pickles(name, refused) from error


def weights_are_pickles(name: str, refused: Refusal) -> ArcticError:
    """The error for a model whose weights would have to be unpickled."""
    return refused(
        f"model {name!r}: its weights are pickles (*.bin), which can run what is in them",
        "use a model with safetensors, or say --trust if you know who wrote them",
    )


def note_remote_code(
    run: Any, part: str, cls: type, name: str, revision: str | None, commit: str | None = None
) -> None:
    """Note for the run's record which code that came with a model is run, if any is.

    Args:
        run: the run.
        part: ``model`` or ``tokenizer``.
        cls: the class of what was built.
        name: where it comes from, as the recipe has it.
        revision: what the recipe asks for.
        commit: what that came to, where the library knows it.
    """
    package, _, rest = cls.__module__.partition(".")
    if package != "transformers_modules":
        return
    from arctic_training.source_code import source_hash

    in_module = next((word for word in rest.split(".") if re.fullmatch(r"_?[0-9a-f]{40}", word)), "").lstrip("_")
    run.remote_code[part] = {
        "name_or_path": name,
        "revision": revision,
        "commit": commit or in_module or None,
        "class": cls.__qualname__,
        "sha256": source_hash(cls),
    }
    pinned = f"at {commit or in_module}" if commit or in_module else "of a folder"
    run.say(f"{part}: runs code that comes with {name}, {pinned} (trust_remote_code)")


@contextmanager
def progress_bars(run: Any) -> Iterator[None]:
    """Show the libraries' own bars to people who wait for large files, and to nobody else."""
    if sys.stderr.isatty() and run.world.is_first:
        yield
    else:
        with no_progress_bars():
            yield


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the bars of transformers."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


_OFFLINE_REMEDY = (
    "download it before (`hf download NAME`) where there is a network, give the path of a local folder, "
    "or unset HF_HUB_OFFLINE"
)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_offline(chain: list[BaseException]) -> bool:
    names = {
        "LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "ConnectTimeout",
        "ReadTimeout", "ProxyError", "MaxRetryError", "NameResolutionError", "gaierror",
    }  # fmt: skip
    return any(base.__name__ in names for link in chain for base in type(link).__mro__)


def _why_offline() -> str:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{name} is set and it is not in the cache"
    return "the hub cannot be reached and it is not in the cache"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):  # what it announces stands in the next
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__
