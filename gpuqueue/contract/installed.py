"""Finds the installed plugins: entry points of group `gpuqueue` and their distributions; registers none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from gpuqueue.domain.errors import ConfigurationError, describe

ENTRY_POINT_GROUP = "gpuqueue"


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """A plugin provided by an installed distribution, not loaded yet."""

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint

    def load(self) -> object:
        """Import it. Raises: ConfigurationError naming the plugin and its distribution."""
        try:
            loaded: object = self.entry_point.load()
        except Exception as error:
            raise ConfigurationError(
                f"the installed plugin {self.name!r} ({self.distribution} {self.version}) cannot be loaded from "
                f"{self.entry_point.value!r}: {describe(error)}. "
                f"To continue without it: pip uninstall {self.distribution}, or set [plugins] block = [{self.name!r}]"
            ) from error
        return loaded


def installed_plugins() -> Iterator[InstalledPlugin]:
    """Find the installed plugins, sorted by name; a distribution that is found twice counts once."""
    seen = set()
    for found in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda found: found.name):
        distribution = found.dist.name if found.dist is not None else "an unknown distribution"
        version = found.dist.version if found.dist is not None else ""
        if (found.name, distribution) not in seen:
            seen.add((found.name, distribution))
            yield InstalledPlugin(found.name, distribution, version, found)
