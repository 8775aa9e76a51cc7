"""Checks that Django's tasks API and gpuqueue's app are installed; reads no queue."""

from __future__ import annotations

import importlib.util

import django
from django.apps import apps
from django.core import checks

APP = __name__.rpartition(".")[0]  # Django knows an app by the name of its folder
NO_TASKS = f"Django {django.get_version()} has no tasks, and the backport is not installed."
INSTALL = "Run `pip install django-tasks`, and add 'django_tasks' to INSTALLED_APPS."


def has_tasks() -> bool:
    """Say whether a tasks API is installed, without importing the backport, which reads the settings."""
    return django.VERSION >= (6, 0) or importlib.util.find_spec("django_tasks") is not None


def check_installed() -> list[checks.CheckMessage]:
    """Check that gpuqueue's app is installed, for a backend that may be used without it."""
    if apps.is_installed(APP):
        return []
    return [
        checks.Error(
            "TASKS uses gpuqueue, but its app is not installed, so `manage.py gpuqueue_worker` does not exist.",
            hint=f"Add {APP!r} to INSTALLED_APPS.",
            id="gpuqueue.E004",
        )
    ]
