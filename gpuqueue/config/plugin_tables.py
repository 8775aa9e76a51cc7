"""Assigns the plugins' sections of the configuration to their plugins; knows no plugin itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from gpuqueue.config.table import Table, quoted_key
from gpuqueue.domain.errors import ConfigurationError, did_you_mean

__all__ = ["PluginTables"]

ENVIRONMENT = "GPUQUEUE_"
NEARLY_EQUAL = 0.85  # as difflib measures it


class PluginTables:
    """The root tables that gpuqueue does not know, from the file and from arguments, and the variables that may belong to them.

    `own` are the section names that no plugin may use, and `own_variables` gpuqueue's own variables; `source` is where errors
    place a section that was not given.
    """

    def __init__(
        self,
        file: Table | None = None,
        arguments: Table | None = None,
        *,
        variables: Mapping[str, str] | None = None,
        own: Collection[str] = (),
        own_variables: Collection[str] = (),
        source: str = "configuration",
    ) -> None:
        self._file = file or _empty("", source)
        self._arguments = arguments or _empty("", source)
        self._variables = variables or {}
        self._own = tuple(own)
        self._own_variables = own_variables
        self._source = source

    def table_of(self, plugin: str, among: Iterable[str]) -> Table:
        """Return a plugin's section; empty if not given. Arguments override environment variables, which override the file.

        A variable belongs to the plugin in `among` with the longest name that matches.
        Raises: ConfigurationError if the name is gpuqueue's own, or the section is not a single table.
        """
        if plugin in self._own:
            raise ConfigurationError(
                f"plugin {plugin!r} cannot have settings, because [{plugin}] is one of gpuqueue's own sections; rename the plugin"
            )
        key = quoted_key(plugin)
        found = _empty(key, self._source)
        found.overlay(self._file.table(plugin, f"[{key}]"))
        found.overlay(Table(self._said_by_variables(plugin, [*among, plugin]), key=key, origin=_named, is_text=True))
        found.overlay(self._arguments.table(plugin, f"[{key}]"))
        return found

    def refuse_unclaimed(self, claimed: Collection[str], *, silent: Collection[str], blocked: Collection[str]) -> None:
        """Reject a section that belongs to no plugin, and a variable that is rather a misspelt one of gpuqueue's own.

        Other variables with the prefix may be anyone's. A blocked plugin may keep its section and variables. `claimed` are the
        plugins that read a section, `silent` those that do not.
        Raises: ConfigurationError naming the section or variable and the nearest known name.
        """
        of_plugins = tuple(map(_prefix, (*claimed, *silent, *blocked)))
        for variable, value in self._variables.items():
            if value and not variable.startswith(of_plugins) and (near := _misspelt(variable, self._own_variables)):
                raise ConfigurationError(f"unknown environment variable {variable} (did you mean {near}?)")
        for name, where in {**self._file.given(), **self._arguments.given()}.items():
            if name in claimed or name in blocked:
                continue
            if name in silent:
                raise ConfigurationError(f"{where}: the plugin {name!r} has no settings; remove its section")
            names = [*self._own, *claimed]
            near = did_you_mean(name, names)
            advice = "" if near else ". If this is a plugin's section, the plugin is not installed; see `gpuqueue plugins`"
            raise ConfigurationError(f"{where}: unknown setting {name!r}{near}. Settings: {', '.join(names)}{advice}")

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


def _misspelt(variable: str, known: Collection[str]) -> str | None:
    """Return the known variable that this one is nearly equal to."""
    import difflib  # imported here: it takes 1 ms, and few environments have such variables

    names = [name.removeprefix(ENVIRONMENT) for name in known]
    near = difflib.get_close_matches(variable.removeprefix(ENVIRONMENT), names, n=1, cutoff=NEARLY_EQUAL)
    return ENVIRONMENT + near[0] if near else None


def _prefix(plugin: str) -> str:
    return f"{_variable(plugin)}_"


def _variable(dotted: str) -> str:
    return ENVIRONMENT + re.sub(r"[^A-Z0-9]+", "_", dotted.upper()).strip("_")


def _named(dotted: str) -> str:
    return f"environment variable {_variable(dotted)}"
