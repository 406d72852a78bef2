"""The callback stage: hook implementations that a recipe selects by name instead of by installing a plugin."""

from __future__ import annotations

from typing import ClassVar

from arctic_training.component import Component
from arctic_training.config import ComponentConfig


class CallbackConfig(ComponentConfig):
    kind: ClassVar[str] = "callback"


class Callback(Component):
    """An object with methods marked ``@hookimpl``, one for each entry of the recipe's ``callbacks`` list.

    Callbacks are registered last, so their implementations run before those of plugins.
    """

    kind = "callback"
    config: CallbackConfig
