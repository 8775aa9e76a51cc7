"""Defines Django models for queues and jobs, for names and permissions only; they have no table and no rows.

Django sends `post_migrate` only to apps with a `models` module.
"""

from __future__ import annotations

from typing import Any

from django.db import models


class NoRows(models.Manager):
    """Finds nothing and queries no database: commands that go through all models, such as `dumpdata`, reach these too."""

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
