"""What everything that a recipe selects by its ``type`` has in common: a kind, a name, a config class, a run.

Trainers, factories, engines, checkpoint engines, callbacks and launchers are components; the ABC of each kind stands in
the module of its stage.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from abc import ABC
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from arctic_training.config import Config
from arctic_training.errors import PluginError

if TYPE_CHECKING:
    import torch

    from arctic_training.run import Run
    from arctic_training.trainer import Trainer


ComponentClass = TypeVar("ComponentClass", bound=type)

_MARK = "__arctic_registered__"


class Component(ABC):
    """A thing that a recipe selects by name.

    ``kind`` is set by the ABC of each kind, ``name`` is what a recipe's ``type`` says. The annotation of ``config``
    names the class that the recipe's section is structured into.
    """

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    config: Config

    def __init__(self, config: Any, run: Run) -> None:
        self.config = config
        self.run = run

    @property
    def trainer(self) -> Trainer:
        """The trainer of this run."""
        return self.run.trainer

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.run.device

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.run.world.size

    @property
    def global_rank(self) -> int:
        """Rank of this process among all, from 0."""
        return self.run.world.rank

    @classmethod
    def config_class(cls) -> type[Config]:
        """The class that the annotation of ``config`` names, the nearest in the line of bases."""
        classes = cls.declared("config")
        if len(classes) != 1 or not issubclass(classes[0], Config):
            raise PluginError(
                f"{cls.__qualname__} must annotate `config` with one Config class",
                where=source_of(cls),
                remedy="write `config: MyConfig` with `class MyConfig(Config)`",
            )
        return classes[0]

    @classmethod
    def declared(cls, attribute: str) -> tuple[type, ...]:
        """The classes that the annotation of ``attribute`` allows, the default first; empty when there is none.

        ``A``, ``A | B``, ``Union[A, B]`` and the same as text are understood, inherited annotations too.

        Raises:
            PluginError: the annotation cannot be resolved to classes.
        """
        for base in cls.__mro__:
            annotation = inspect.get_annotations(base).get(attribute)
            if annotation is not None:
                return _classes_of(_resolved(annotation, base, attribute), base, attribute)
        return ()


def register(cls: ComponentClass) -> ComponentClass:
    """Mark a component class for use in recipes, also where it is imported from another module.

    The mark is a note on the class and nothing more: a run registers the classes that it finds in the recipe's code or
    in the script that calls ``get_config``.

    Raises:
        TypeError: it is no component class.
    """
    if not (isinstance(cls, type) and issubclass(cls, Component)):
        raise TypeError(f"@register marks component classes such as subclasses of Trainer, not {cls!r}")
    setattr(cls, _MARK, cls.__qualname__)
    return cls


def declared_classes(namespace: Mapping[str, Any], module: str) -> list[type[Component]]:
    """The component classes of a namespace that are its own: declared in ``module``, or marked with ``register``."""
    return list(
        dict.fromkeys(
            value
            for value in namespace.values()
            if isinstance(value, type)
            and issubclass(value, Component)
            and not inspect.isabstract(value)
            and (value.__module__ == module or vars(value).get(_MARK))
        )
    )


def source_of(cls: type) -> str:
    """``file:line`` of a class, or its module when it has no file."""
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return cls.__module__


def _resolved(annotation: Any, base: type, attribute: str) -> Any:
    if not isinstance(annotation, str):
        return annotation
    module = sys.modules.get(base.__module__)
    names = {**vars(typing), **(vars(module) if module else {}), base.__name__: base, **vars(base)}
    try:
        return eval(annotation, names)
    except Exception as error:
        raise PluginError(
            f"the annotation `{attribute}: {annotation}` of {base.__qualname__} cannot be resolved: {error}",
            where=source_of(base),
            remedy="import the class at module level, where the annotation can see it",
        ) from error


def _classes_of(annotation: Any, base: type, attribute: str) -> tuple[type, ...]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType) or origin is type:
        members = typing.get_args(annotation)
    elif origin is typing.ClassVar:
        return _classes_of(_resolved(typing.get_args(annotation)[0], base, attribute), base, attribute)
    else:
        members = (annotation,)
    for member in members:
        if not isinstance(member, type):
            raise PluginError(
                f"the annotation `{attribute}` of {base.__qualname__} must name classes, not {member!r}",
                where=source_of(base),
                remedy="write `A` or `A | B`",
            )
    return tuple(members)
