"""Sets up Django in a separate process, which a worker starts for a job, and runs the job's task there."""

from __future__ import annotations

from typing import Any

import django
from django.apps import apps

from gpuqueue.contract.current_job import current_job
from gpuqueue.executors import child

if child.is_child and not apps.ready:  # here: a process that cannot set it up is one that cannot import the task
    django.setup()  # with the settings that DJANGO_SETTINGS_MODULE names, as in the worker


def run(**arguments: Any) -> Any:
    """Run the current job's task. Raises: what the task raises."""
    from gpuqueue.integrations.django.results import import_task
    from gpuqueue.integrations.django.running import run_here

    return run_here(import_task(current_job().task).get_backend().gq, arguments)
