"""Registers the plugins of one queue object and calls their hooks; decides nothing.

Implementations are called one at a time, the last registered first, so that an error names its plugin and stops no other
plugin. Hook wrappers are rejected, because they cannot be called that way.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pluggy

from gpuqueue.config.plugin_tables import PluginTables
from gpuqueue.contract.hookspecs import HOOK_NAMES, PROJECT, SPECIFICATIONS, ConfigureDetails
from gpuqueue.contract.installed import InstalledPlugin, installed_plugins
from gpuqueue.contract.old_form import with_old_form
from gpuqueue.domain.answers import CleanUp, Demand, Hold, Limits, Placement, Wait, wrong_words
from gpuqueue.domain.errors import ConfigurationError, PluginFailed, UsageError, describe, did_you_mean
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.verdicts import Discard, Retry, Snooze

Kind = Literal["default", "installed", "given"]
# What each hook may return besides None. What the other hooks return is ignored.
ANSWERS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "queue_hold": ((Hold,), "a Hold or None"),
    "queue_limits": ((Limits,), "Limits or None"),
    "job_demand": ((Demand,), "a Demand or None"),
    "place_job": ((Placement, Wait), "a Placement, a Wait or None"),
    "order_candidates": ((Sequence,), "a sequence of the candidates, or None"),
    "choose_preemptions": ((Sequence,), "a sequence of Preemptions, or None"),
    "attempt_failed": ((Retry, Snooze, Discard), "a Retry, a Snooze, a Discard or None"),
    "retention": ((Mapping,), "{state: seconds} or None"),
    "clean_up_attempt": ((CleanUp,), "a CleanUp or None"),
    "register_executors": ((Mapping,), "{name: executor} or None"),
    "register_devices": ((Mapping,), "{name: device} or None"),
    "register_services": ((Mapping,), "{name: function} or None"),
}
logger = logging.getLogger("gpuqueue.plugins")


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin, as shown to people; a blocked one is not called, and a blocked installed one is not even imported."""

    name: str
    kind: Kind  # "given" to the queue object in code
    hooks: tuple[str, ...]
    blocked: bool = False
    distribution: str | None = None  # if installed
    version: str | None = None


