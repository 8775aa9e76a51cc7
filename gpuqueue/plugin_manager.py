"""Owns the set of plugins of one queue object: registering them, and calling their hooks one by one; decides nothing.

Implementations are called one at a time, the last registered first, so that a failing plugin is known by name and
stops no other. Wrappers are refused, because they could not be called that way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pluggy

from gpuqueue.errors import ConfigurationError, GPUQueueError, did_you_mean
from gpuqueue.hookspecs import PROJECT, SPECIFICATIONS

ENTRY_POINT_GROUP = "gpuqueue"
logger = logging.getLogger("gpuqueue.plugins")


class PluginFailed(GPUQueueError):
    """A plugin raised while a hook was called; the cause is the error it raised."""

    def __init__(self, plugin: str, hook: str, error: BaseException) -> None:
        super().__init__(f"plugin {plugin!r} failed in {hook}: {type(error).__name__}: {error}")
        self.plugin = plugin
        self.hook = hook


class Plugins:
    """The plugins of one queue object.

    `defaults` are {name: plugin}, registered first, so that a third party's answer wins where one is wanted. `blocked`
    names are not registered, defaults included. Installed plugins are found through the entry points of group `gpuqueue`.
    Raises: ConfigurationError when a plugin cannot be loaded, or a blocked name belongs to none.
    """

    def __init__(self, defaults: dict[str, object], *, blocked: Iterable[str] = (), discover: bool = True) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        for specification in SPECIFICATIONS:
            self._manager.add_hookspecs(specification)
        blocked = set(blocked)
        for name in blocked:
            self._manager.set_blocked(name)
        for name, plugin in defaults.items():
            if name not in blocked:
                self.register(plugin, name)
        if discover:
            try:
                self._manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
            except Exception as error:
                raise ConfigurationError(
                    f"an installed plugin of group {ENTRY_POINT_GROUP!r} cannot be loaded: {error}"
                ) from error
        for name in blocked - {name for name, _ in self.names()} - set(defaults):
            logger.warning("[plugins] block names %r, but no such plugin is installed%s", name, did_you_mean(name, defaults))

    def add_defaults(self, defaults: dict[str, object]) -> None:
        """Add default plugins that are not registered yet, asked after all others."""
        blocked = [name for name in defaults if self._manager.is_blocked(name) or self._manager.has_plugin(name)]
        third_party = [(name, plugin) for name, plugin in self._manager.list_name_plugin() if plugin is not None]
        new = {name: plugin for name, plugin in defaults.items() if name not in blocked}
        if not new:
            return
        for _, plugin in third_party:
            self._manager.unregister(plugin)
        for name, plugin in (*new.items(), *third_party):
            self.register(plugin, name)

    def register(self, plugin: object, name: str | None = None) -> str:
        """Add a plugin and return its name. Raises: ConfigurationError for an unknown hook or a wrapper."""
        name = name or self._name_of(plugin)
        try:
            registered = self._manager.register(plugin, name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise ConfigurationError(f"plugin {name or plugin!r} cannot be registered: {error}") from error
        for caller in self._manager.get_hookcallers(plugin) or ():
            if any(found.plugin is plugin and (found.wrapper or found.hookwrapper) for found in caller.get_hookimpls()):
                self._manager.unregister(plugin)
                raise ConfigurationError(f"plugin {name or plugin!r} wraps {caller.name}; hook wrappers are not supported")
        return registered or str(name)

    def _name_of(self, plugin: object) -> str:
        own = name = str(getattr(plugin, "__name__", None) or type(plugin).__name__)
        number = 1
        while self._manager.has_plugin(name):
            number += 1
            name = f"{own}-{number}"
        return name

    def names(self) -> list[tuple[str, list[str]]]:
        """Return every plugin with the hooks that it answers: [(plugin, [hook])]."""
        found = []
        for name, plugin in self._manager.list_name_plugin():
            if plugin is not None:
                found.append((name, sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ())))
        return found

    def answers(self, hook: str) -> bool:
        """Say whether any plugin answers a hook."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def each(self, hook: str, details: Any) -> Iterator[tuple[str, Any]]:
        """Yield (plugin, answer) for every answer that is not None. Raises: PluginFailed at the first that fails."""
        for found in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                answer = found.function(details) if found.argnames else found.function()
            except Exception as error:
                raise PluginFailed(found.plugin_name, hook, error) from error
            if answer is not None:
                yield found.plugin_name, answer

    def first(self, hook: str, details: Any) -> Any:
        """Return the first answer that is not None, or None. Raises: PluginFailed."""
        return next((answer for _, answer in self.each(hook, details)), None)

    def tell(self, hook: str, details: Any) -> None:
        """Tell every plugin of an event; what one raises is logged and hurts nobody."""
        for found in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                found.function(details) if found.argnames else found.function()
            except Exception:
                logger.exception("plugin %r failed in the event %s", found.plugin_name, hook)
