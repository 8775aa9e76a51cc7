"""Owns the sections of the configuration that belong to plugins: what was given, and to whom it goes; knows no plugin itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from gpuqueue.config.table import Table, quoted_key
from gpuqueue.domain.errors import ConfigurationError, did_you_mean

__all__ = ["PluginTables"]

ENVIRONMENT = "GPUQUEUE_"


class PluginTables:
    """The root tables that gpuqueue does not know, from the file and from arguments, and variables that may go with them.

    `own` are the names that no plugin may take for its section, `source` words where a section would stand that nobody wrote.
    """

    def __init__(
        self,
        file: Table | None = None,
        arguments: Table | None = None,
        *,
        variables: Mapping[str, str] | None = None,
        own: Collection[str] = (),
        source: str = "configuration",
    ) -> None:
        self._file = file or _empty("", source)
        self._arguments = arguments or _empty("", source)
        self._variables = variables or {}
        self._own = tuple(own)
        self._source = source

    def table_of(self, plugin: str, among: Iterable[str]) -> Table:
        """Return a plugin's section: arguments go before the environment and that before the file; empty when nobody gave one.

        A variable belongs to the plugin, of those `among` which it is, whose name is the longest that fits.
        Raises: ConfigurationError when the name is not free for a plugin, or what was given is no single table.
        """
        if plugin in self._own:
            raise ConfigurationError(
                f"plugin {plugin!r} cannot have settings, because [{plugin}] is gpuqueue's own; give the plugin another name"
            )
        key = quoted_key(plugin)
        found = _empty(key, self._source)
        found.overlay(self._file.table(plugin, f"[{key}]"))
        found.overlay(Table(self._said_by_variables(plugin, [*among, plugin]), key=key, origin=_named, is_text=True))
        found.overlay(self._arguments.table(plugin, f"[{key}]"))
        return found

    def refuse_unclaimed(self, claimed: Collection[str], *, silent: Collection[str], blocked: Collection[str]) -> None:
        """Refuse a section that is nobody's; that of a blocked plugin may stay.

        `claimed` are the plugins that read a section, `silent` those that read none.
        Raises: ConfigurationError naming the section and the nearest name that is right.
        """
        for name, where in {**self._file.given(), **self._arguments.given()}.items():
            if name in claimed or name in blocked:
                continue
            if name in silent:
                raise ConfigurationError(f"{where}: the plugin {name!r} has no settings; leave its section out")
            names = [*self._own, *claimed]
            near = did_you_mean(name, names)
            advice = "" if near else f". If it is a plugin's section: no plugin {name!r} is installed, see `gpuqueue plugins`"
            raise ConfigurationError(f"{where}: there is no setting {name!r} here{near}. Settings: {', '.join(names)}{advice}")

    def _said_by_variables(self, plugin: str, among: Iterable[str]) -> dict[str, str]:
        longer = [_prefix(other) for other in among if len(other) > len(plugin)]
        prefix = _prefix(plugin)
        return {
            name.removeprefix(prefix).lower(): value
            for name, value in self._variables.items()
            if value and name.startswith(prefix) and name != prefix and not name.startswith(tuple(longer))
        }


def _empty(key: str, source: str) -> Table:
    return Table({}, key=key, origin=lambda dotted: f"{source}: {dotted}" if dotted else source)


def _prefix(plugin: str) -> str:
    return f"{_variable(plugin)}_"


def _variable(dotted: str) -> str:
    return ENVIRONMENT + re.sub(r"[^A-Z0-9]+", "_", dotted.upper()).strip("_")


def _named(dotted: str) -> str:
    return f"environment variable {_variable(dotted)}"
