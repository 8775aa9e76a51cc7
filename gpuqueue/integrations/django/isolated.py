"""Runs a Django task in a separate process, which a worker starts; Django is not set up in it yet."""

from __future__ import annotations

from typing import Any

import django
from django.apps import apps

from gpuqueue.contract.current_job import current_job


def run(**arguments: Any) -> Any:
    """Run the current job's task. Raises: what the task raises."""
    if not apps.ready:
        django.setup()  # with the settings that DJANGO_SETTINGS_MODULE names, as in the worker
    from gpuqueue.integrations.django.results import import_task
    from gpuqueue.integrations.django.running import run_here

    return run_here(import_task(current_job().task).get_backend().gq, arguments)