class Plugins:
    """The plugins of one queue object.

    `defaults` are {name: plugin}, registered first, so that a third party's answer wins where only one counts; `reserved` are
    the names that `add_defaults` may add. `blocked` names are not registered, defaults included. Installed plugins are found
    through the entry points of group `gpuqueue`.
    Raises: ConfigurationError if a plugin cannot be loaded.
    """

    def __init__(
        self,
        defaults: dict[str, object],
        *,
        blocked: Iterable[str] = (),
        reserved: Iterable[str] = (),
        discover: bool = True,
    ) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        for specification in SPECIFICATIONS:
            self._manager.add_hookspecs(specification)
        self.blocked = frozenset(blocked)
        for name in self.blocked:
            self._manager.set_blocked(name)
        self._defaults: list[str] = []
        self._reserved = frozenset(reserved)
        self._installed: dict[str, InstalledPlugin] = {}
        self._tables: PluginTables | None = None
        for name, plugin in defaults.items():
            self._defaults.append(name)
            if name not in self.blocked:
                self.register(plugin, name)
        if discover:
            self._discover()
        known = {*defaults, *self._reserved, *self._installed}
        for name in sorted(self.blocked - known):
            logger.warning("[plugins] block names %r, but no such plugin is installed%s", name, did_you_mean(name, known))

    def _discover(self) -> None:
        for found in installed_plugins():
            if found.name in (*self._defaults, *self._reserved, *self._installed):
                logger.warning(
                    "skipped the installed plugin %r of %s: another plugin has the same name", found.name, found.distribution
                )
                continue
            self._installed[found.name] = found
            if found.name not in self.blocked:
                self.register(found.load(), found.name)

    def add_defaults(self, defaults: dict[str, object]) -> None:
        """Add default plugins that are not registered yet; they are called after all others."""
        new = {name: plugin for name, plugin in defaults.items() if name not in self._defaults}
        others = self._registered()
        self._defaults += new
        for _, plugin in others:
            self._manager.unregister(plugin)
        for name, plugin in (*new.items(), *others):
            if name not in self.blocked:
                self._manager.register(plugin, name)

    def register(self, plugin: object, name: str | None = None) -> str:
        """Add a plugin and return its name; a class is instantiated without arguments.

        Raises: ConfigurationError for a name that is taken, an unknown hook, a hook with wrong arguments, or a hook wrapper.
        """
        name = name or self._free_name(plugin)
        plugin = _object_of(plugin, name)
        self._check(plugin, name)
        try:
            self._manager.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise ConfigurationError(f"plugin {name!r} cannot be registered: {error}") from error
        if self._tables is not None:
            self._configure(name, self._tables)
        return name

    def configure(self, tables: PluginTables) -> None:
        """Pass each plugin with the hook `configure` its own section, once; plugins registered later get theirs at that time.

        Raises: ConfigurationError for a section that belongs to no plugin, or from a plugin about its section; PluginFailed.
        """
        self._tables = tables
        names = [name for name, _ in self._registered()]
        claimed = self._configurable()
        tables.refuse_unclaimed(claimed, silent=set(names) - set(claimed), blocked=self.blocked)
        for name in claimed:
            self._configure(name, tables)

    def _configure(self, name: str, tables: PluginTables) -> None:
        for found in self._manager.hook.configure.get_hookimpls():
            if found.plugin_name == name:
                details = ConfigureDetails(name, tables.table_of(name, self._configurable()))
                try:
                    _answer(found, "configure", details)
                except PluginFailed as failed:
                    if isinstance(failed.__cause__, UsageError):  # it names the file and the key
                        raise failed.__cause__ from None
                    raise

    def _configurable(self) -> list[str]:
        return [found.plugin_name for found in self._manager.hook.configure.get_hookimpls()]

    def _registered(self) -> list[tuple[str, object]]:
        return [(name, plugin) for name, plugin in self._manager.list_name_plugin() if plugin is not None]

    def _free_name(self, plugin: object) -> str:
        own = name = str(getattr(plugin, "__name__", None) or type(plugin).__name__)
        number = 1
        while self._manager.has_plugin(name):
            number += 1
            name = f"{own}-{number}"
        return name

    def _check(self, plugin: object, name: str) -> None:
        """Reject what pluggy would call wrongly or never. Raises: ConfigurationError."""
        wrong = f"plugin {name!r} cannot be registered"
        if self._manager.has_plugin(name) or name in self._reserved:
            raise ConfigurationError(f"{wrong}: another plugin has this name; pass a unique name: plugins={{name: plugin}}")
        if name in self.blocked:
            raise ConfigurationError(f"{wrong}: it is listed in [plugins] block; remove it from the list or rename the plugin")
        for attribute in dir(plugin):
            options = None if attribute.startswith("__") else self._manager.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                continue
            hook = options.get("specname") or attribute
            function = getattr(plugin, attribute)
            if hook not in HOOK_NAMES:
                raise ConfigurationError(f"{wrong}: unknown hook {hook!r}{did_you_mean(hook, HOOK_NAMES)}")
            if options.get("wrapper") or options.get("hookwrapper"):
                raise ConfigurationError(f"{wrong}: it wraps {hook}, and hook wrappers are not supported")
            if inspect.iscoroutinefunction(function):
                raise ConfigurationError(f"{wrong}: its {hook} is asynchronous, but hooks must be plain functions")
            if list(inspect.signature(function).parameters) not in (["details"], []):
                raise ConfigurationError(f"{wrong}: its {hook}{inspect.signature(function)} must take one argument, details")

    def plugin(self, name: str) -> object:
        """Return a registered plugin. Raises: UsageError if the name is unknown or blocked."""
        found = self._manager.get_plugin(name)
        if found is None:
            names = [known for known, _ in self._registered()]
            blocked = "; it is listed in [plugins] block" if name in self.blocked else did_you_mean(name, names)
            raise UsageError(f"unknown plugin {name!r}{blocked}. Plugins: {', '.join(sorted(names))}")
        plugin: object = found
        return plugin

    def has(self, name: str) -> bool:
        """Return whether a plugin with this name is registered."""
        return bool(self._manager.has_plugin(name))

    def names(self) -> list[tuple[str, list[str]]]:
        """Return every plugin with its hooks: [(plugin, [hook])]."""
        return [(name, self._hooks_of(plugin)) for name, plugin in self._registered()]

    def infos(self) -> list[PluginInfo]:
        """Describe every plugin: the registered ones in the order they are called, then the blocked ones."""
        found = [self._info(name, hooks) for name, hooks in reversed(self.names())]
        blocked = [name for name in (*self._defaults, *self._installed) if name in self.blocked]
        return found + [self._info(name, [], blocked=True) for name in blocked]

    def _info(self, name: str, hooks: Iterable[str], *, blocked: bool = False) -> PluginInfo:
        installed = self._installed.get(name)
        if installed is not None:
            return PluginInfo(name, "installed", tuple(hooks), blocked, installed.distribution, installed.version)
        return PluginInfo(name, "default" if name in self._defaults else "given", tuple(hooks), blocked)

    def _hooks_of(self, plugin: object) -> list[str]:
        return sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ())

    def answers(self, hook: str) -> bool:
        """Return whether any plugin has the hook."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def each(self, hook: str, details: Any) -> Iterator[tuple[str, Any]]:
        """Yield (plugin, answer) for every answer that is not None. Raises: PluginFailed at the first plugin that fails."""
        for found in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            answer = _answer(found, hook, details)
            if answer is not None:
                if wrong := wrong_answer(hook, answer):
                    raise PluginFailed(found.plugin_name, hook, TypeError(f"returned {safe_repr(answer)}; {wrong}"))
                yield found.plugin_name, answer

    def ask(self, name: str, hook: str, details: Any) -> Any:
        """Return one plugin's answer, also None if it does not have the hook. Raises: PluginFailed."""
        for found in getattr(self._manager.hook, hook).get_hookimpls():
            if found.plugin_name == name:
                return _answer(found, hook, details)
        return None

    def first(self, hook: str, details: Any) -> Any:
        """Return the first answer that is not None, or None. Raises: PluginFailed."""
        return next((answer for _, answer in self.each(hook, details)), None)

    def tell(self, hook: str, details: Any) -> None:
        """Call every plugin's implementation of a hook without an answer; an exception is logged and has no other effect."""
        for found in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                _call(found, hook, details)
            except KeyboardInterrupt:
                raise
            except BaseException:
                logger.exception("plugin %r failed in %s", found.plugin_name, hook)


