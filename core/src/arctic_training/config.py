"""Classes that the sections of a recipe are structured into, and how a section declares its keys.

A config class stands beside the component it configures. Its fields are the keys of the section; what is said about a
key (documentation, bounds, aliases) is read here by the structuring, the reference in the documentation and the JSON
schema.
"""

from __future__ import annotations

import copy
import inspect
import sys
import typing
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

from arctic_training.errors import PluginError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        """Only type checkers read this; typing has it from Python 3.11 on."""
        return lambda cls: cls


REQUIRED: Any = attrs.NOTHING
_METADATA = "arctic"


def key(
    default: Any = REQUIRED,
    *,
    factory: Callable[..., Any] | None = None,
    doc: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    aliases: tuple[str, ...] = (),
    deprecated: str = "",
    later: str = "",
    needs: str = "",
    when_given: bool = False,
    affects_rows: bool = True,
) -> Any:
    """Declare a key of a section.

    Args:
        default: the value when the recipe does not give the key; without it the key is required.
        factory: makes the default, where a fresh object is wanted for each section.
        doc: what the key means, with its unit, in a sentence or two.
        ge, gt, le, lt: bounds of a number, or of each number in a list.
        aliases: other names under which a recipe may give the key.
        deprecated: what to do instead; a recipe that gives the key gets a warning.
        later: the feature and the plugin that will bring it. The key validates, a run refuses more than its default.
        needs: the distribution whose plugin makes the key work. The key validates without it, a run refuses more than
            its default.
        when_given: giving the key does something even with its default, so that a resolved recipe must not add it.
        affects_rows: of keys of data and its sources, whether prepared rows can depend on it. The cache of prepared
            rows is keyed by those that do.
    """
    metadata = {
        _METADATA: {
            "doc": doc,
            "bounds": {name: bound for name, bound in zip(_BOUNDS, (ge, gt, le, lt), strict=True) if bound is not None},
            "aliases": aliases,
            "deprecated": deprecated,
            "later": later,
            "needs": needs,
            "when_given": when_given,
            "affects_rows": affects_rows,
        }
    }
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


_BOUNDS = ("ge", "gt", "le", "lt")


def _make_attrs_class(cls: type) -> None:
    # slots=False: attrs then works on the class in place, so that it can be done while the class is being made.
    attrs.define(cls, slots=False, kw_only=True, field_transformer=_copy_mutable_defaults)


def _copy_mutable_defaults(cls: type, fields: list[attrs.Attribute]) -> list[attrs.Attribute]:
    """A plain ``names: list[str] = []`` must not be shared by all sections."""

    def transformed(field: attrs.Attribute) -> attrs.Attribute:
        if not isinstance(field.default, (list, dict, set)):
            return field
        value = field.default
        return field.evolve(default=attrs.Factory(lambda: copy.deepcopy(value)))

    return [transformed(field) for field in fields]


