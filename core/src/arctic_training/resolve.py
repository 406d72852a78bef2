"""From a recipe to the configuration of a run: each section structured by the class of the component it selects.

Pure, and without torch: it imports the modules of the components that the recipe selects and looks at nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from arctic_training._exports import KNOWN_COMPONENTS, KNOWN_KEYS, KNOWN_SECTIONS
from arctic_training.config import ComponentConfig, Config, FreeConfig, KeyProblem, Place, annotate, keys_of
from arctic_training.errors import PluginError
from arctic_training.human_numbers import convert_leaves
from arctic_training.misplaced import found_elsewhere
from arctic_training.recipe import Recipe, dotted
from arctic_training.redaction import PLACEHOLDER
from arctic_training.registry import UnknownComponent
from arctic_training.structuring import INVALID, Choice, Structurer
from arctic_training.wording import found, nearest

if TYPE_CHECKING:
    from arctic_training.plugins import PluginManager
    from arctic_training.trainer import TrainerConfig

DEFAULT_TRAINER = "sft"

TRAINER_ATTRIBUTES = {
    "model": "model_factory",
    "tokenizer": "tokenizer_factory",
    "data": "data_factory",
    "loss": "loss_factory",
    "optimizer": "optimizer_factory",
    "scheduler": "scheduler_factory",
    "checkpoint": "checkpoint_engine",
}
"""The annotation of a trainer that names the classes it works with, by kind; the first is the default."""

AUTOMATIC_KINDS = ("engine", "checkpoint")
"""Kinds for which ``type: auto`` leaves the choice to the run."""


def resolve(recipe: Recipe, plugins: PluginManager, *, code: bool = True, trust: bool = False) -> TrainerConfig:
    """Structure a recipe into the configuration of its trainer.

    The result remembers, besides its keys: ``recipe``, ``plugin_manager``, ``trainer_class``, ``warnings`` (lines for
    the user), ``sections`` (what plugins contributed), ``loaded_code`` (the recipe's Python file) and ``trusted``. Each
    section with a ``type`` remembers its ``component``.

    Args:
        recipe: what ``load_recipe`` read.
        plugins: the manager of this run, which has done what the recipe's ``plugins`` section says.
        code: whether the Python file of the recipe may be loaded.
        trust: whether what somebody else could have put there may be run and unpickled.

    Raises:
        RecipeError: with every problem, each with its place, what was expected and the nearest key.
        PluginError: the code of a selected component cannot be imported or is no component; or the trainer is unknown
            and a plugin is broken or missing.
    """
    from arctic_training.code import load_code

    loaded_code = load_code(recipe, plugins, allowed=code, trust=trust)
    sections = _RecipeSections(recipe, plugins)
    structurer = Structurer(recipe, sections)
    trainer = _choose_trainer(recipe, sections, structurer, _left_out(recipe, plugins, code))
    if structurer.problems:  # a plugin that is missing or broken explains a trainer that nobody offers
        plugins.refuse_broken()
    structurer.finish()
    sections.trainer = trainer
    sections.contributed = classes = _section_classes(plugins, trainer.config_class())
    contributed, data = _contributed(recipe, classes, trainer.config_class(), structurer)
    config = structurer.keys(data, trainer.config_class(), also=classes)
    _refuse_placeholders(recipe, structurer)
    structurer.finish()
    if "type" not in config.given:
        config.type = own_name(trainer)
    own_keys = {info.name for info in keys_of(type(config))}
    for name in own_keys & contributed.keys():
        setattr(config, name, contributed.pop(name))
        annotate(config, given=config.given | {name})
    if trainer.has_own_loss and "loss" in config.given:
        words = f"has no effect on the trainer {own_name(trainer)!r}, whose loss is its own: leave it out"
        structurer.refuse(words, path=("loss",), of="key")
    if config.deepspeed and config.engine.type == "torch":
        structurer.refuse("has no effect on the engine 'torch': leave one of them out", path=("deepspeed",), of="key")
    for name, section in classes.items():
        value = contributed.get(name) or getattr(config, name, None)
        if issubclass(section, FreeConfig) and value:
            _refuse(section.contradictions(value, config), name, structurer)
    structurer.finish()
    annotate(
        config,
        recipe=recipe,
        plugin_manager=plugins,
        trainer_class=trainer,
        warnings=structurer.warnings,
        sections=contributed,
        loaded_code=loaded_code,
        trusted=trust,
    )
    for _, problems in plugins.collect("arctic_check_recipe", config=config):
        for problem in problems or ():
            structurer.refuse(problem.message, path=problem.path, of=problem.of, remedy=problem.remedy)
    structurer.finish(is_complete=True)
    return config


def _refuse_placeholders(recipe: Recipe, structurer: Structurer) -> None:
    """A recorded recipe has no secrets; whoever runs it again has to give them again."""
    for path, node in recipe.walk():
        if isinstance(node.content, str) and PLACEHOLDER in node.content:
            structurer.refuse(
                "the secret was left out when this recipe was recorded",
                path=path,
                remedy=f"give it again, as in {dotted(path)}=...",
            )


def own_name(component: Any) -> str:
    """The name that a class is registered under: its own ``name``, not that of its base, else the name of the class."""
    return vars(component).get("name") or component.__name__


class _RecipeSections:
    """Chooses the class of each section by its ``type``, the trainer's annotations and what is registered."""

    def __init__(self, recipe: Recipe, plugins: PluginManager) -> None:
        self.recipe = recipe
        self.registry = plugins.registry
        self.trainer: Any = None
        self.contributed: Mapping[str, type[Config]] = {}
        self.data_factory: Any = None

    def place(self, config_class: type[ComponentConfig], path: tuple) -> Place:
        """Where a section stands; its default source comes from the data factory, which was chosen before it."""
        name = next((part for part in reversed(path) if isinstance(part, str)), "")
        default = getattr(self.data_factory, "default_source", "") if config_class.kind == "data_source" else ""
        return Place(name, self.registry.names(config_class.kind), default)

    def choose(self, config_class: type[ComponentConfig], name: str, path: tuple) -> Choice:
        """The classes of a section."""
        kind = config_class.kind
        declared = self._declared(kind, path)
        if kind in AUTOMATIC_KINDS and name in ("", "auto") and not (declared and not inspect.isabstract(declared[0])):
            return Choice(config_class, None, "auto")
        component = self._named(kind, name, declared) if name else self._default(kind, declared)
        own_class = component.config_class()
        if not issubclass(own_class, config_class):
            raise PluginError(
                f"the config class {own_class.__qualname__} of {component.__qualname__} must be a subclass of "
                f"{config_class.__qualname__}",
                where=component.__module__,
                remedy=f"derive it from {config_class.__qualname__}",
            )
        if kind == "data":
            self.data_factory = component
        return Choice(own_class, component, name or own_name(component))

    def unknown_key(self, path: tuple) -> str:
        """Who has a key that this recipe's section does not have."""
        *section, name = path
        if not isinstance(name, str):
            return ""
        if not section and name in KNOWN_SECTIONS:
            return f"the section comes with {KNOWN_SECTIONS[name]}: pip install {KNOWN_SECTIONS[name]}"
        owner = KNOWN_KEYS.get((".".join(str(part) for part in section), name))
        return f"it is a key of the trainer {owner[0]!r}, which comes with {owner[1]}" if owner else ""

    def key_elsewhere(self, path: tuple) -> str:
        """The sections of this recipe that have the key."""
        return "" if self.trainer is None else found_elsewhere(self, self.trainer.config_class(), path)

    def unknown_type(self, kind: str, name: str) -> str:
        """What to say about a ``type`` that is not registered."""
        message = f"there is no {_words(kind)} {name!r}"
        if distribution := KNOWN_COMPONENTS.get((kind, name)):
            return f"{message} here: it comes with {distribution}; pip install {distribution}"
        known = self.registry.names(kind)
        near = nearest(name, known)
        return f"{message}; {near or 'there are ' + ', '.join(known) if known else 'none is installed'}"

    def registered(self, kind: str, name: str) -> Any:
        """The class that goes by a name, or by ``distribution:name``.

        Raises:
            ValueError: there is none.
        """
        if name.rpartition(":")[2] not in self.registry.names(kind):
            raise ValueError(self.unknown_type(kind, name))
        try:
            return self.registry.get(kind, name)
        except UnknownComponent as error:
            raise ValueError(f"{error.message}; {error.remedy}") from None

    def _declared(self, kind: str, path: tuple) -> tuple[type, ...]:
        """The classes that the trainer's annotation allows in this section, the default first."""
        if self.trainer is None or kind not in TRAINER_ATTRIBUTES:
            return ()
        own = self.trainer.declared(f"{path[0]}_factory") if path and isinstance(path[0], str) else ()
        return own or self.trainer.declared(TRAINER_ATTRIBUTES[kind])

    def _named(self, kind: str, name: str, declared: tuple[type, ...]) -> Any:
        for candidate in declared:
            if own_name(candidate) == name and not inspect.isabstract(candidate):
                return candidate
        component = self.registered(kind, name)
        if declared and not issubclass(component, declared) and self.recipe.data.get("skip_validation") is not True:
            allowed = " or ".join(candidate.__qualname__ for candidate in declared)
            raise ValueError(
                f"the trainer {self.trainer.name!r} works with {allowed}, and {name!r} is none; "
                "'skip_validation: true' lets it through"
            )
        return component

    def _default(self, kind: str, declared: tuple[type, ...]) -> Any:
        if declared and not inspect.isabstract(declared[0]):
            return declared[0]
        if kind == "data_source" and self.data_factory is not None and self.data_factory.default_source:
            return self._named(kind, self.data_factory.default_source, declared)
        from arctic_training.builtin import DEFAULT_TYPES

        names = DEFAULT_TYPES.get(kind, ())
        for name in names:
            if name in self.registry.names(kind):
                return self._named(kind, name, declared)
        if names:
            raise ValueError(self.unknown_type(kind, names[0]))
        known = ", ".join(self.registry.names(kind)) or "none is installed"
        raise ValueError(f"a 'type' is required, there is no default {_words(kind)}: {known}")


def _left_out(recipe: Recipe, plugins: PluginManager, code: bool) -> str:
    """What was kept from offering components, to say so when one is missing."""
    from arctic_training.code import find_code

    parts = [f"the plugin {info.name!r} is blocked" for info in plugins.plugins if info.status == "blocked"]
    found_code = None if code else find_code(recipe)
    if found_code is not None:
        parts.append(f"{found_code.path.name} beside the recipe was refused by --no-code or ARCTIC_NO_CODE")
    return "; ".join(parts)


def _choose_trainer(recipe: Recipe, sections: _RecipeSections, structurer: Structurer, left_out: str) -> Any:
    name = recipe.data.get("type", DEFAULT_TRAINER)
    if not isinstance(name, str):
        return structurer.refuse(f"expected text, found {found(name)}", path=("type",))
    try:
        return sections.registered("trainer", name)
    except ValueError as error:
        return structurer.refuse(str(error), path=("type",), remedy=left_out)


def _section_classes(plugins: PluginManager, trainer_config: type[Config]) -> dict[str, type[Config]]:
    """What plugins contribute to the top level of a recipe, by name."""
    own_keys = {info.name for info in keys_of(trainer_config)}
    classes: dict[str, type[Config]] = {}
    givers: dict[str, Any] = {}
    for plugin, contribution in plugins.collect("arctic_register_config_sections"):
        for name, config_class in contribution.items():
            problem = ""
            if not (isinstance(config_class, type) and issubclass(config_class, Config)):
                problem = f"needs a subclass of Config, not {config_class!r}"
            elif name in classes:
                problem = f"is also brought by {givers[name]}"
            elif name in own_keys and not issubclass(config_class, FreeConfig):
                problem = f"is a key of {trainer_config.__qualname__} already"
            if problem:
                raise PluginError(
                    f"{plugin}: the section {name!r} {problem}", remedy=f"block the plugin: -p no:{plugin.name}"
                )
            classes[name], givers[name] = config_class, plugin
    return classes


def _contributed(
    recipe: Recipe, classes: Mapping[str, type[Config]], trainer_config: type[Config], structurer: Structurer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections of plugins, structured, and the rest of the recipe.

    A section whose keys another library defines (``FreeConfig``) may share its name with a key of the trainer. Such a
    key is refused when it holds anything and no plugin is there to check it.
    """
    own_keys = {info.name for info in keys_of(trainer_config)}
    rest = dict(recipe.data)
    values: dict[str, Any] = {}
    for name, section_class in classes.items():
        if not issubclass(section_class, FreeConfig):
            values[name] = structurer.structure(rest.pop(name, None), section_class, (name,))
        elif rest.get(name):
            values[name] = _free(rest.pop(name), section_class, name, structurer)
        elif name not in own_keys:
            rest.pop(name, None)
            values[name] = {}
    for name, distribution in KNOWN_SECTIONS.items():
        if name in own_keys and name not in classes and rest.get(name):
            message = f"the section needs {distribution}, which is not installed"
            structurer.refuse(message, path=(name,), of="key", remedy=f"pip install {distribution}")
    return values, rest


def _free(value: Any, section_class: type[FreeConfig], name: str, structurer: Structurer) -> Any:
    mapping = structurer.structure(value, dict[str, Any], (name,))
    if mapping is INVALID:
        return INVALID
    result, problems = section_class.structure_free(convert_leaves(mapping))
    _refuse(problems, name, structurer)
    return result


def _refuse(problems: Iterable[KeyProblem], name: str, structurer: Structurer) -> None:
    for problem in problems:
        structurer.refuse(problem.message, path=(name, *problem.path), of=problem.of, remedy=problem.remedy)


def _words(kind: str) -> str:
    return kind.replace("_", " ")
