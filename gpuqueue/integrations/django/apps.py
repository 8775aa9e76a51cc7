"""Owns the Django app: its label, and what is connected when Django is ready; reads no queue."""

from __future__ import annotations

from django.apps import AppConfig


class GPUQueueConfig(AppConfig):
    """The app `gpuqueue`."""

    name = "gpuqueue.integrations.django"
    label = "gpuqueue"
    verbose_name = "gpuqueue"
    default = True

    def ready(self) -> None:
        from gpuqueue.integrations.django import holding

        holding.watch()
