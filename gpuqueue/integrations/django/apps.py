"""Defines the Django app: its label, and what it connects when Django is ready; reads no queue."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.db.models.signals import post_migrate


class GPUQueueConfig(AppConfig):
    """The app `gpuqueue`."""

    name = "gpuqueue.integrations.django"
    label = "gpuqueue"
    verbose_name = "gpuqueue"
    default = True

    def ready(self) -> None:
        from gpuqueue.integrations.django import checks, holding
        from gpuqueue.integrations.django.installed import has_tasks

        holding.watch()
        register(checks.check)
        if has_tasks():
            from gpuqueue.integrations.django import temporary
            from gpuqueue.integrations.django.upgrading import after_migrate

            temporary.note_databases()
            post_migrate.connect(after_migrate, sender=self, dispatch_uid="gpuqueue")
