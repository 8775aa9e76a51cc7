"""Owns whether what the tasks need is installed: tasks in Django, and gpuqueue's app; reads no queue."""

from __future__ import annotations

import importlib.util

import django
from django.apps import apps
from django.core import checks

APP = __name__.rpartition(".")[0]  # Django knows an app by the name of its folder
NO_TASKS = f"Django {django.get_version()} has no tasks, and the backport is not installed."
INSTALL = "pip install django-tasks, and add 'django_tasks' to INSTALLED_APPS."


def has_tasks() -> bool:
    """Say whether there are tasks, without importing the backport, which reads the settings."""
    return django.VERSION >= (6, 0) or importlib.util.find_spec("django_tasks") is not None


def check_installed() -> list[checks.CheckMessage]:
    """Check, for a backend whose app may not be installed, that it is."""
    if apps.is_installed(APP):
        return []
    return [
        checks.Error(
            "TASKS uses gpuqueue, and its app is not installed: there is no manage.py gpuqueue_worker.",
            hint=f"Add {APP!r} to INSTALLED_APPS.",
            id="gpuqueue.E004",
        )
    ]
