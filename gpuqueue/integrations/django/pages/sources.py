"""Owns which queues the admin pages show, and why one cannot be shown; makes no file and upgrades none that is not a queue's."""

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
TROUBLES = (GPUQueueError, ImproperlyConfigured, OSError)  # told on the page, and no error of the server


def aliases() -> list[str]:
    """Return the entries of TASKS that are gpuqueue's, the main one first, and one of those that share a file.

    Raises: ImproperlyConfigured when there is none.
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
            "no entry of TASKS has a queue of gpuqueue's: its BACKEND would be 'gpuqueue.integrations.django.Backend'"
        )
    return list(files.values())


def opened(alias: str) -> DjangoQueue:
    """Return the queue object of an entry of TASKS whose file is there. Raises: one of TROUBLES."""
    known = aliases()
    from gpuqueue.integrations.django.lookup import queue

    if alias not in known:
        raise UsageError(f"no entry {alias!r} of TASKS has a queue to show. Those that have: {', '.join(known)}")
    gq = queue(alias)
    makes = "`python manage.py migrate` makes it, and so does the first job"
    if not gq.database.exists():
        raise StoreError(f"there is no queue yet: {gq.database} does not exist. {makes}")
    if schema_version(gq.database, patience_s=PATIENCE_S) is None:
        raise StoreError(f"there is no queue yet in {gq.database}. {makes}")
    return gq


def sections(build: Callable[[DjangoQueue], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Show every queue's file by itself: what `build` says of it, or in `trouble` why it says nothing."""
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
    """Return what names the queues and jobs of a file: by their own names, and those of other files than the main one with it."""
    prefix = "" if alias == aliases()[0] else quote(alias, safe="")
    return lambda name: f"{prefix}:{name}" if prefix or ":" in str(name) else str(name)


def read_key(key: str) -> tuple[str, str]:
    """Return the entry of TASKS and the name that a key says."""
    prefix, colon, name = key.partition(":")
    if not colon:
        return aliases()[0], key
    return unquote(prefix) or aliases()[0], name
