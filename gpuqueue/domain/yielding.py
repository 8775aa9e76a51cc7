"""Orders queues that yield to each other, and finds all queues that one yields to; holds none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpuqueue.domain.errors import ConfigurationError
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.view import View


def yielding_order(queues: Mapping[str, QueueSettings]) -> list[QueueSettings]:
    """Order queues so that each comes after the ones it yields to. Raises: ConfigurationError for a cycle."""
    ordered: dict[str, QueueSettings] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigurationError(f"queues yield to each other in a cycle: {' → '.join((*path[path.index(name) :], name))}")
        if name in queues and name not in ordered:
            for other in queues[name].yields_to:
                visit(other, (*path, name))
            ordered[name] = queues[name]

    for name in queues:
        visit(name, ())
    return list(ordered.values())


def yielded_to(settings: QueueSettings, view: View) -> set[str]:
    """Return the queues that this one yields to, directly or through another."""
    found: set[str] = set()
    names: Iterable[str] = settings.yields_to
    while names:
        new = [name for name in names if name not in found]
        found.update(new)
        names = [other for name in new if name in view.queues for other in view.queues[name].settings.yields_to]
    return found
