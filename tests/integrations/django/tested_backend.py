"""Owns the backend that Django's own tests are run against: gpuqueue's, with what they ask of the dummy to look into it."""

from __future__ import annotations

from typing import Any

from gpuqueue.integrations.django.backend import Backend
from gpuqueue.integrations.django.results import result_id


class TestedBackend(Backend):
    """The backend; `results` and `clear` are those of the dummy."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._before: int | None = None

    def clear(self) -> None:
        """Forget, for `results`, what was enqueued so far."""
        self._before = max((job.id for job in self.gq.jobs(limit=1)), default=0)

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        if self._before is None:
            self.clear()
        return super().enqueue(task, args, kwargs)

    @property
    def results(self) -> list[Any]:
        """The results of all that was enqueued since, read from the queue."""
        jobs = [job.record for job in self.gq.jobs(limit=1000) if job.id > (self._before or 0)]
        return [self.get_result(result_id(job.id, job.enqueued_at)) for job in reversed(jobs)]
