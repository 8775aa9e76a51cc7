"""Makes queue objects for tests, on a separate file, with only the plugins that the test passes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuqueue.client.queue import GPUQueue

__all__ = ["QueueMaker", "foreign_variables", "queue_maker"]


class QueueMaker:
    """Makes queue objects for one file; call it as `make_gpuqueue`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[GPUQueue] = []

    def __call__(
        self,
        toml: str | None = None,
        *,
        name: str = "gpuqueue.toml",
        plugins: Iterable[object] | Mapping[str, object] = (),
        discover_plugins: bool = False,
        **overrides: Any,
    ) -> GPUQueue:
        """Make a queue object from a configuration, which is written to a file, or without one.

        Each call makes another object for the same database. Installed plugins are ignored, unless `discover_plugins`.
        `overrides` are those of `GPUQueue.from_config`.
        """
        database = self.folder / "gpuqueue.db"
        if toml is None and not overrides:
            made = GPUQueue(database, plugins=plugins, discover_plugins=discover_plugins)
        else:
            file = self.folder / name
            file.write_text(f'database = "{database.name}"\n{toml or ""}', encoding="utf-8")
            made = GPUQueue.from_config(file, plugins=plugins, discover_plugins=discover_plugins, **overrides)
        self._made.append(made)
        return made

    def close(self) -> None:
        """Close all objects that were made."""
        for made in self._made:
            made.close()


@contextmanager
def queue_maker(folder: Path) -> Iterator[QueueMaker]:
    """Make queue objects inside the block; they are closed at its end."""
    maker = QueueMaker(folder)
    try:
        yield maker
    finally:
        maker.close()


def foreign_variables() -> list[str]:
    """Name the variables in this environment that would change a queue object's configuration."""
    return [name for name in os.environ if name.startswith("GPUQUEUE_") or name == "OLLAMA_HOST"]
