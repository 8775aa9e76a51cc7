"""Finds the queues that the admin pages show, and why one cannot be shown; creates no file, and upgrades only a queue's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from django.core.exceptions import ImproperlyConfigured

from gpuqueue.domain.errors import GPUQueueError, StoreError, UsageError
from gpuqueue.integrations.django.installed import INSTALL, NO_TASKS, has_tasks
from gpuqueue.store.database import schema_version

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue

__all__ = ["TROUBLES", "aliases", "keys_of", "opened", "read_key", "sections"]

PATIENCE_S = 2.0  # with a file that another program has locked for itself
TROUBLES = (GPUQueueError, ImproperlyConfigured, OSError)  # shown on the page, not a server error


def aliases() -> list[str]:
    """Return gpuqueue's entries of TASKS, the main one first, and only one of those that share a file.

    Raises: ImproperlyConfigured if there is none.
    """
    if not has_tasks():
        raise ImproperlyConfigured(f"{NO_TASKS} {INSTALL}")
    from gpuqueue.integrations.django.lookup import backends
    from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS

    files: dict[Any, str] = {}
    for backend in sorted(backends(), key=lambda backend: backend.alias != DEFAULT_ALIAS):
        try:
            files.setdefault(backend.gq.database, backend.alias)
        except TROUBLES:
            files[backend.alias] = backend.alias
    if not files:
        raise ImproperlyConfigured(
            "no entry of TASKS uses gpuqueue. Set the BACKEND of one to 'gpuqueue.integrations.django.Backend'"
        )
    return list(files.values())


def opened(alias: str) -> DjangoQueue:
    """Return the queue object of an entry of TASKS whose file exists. Raises: one of TROUBLES."""
    known = aliases()
    from gpuqueue.integrations.django.lookup import queue

    if alias not in known:
        raise UsageError(f"TASKS has no gpuqueue entry {alias!r}. Entries: {', '.join(known)}")
    gq = queue(alias)
    create = "Run `python manage.py migrate`, or enqueue a job, to create it"
    if not gq.database.exists():
        raise StoreError(f"no database at {gq.database} yet. {create}")
    if schema_version(gq.database, patience_s=PATIENCE_S) is None:
        raise StoreError(f"no queue in {gq.database} yet. {create}")
    return gq


def sections(build: Callable[[DjangoQueue], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Show each queue's file separately: what `build` returns or, in `trouble`, why it failed."""
    shown = []
    for alias in aliases():
        section: dict[str, Any] = {"alias": alias}
        try:
            gq = opened(alias)
            section |= {"file": str(gq.database), **build(gq)}
        except TROUBLES as error:
            section["trouble"] = str(error)
        shown.append(section)
    return shown


def keys_of(alias: str) -> Callable[[str | int], str]:
    """Return a function that names a file's queues and jobs: by their own names, prefixed unless the file is the main one."""
    prefix = "" if alias == aliases()[0] else quote(alias, safe="")
    return lambda name: f"{prefix}:{name}" if prefix or ":" in str(name) else str(name)


def read_key(key: str) -> tuple[str, str]:
    """Return the entry of TASKS and the name in a key."""
    prefix, colon, name = key.partition(":")
    if not colon:
        return aliases()[0], key
    return unquote(prefix) or aliases()[0], name