def _answer(found: pluggy.HookImpl, hook: str, details: Any) -> Any:
    try:
        return _call(found, hook, details)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin does not end the process
        raise PluginFailed(found.plugin_name, hook, error) from error


def wrong_answer(hook: str, answer: Any) -> str:
    """Say what is wrong with the kind of an answer that is not None, "" if nothing is."""
    if hook not in ANSWERS:
        return ""
    kinds, expected = ANSWERS[hook]
    if isinstance(answer, type) and issubclass(answer, kinds):
        return f"expected an object, {answer.__name__}(…), not the class"
    if not isinstance(answer, kinds) or isinstance(answer, str):  # a string is a sequence too
        return f"expected {expected}"
    return wrong_words(answer) if isinstance(answer, Hold | Wait) else ""


def _call(found: pluggy.HookImpl, hook: str, details: Any) -> Any:
    return found.function(with_old_form(details, found.plugin_name, hook)) if found.argnames else found.function()


def _object_of(plugin: object, name: str) -> object:
    """Instantiate a plugin that is given as a class, so that each queue object has its own instance."""
    if isinstance(plugin, str):
        raise ConfigurationError(f"plugin {plugin!r} is a string; pass the plugin object itself, or {{name: object}}")
    if not inspect.isclass(plugin):
        return plugin
    try:
        made: object = plugin()
    except Exception as error:
        raise ConfigurationError(
            f"plugin {name!r}: {plugin.__qualname__}() failed; a plugin class is called without arguments: {describe(error)}"
        ) from error
    return made
