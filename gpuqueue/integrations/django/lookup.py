"""Finds gpuqueue's entries of TASKS: the queue object of an alias, and the job of a result; creates neither."""

from __future__ import annotations

from typing import Any

from django.db import connections

from gpuqueue.client.handle import JobHandle
from gpuqueue.domain.errors import ConfigurationError, UsageError
from gpuqueue.integrations.django import temporary
from gpuqueue.integrations.django.backend import Backend
from gpuqueue.integrations.django.queues import DjangoQueue, TemporaryQueue
from gpuqueue.integrations.django.results import read_result_id
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS, task_backends

__all__ = ["backends", "job_of", "queue", "queues"]


def queue(alias: str = DEFAULT_ALIAS) -> DjangoQueue:
    """Return the queue object of an entry of TASKS; every thread of the process gets the same one.

    Raises: ConfigurationError.
    """
    backend = task_backends[alias]
    if not isinstance(backend, Backend):
        raise ConfigurationError(f"TASKS[{alias!r}] is a {type(backend).__name__}, not a gpuqueue backend")
    return backend.gq


def job_of(result: Any) -> JobHandle:
    """Return the job behind a task's result, for its output, its place in the queue, or to cancel it. Raises: UnknownJob."""
    named = read_result_id(result.id)
    if named is None:
        raise UsageError(f"{result.id!r} is not a gpuqueue result; the backend {result.backend!r} has no job for it")
    job_id, enqueued_us = named
    return JobHandle(queue(result.backend), job_id, None, enqueued_us)


def backends() -> list[Backend]:
    """Return gpuqueue's backends of TASKS."""
    return [backend for backend in map(task_backends.__getitem__, task_backends.settings) if isinstance(backend, Backend)]


def queues() -> list[DjangoQueue]:
    """Return the queue objects of gpuqueue's entries of TASKS, except temporary ones. Raises: ConfigurationError."""
    found = [backend.gq for backend in backends() if temporary.is_testing() or not _in_memory(backend.options.get("database"))]
    return [gq for gq in found if not isinstance(gq, TemporaryQueue)]


def _in_memory(database_alias: str | None) -> bool:
    """Say whether an entry of DATABASES is in memory, as in most tests."""
    if database_alias is None or database_alias not in connections.settings:
        return False
    connection = connections[database_alias]
    return bool(connection.vendor == "sqlite" and connection.is_in_memory_db())
