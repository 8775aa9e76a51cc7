"""Exposes gpuqueue's public names for Django, loaded at first use; importing it needs no database and no settings.

INSTALLED_APPS = ["gpuqueue.integrations.django"]
TASKS = {"default": {"BACKEND": "gpuqueue.integrations.django.Backend"}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuqueue.integrations.django.backend import Backend
    from gpuqueue.integrations.django.eager import EagerBackend
    from gpuqueue.integrations.django.gpu_task import GPUTask, task
    from gpuqueue.integrations.django.lookup import job_of, queue
    from gpuqueue.integrations.django.queues import DjangoQueue
    from gpuqueue.integrations.django.streaming import sse_response

__all__ = ["Backend", "DjangoQueue", "EagerBackend", "GPUTask", "job_of", "queue", "sse_response", "task"]

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name

    def __getattr__(name):
        # Django imports this package while its apps are not ready, and a backend only when a task asks for it.
        if name not in _LOADED_LATER:
            raise AttributeError(f"module 'gpuqueue.integrations.django' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LOADED_LATER[name]}"), name)

    _LOADED_LATER = {
        "Backend": "backend",
        "DjangoQueue": "queues",
        "EagerBackend": "eager",
        "GPUTask": "gpu_task",
        "job_of": "lookup",
        "queue": "lookup",
        "sse_response": "streaming",
        "task": "gpu_task",
    }
