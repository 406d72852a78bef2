"""Records which hooks a run calls, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_training.plugins import PluginManager


class HookRecorder:
    """The hook calls of a manager: ``calls`` holds (hook name, arguments), ``names`` the hook names."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    @property
    def names(self) -> list[str]:
        """Hook names in the order of their calls."""
        return [name for name, _ in self.calls]

    def of(self, hook_name: str) -> list[dict[str, Any]]:
        """The arguments of each call of one hook."""
        return [arguments for name, arguments in self.calls if name == hook_name]

    @contextmanager
    def watching(self, plugins: PluginManager) -> Iterator[HookRecorder]:
        """Record the calls of a manager inside a ``with`` block."""

        def before(name: str, implementations: Any, arguments: Any) -> None:
            self.calls.append((name, dict(arguments)))

        stop = plugins.monitor(before, lambda *_: None)
        try:
            yield self
        finally:
            stop()