@dataclass_transform(kw_only_default=True, field_specifiers=(key,))
class Config:
    """A section of a recipe. Subclasses declare its keys as annotated fields, with ``key()`` or a plain default.

    ``given`` holds the names of the keys that the recipe set, as opposed to those that took their default;
    ``spelling`` the name that the recipe used for each, which may be an alias; ``section_path`` where the section
    stands in the recipe, as keys and numbers.
    """

    given: ClassVar[frozenset[str]] = frozenset()
    spelling: ClassVar[Mapping[str, str]] = {}
    section_path: ClassVar[tuple[str | int, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _make_attrs_class(cls)

    def check(self) -> Iterable[tuple[str, str]]:
        """Yield ``(key, message)`` for values that are right by themselves and contradict each other."""
        return ()

    def doubts(self) -> Iterable[tuple[str, str]]:
        """Yield ``(key, message)`` for values that a run takes and whose writer may expect something else of them."""
        return ()


@attrs.frozen
class Place:
    """Where in a recipe a section stands: the key that holds it, and what its ``type`` may be.

    Attributes:
        key: the key of the surrounding section, such as ``eval_sources``.
        names: the names registered for this kind.
        default: the ``type`` of a section that gives none.
    """

    key: str
    names: Collection[str] = ()
    default: str = ""


class ComponentConfig(Config):
    """A section whose class depends on its ``type``.

    ``component`` is the class that was chosen; it is set when the recipe is resolved and is no key.
    """

    kind: ClassVar[str] = ""
    component: ClassVar[type | None] = None
    may_stand_alone: ClassVar[bool] = False
    """Whether a list of such sections may be given as the one section that it holds."""

    type: str = key("", doc="Name of the component that this section configures.")

    @classmethod
    def from_shorthand(cls, value: Any, place: Place) -> Mapping[str, Any]:
        """The mapping that a value which is not a mapping stands for.

        Raises:
            ValueError: there is no such shorthand; the message says what was expected.
        """
        raise ValueError("expected a mapping")

    @classmethod
    def defaults_at(cls, place: Place) -> Mapping[str, Any]:
        """Defaults that differ from place to place, for keys that the recipe does not give."""
        return {}


@attrs.frozen
class KeyProblem:
    """What a ``FreeConfig`` found wrong: the path below the section, the message, and whether key or value is at
    fault."""

    path: tuple[Any, ...]
    message: str
    of: Literal["key", "value"] = "value"
    remedy: str = ""


class FreeConfig(Config):
    """A section whose keys another library defines, such as ``deepspeed:``.

    A plugin registers a subclass through ``arctic_register_config_sections``. When the trainer's own config has a key
    of the section's name, the checked value is stored there; else in ``config.sections``. An absent or empty section
    is not checked.
    """

    @classmethod
    @abstractmethod
    def structure_free(cls, mapping: Mapping[str, Any]) -> tuple[Any, Iterable[KeyProblem]]:
        """The value to store, and what is wrong with it.

        Args:
            mapping: the section with every text that is a number converted to one.
        """

    @classmethod
    def contradictions(cls, value: Any, config: Any) -> Iterable[KeyProblem]:
        """What is wrong with the section beside the rest of the recipe; asked when both are right by themselves.

        Args:
            value: what ``structure_free`` gave.
            config: the trainer's configuration, of whose number of ranks nothing is known yet.
        """
        return ()

    @classmethod
    def known_keys(cls) -> Iterable[str]:
        """The keys at the top of the section, to tell whoever gives one of them elsewhere."""
        return ()


@attrs.frozen
class KeyInfo:
    """What a config class says about one of its keys. ``default`` is ``REQUIRED`` for a key that has none."""

    name: str
    type: Any
    default: Any
    doc: str = ""
    bounds: Mapping[str, float] = attrs.field(factory=dict)
    aliases: tuple[str, ...] = ()
    deprecated: str = ""
    later: str = ""
    needs: str = ""
    when_given: bool = False
    affects_rows: bool = True

    @property
    def required(self) -> bool:
        """Whether a recipe has to give the key."""
        return self.default is REQUIRED


def keys_of(config_class: type[Config]) -> tuple[KeyInfo, ...]:
    """The keys of a config class in the order of their declaration, those of its bases first.

    Raises:
        PluginError: the annotation of a key cannot be resolved.
    """
    return _keys_of(typing.cast("Any", config_class))


@cache
def _keys_of(config_class: Any) -> tuple[KeyInfo, ...]:
    fields = [field for field in attrs.fields(config_class) if field.init]
    hints = _type_hints(config_class, {field.name for field in fields})
    return tuple(
        KeyInfo(
            name=field.name,
            type=hints[field.name],
            default=_default_of(field),
            **field.metadata.get(_METADATA, {}),
        )
        for field in fields
    )


def default_value(info: KeyInfo) -> Any:
    """A fresh copy of a key's default."""
    return copy.deepcopy(info.default)


def walk(config: Config, path: tuple = ()) -> Iterator[tuple[tuple, KeyInfo, Any]]:
    """Every key of a structured section and of the sections inside it: its path, what is said about it, its value."""
    for info in keys_of(type(config)):
        value = getattr(config, info.name)
        yield (*path, info.name), info, value
        if isinstance(value, Config):
            yield from walk(value, (*path, info.name))
        for index, item in enumerate(value if isinstance(value, (list, tuple)) else ()):
            if isinstance(item, Config):
                yield from walk(item, (*path, info.name, index))


def annotate(config: Config, **attributes: Any) -> None:
    """Set what a config remembers besides its keys, such as ``given`` and ``component``."""
    vars(config).update(attributes)


def _default_of(field: attrs.Attribute) -> Any:
    make = getattr(field.default, "factory", None)  # what attrs.Factory holds
    return make() if make else field.default


def _type_hints(config_class: type[Config], names: Collection[str]) -> dict[str, Any]:
    """The types of these fields. Other annotations (``ClassVar``) may name what only type checkers import."""
    hints: dict[str, Any] = {}
    for base in reversed(config_class.__mro__):
        own = {name: hint for name, hint in inspect.get_annotations(base).items() if name in names}
        stand_in = type(base.__name__, (), {"__annotations__": own, "__module__": base.__module__})
        try:
            hints |= typing.get_type_hints(stand_in)
        except Exception as error:
            raise PluginError(
                f"the annotations of {config_class.__qualname__} cannot be resolved: {error}",
                where=getattr(sys.modules.get(base.__module__), "__file__", None) or base.__module__,
                remedy="import the types of its keys at module level, outside `if TYPE_CHECKING`",
            ) from error
    return hints
