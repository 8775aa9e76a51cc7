"""Decides where the queues of tests are: follows Django's test runner, and names files that are deleted with this process."""

from __future__ import annotations

import os
import shutil
import threading
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from django.core import mail
from django.db import connections

from gpuqueue.store.store import Store

# The names of the databases before a test runner changed them: {alias: NAME}.
at_start: dict[str, str] = {}


def note_databases() -> None:
    """Remember which databases are the real ones."""
    at_start.update((alias, str(entry["NAME"])) for alias, entry in connections.settings.items() if "NAME" in entry)


def is_testing() -> bool:
    """Say whether Django's test runner, or pytest-django, is running."""
    return hasattr(mail, "outbox")


def has_test_file(alias: str) -> bool:
    """Say whether the test runner has replaced a database by another file, not by one in memory or not at all."""
    connection = connections[alias]
    name = str(connection.settings_dict["NAME"])
    return connection.vendor == "sqlite" and not connection.is_in_memory_db() and name != at_start.get(alias)


def file_beside(file: Path) -> Path:
    """Name the file that a process uses in place of another, the same one each time; it is deleted when the process ends."""
    return _folder(os.getpid(), file) / f"test_{file.name}"


@cache
def _folder(_pid: int, _file: Path) -> Path:
    folder = Path(mkdtemp(prefix="gpuqueue-tests-"))
    # Unlike atexit, it also runs in the processes of multiprocessing, and not in those forked from this one.
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=0)
    return folder


def begin_anew(store: Store) -> None:
    """Empty a file of `file_beside` if another test has started since it was last used; a forked process leaves it alone.

    Each Django test starts with another outbox, and pytest names its tests in the environment.
    """
    outbox, name = getattr(mail, "outbox", None), os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    with _beginning:
        last = _last.setdefault((os.getpid(), store.name), (outbox, name))
        if last[0] is not outbox or last[1] != name:
            store.upkeep.empty()
            _last[os.getpid(), store.name] = outbox, name


_beginning = threading.Lock()
_last: dict[tuple[int, str], tuple[Any, str]] = {}
