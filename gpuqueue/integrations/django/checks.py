"""Checks Django's settings for traps that lose jobs or cost seconds; changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from gpuqueue.domain.errors import GPUQueueError
from gpuqueue.integrations.django.installed import INSTALL, NO_TASKS, has_tasks

ENGINE = "gpuqueue.integrations.django.sqlite3"
LEAST_TIMEOUT_S = 5.0


def check(app_configs: Sequence[Any] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Check the settings of every queue."""
    if not has_tasks():
        return [checks.Error(NO_TASKS, hint=INSTALL, id="gpuqueue.E001")]
    return list(_messages())


def _messages() -> Iterator[checks.CheckMessage]:
    from gpuqueue.integrations.django.lookup import backends

    for backend in backends():
        try:
            gq = backend.gq
        except (GPUQueueError, ImproperlyConfigured) as error:
            yield checks.Error(str(error), id="gpuqueue.E002")
            continue
        if gq.database_alias is not None:
            yield from _database(gq.database_alias, str(gq.database))


def _database(alias: str, file: str) -> Iterator[checks.CheckMessage]:
    given = connections.settings[alias]
    options = given.get("OPTIONS", {})
    where = f"DATABASES[{alias!r}]"
    if given["ENGINE"] != ENGINE:
        yield checks.Warning(
            f"{where} shares its file with a queue, and SQLite's own wait for the write lock is unfair while workers are busy: "
            "a request may wait for seconds, or fail with 'database is locked'.",
            hint=f'Set "ENGINE": "{ENGINE}", Django\'s backend with a fair wait.',
            id="gpuqueue.W001",
        )
        if str(options.get("transaction_mode", "")).upper() not in ("IMMEDIATE", "EXCLUSIVE"):
            yield checks.Warning(
                f"{where} uses DEFERRED transactions: one that reads and then writes fails with 'database is locked' if a worker "
                "wrote in between, whatever the timeout.",
                hint='Set "OPTIONS": {"transaction_mode": "IMMEDIATE"}, or use the ENGINE of gpuqueue.W001.',
                id="gpuqueue.W002",
            )
    if float(options.get("timeout", LEAST_TIMEOUT_S)) < LEAST_TIMEOUT_S:
        yield checks.Warning(
            f"{where} waits only {options['timeout']} s for the write lock.",
            hint=f'Set "OPTIONS": {{"timeout": {LEAST_TIMEOUT_S:g}}} or more.',
            id="gpuqueue.W003",
        )
    mode = re.search(r"journal_mode\s*=\s*['\"]?(\w+)", str(options.get("init_command", "")), flags=re.I)
    if mode is not None and mode[1].upper() != "WAL":
        yield checks.Error(
            f"{where} switches {file} to journal_mode {mode[1].upper()}, but a queue needs a write-ahead log.",
            hint='Set "init_command": "PRAGMA journal_mode=WAL;", or remove it.',
            id="gpuqueue.E003",
        )
    if given.get("ATOMIC_REQUESTS"):
        yield checks.Warning(
            f"{where} sets ATOMIC_REQUESTS: each request holds the write lock from start to end, while workers and other "
            "requests wait.",
            hint="Remove it, and use transaction.atomic() around the statements that belong together.",
            id="gpuqueue.W004",
        )
