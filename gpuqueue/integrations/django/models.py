"""Owns what Django knows of queues and jobs: their names and permissions; they have no table of Django's and no rows.

Django also tells only an app with this module that the databases were migrated.
"""

from __future__ import annotations

from typing import Any

from django.db import models


class NoRows(models.Manager):
    """Finds nothing and asks no database: what goes through all models, such as `dumpdata`, meets these too."""

    def get_queryset(self) -> Any:
        return super().get_queryset().none()


class Queue(models.Model):
    """A queue, for the admin site: `view` shows queues, cards and workers, `change` pauses and resumes."""

    key = models.CharField(primary_key=True, max_length=255, editable=False)
    objects = NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view", "change")

    def __str__(self) -> str:
        return str(self.key)


class Job(models.Model):
    """A job, for the admin site: `view` shows its arguments, result and log too, `change` retries and cancels."""

    key = models.CharField(primary_key=True, max_length=255, editable=False)
    objects = NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view", "change")

    def __str__(self) -> str:
        return f"job {self.key}"
