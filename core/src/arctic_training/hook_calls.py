"""The calling side of the plugin manager: hooks are implemented, called, watched and put in order here, through pluggy.

pluggy sees of a plugin only a carrier of its checked functions, never the plugin itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pluggy

from arctic_training.errors import PluginError
from arctic_training.observation import Expected, Watch, trace_line, verdict
from arctic_training.provenance import PluginInfo, did_you_mean
from arctic_training.signatures import Implementation, specifications_of


class Carrier:
    """The hook functions of one plugin. Two carriers are equal only if they are one, whatever the plugins say."""


class HookCalls:
    """The hooks of one manager. ``hook`` is pluggy's relay: ``manager.hook.arctic_step_end(step=..., ...)``."""

    def __init__(self, hookspecs: Any) -> None:
        self._pluggy = pluggy.PluginManager("arctic")
        self._pluggy.add_hookspecs(hookspecs)
        self._watch = Watch()
        self.hook: Any = self._pluggy.hook
        self.specifications = specifications_of(hookspecs)

    def implementations(self, hook_name: str) -> list[tuple[str, str, str]]:
        """``(plugin, kind, file:line)`` of each implementation in the order in which they run, outermost wrapper first.

        The kind is wrapper, tryfirst, trylast or empty.

        Raises:
            PluginError: there is no such hook.
        """
        listed = []
        for implementation in reversed(self._caller(hook_name).get_hookimpls()):
            kinds = [kind for kind in ("wrapper", "tryfirst", "trylast") if getattr(implementation, kind)]
            where = implementation.function.arctic_where
            listed.append((implementation.plugin_name, kinds[0] if kinds else "", where))
        return listed

    def ask(self, hook_name: str, expected: Expected, /, **arguments: Any) -> Any:
        """Call a hook whose first answer wins, and hold the answer to what is expected. 0, False and [] are answers.

        Args:
            hook_name: the hook.
            expected: a type, several, or a predicate such as ``callable``.
            arguments: the hook's arguments.

        Raises:
            PluginError: nobody answered; or the answer is not what was expected, naming the plugin that gave it, or the
                wrapper that changed or lost it.
        """
        caller = self._caller(hook_name)
        with self._watch.following(hook_name) as trail:
            result = caller(**arguments)
        error = verdict(trail, result, expected)
        if error is not None:
            raise error
        return result

    def collect(self, hook_name: str, /, **arguments: Any) -> list[tuple[PluginInfo, Any]]:
        """Call every implementation of a hook; returns the plugin and what it gave, for those that gave something.

        A wrapper around such a hook observes: what it returns changes nothing here.
        """
        caller = self._caller(hook_name)
        with self._watch.following(hook_name) as trail:
            caller(**arguments)
        answers = [event for event in trail.events if not event.implementation.wrapper]
        return [(event.plugin, event.value) for event in answers if event.value is not None]

    def call_backwards(self, hook_name: str, /, **arguments: Any) -> list[Exception]:
        """Call every implementation of a hook, each by itself and in the reverse of the usual order.

        Returns:
            What they raised: one that fails does not keep the others from being called.
        """
        carriers = [implementation.plugin for implementation in self._caller(hook_name).get_hookimpls()]
        errors: list[Exception] = []
        for carrier in carriers:
            others = [other for other in carriers if other is not carrier]
            try:
                self._pluggy.subset_hook_caller(hook_name, others)(**arguments)
            except Exception as error:  # noqa: BLE001 - handed back, so that the others are called too
                errors.append(error)
        return errors

    def check_pending(self) -> None:
        """Make sure that each implementation belongs to a hook that exists, though a misspelt one is refused already.

        Raises:
            PluginError: one does not, with the nearest hook.
        """
        for name, caller in vars(self.hook).items():
            for implementation in [] if name in self.specifications else caller.get_hookimpls():
                if not implementation.optionalhook:
                    hint = did_you_mean(name, self.specifications)
                    raise PluginError(f"plugin {implementation.plugin_name!r}: {name} is no hook{hint}")

    def monitor(self, before: Callable[..., None], after: Callable[..., None]) -> Callable[[], None]:
        """Have every hook call reported; returns what undoes it.

        Args:
            before: called with the hook's name, its implementations (run from last to first) and the arguments.
            after: called with the outcome, ahead of the same.
        """
        return self._pluggy.add_hookcall_monitoring(before, after)

    def trace_to(self, stream: Any) -> None:
        """Write a line for each hook call: the hook, the names of its arguments, who implements it in running order."""

        def before(name: str, implementations: Sequence[Any], arguments: Mapping[str, Any]) -> None:
            print(trace_line(name, implementations, arguments), file=stream, flush=True)

        self.monitor(before, lambda *_: None)

    def _caller(self, hook_name: str) -> Any:
        if hook_name not in self.specifications:
            raise PluginError(f"{hook_name} is no hook{did_you_mean(hook_name, self.specifications)}")
        return getattr(self.hook, hook_name)

    def _carry(self, implementations: Iterable[Implementation], info: PluginInfo) -> Carrier:
        """Make the implementations of a plugin known to pluggy.

        Raises:
            PluginError: pluggy refuses one; nothing of the plugin is registered then.
        """
        carrier = Carrier()
        for implementation in implementations:
            setattr(carrier, implementation.attribute, self._watch.watched(implementation, info))
        try:
            self._pluggy.register(carrier, info.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._pluggy.has_plugin(info.name) and self._pluggy.get_plugin(info.name) is carrier:
                self._pluggy.unregister(carrier)
            raise PluginError(f"{info}: {error}", where=info.where or None, remedy=info.repair) from error
        return carrier

    def _drop(self, carrier: Carrier) -> None:
        self._pluggy.unregister(carrier)

    def _rearrange(self, carriers: Mapping[str, Carrier]) -> None:
        """Register all carriers again, by name, in this order; the last runs first."""
        for carrier in carriers.values():
            self._pluggy.unregister(carrier)
        for name, carrier in carriers.items():
            self._pluggy.register(carrier, name)
