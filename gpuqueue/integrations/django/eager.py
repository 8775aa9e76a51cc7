"""Owns the backend for tests: a task runs at once, where it is enqueued; it needs no database and no worker."""

from __future__ import annotations

from typing import Any

from gpuqueue.integrations.django.gpu_task import GPUTask, check_options
from gpuqueue.integrations.django.tasks_api import ImmediateBackend, TaskResultDoesNotExist

__all__ = ["EagerBackend"]

KEPT = 1000  # results, of which the oldest are forgotten first
_results: dict[str, Any] = {}


class EagerBackend(ImmediateBackend):
    """Runs a task at once, in the calling thread and inside its transaction, and is finished when `enqueue` returns.

    It takes the tasks that `Backend` takes: `vram=` and the like are checked, `run_after` is not waited for. A failed task is
    told by its result, not raised. Results are found until a thousand others have come.
    """

    task_class = GPUTask
    supports_defer = True
    supports_get_result = True

    def validate_task(self, task: Any) -> None:
        """Refuse what cannot be enqueued. Raises: InvalidTask."""
        super().validate_task(task)
        check_options(task)

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Run a task, and return its result."""
        result = super().enqueue(task, args, kwargs)
        _results[result.id] = result
        while len(_results) > KEPT:
            _results.pop(next(iter(_results)), None)
        return result

    def get_result(self, result_id: str) -> Any:
        """Find a result. Raises: TaskResultDoesNotExist."""
        try:
            return _results[result_id]
        except KeyError:
            raise TaskResultDoesNotExist(result_id) from None
