"""Orders the jobs waiting for a device; drops and places none."""

from __future__ import annotations

from collections.abc import Sequence

from gpuqueue.contract.hookspecs import OrderCandidatesDetails, hookimpl
from gpuqueue.domain.job import Job
from gpuqueue.domain.models import full_name
from gpuqueue.domain.view import View


class Ordering:
    """Priority descending; then jobs with a model that a device has loaded; then scheduled_at and id; over all queues.

    A job is passed by others, because their model is loaded, for `affinity_s` at most. From then on it comes before them, each
    time that it waits.
    """

    @hookimpl
    def order_candidates(self, details: OrderCandidatesDetails) -> Sequence[Job]:
        view = details.view
        loaded = _preferred(view)
        longest_s = max((device.settings.affinity_s for device in view.devices.values()), default=0.0)

        def turn(job: Job) -> int:
            if job.passed_at is not None and (view.now - job.passed_at).total_seconds() >= longest_s:
                return 0
            return 1 if full_name(job.model) in loaded else 2

        return sorted(details.candidates, key=lambda job: (-job.priority, turn(job), job.scheduled_at, job.id))


def passed(job: Job, candidates: Sequence[Job]) -> int | None:
    """Return the job for another model that this one starts before although it came later, None when there is none."""
    first = min(candidates, key=lambda other: (-other.priority, other.scheduled_at, other.id))
    return None if full_name(first.model) == full_name(job.model) or first.priority != job.priority else first.id


def _preferred(view: View) -> set[str]:
    """Return the models that are loaded where `affinity_s` is not 0."""
    names = set()
    for device in view.devices.values():
        if device.settings.affinity_s > 0:
            # A reservation's model counts too: a loaded model is only recorded at the first clean-up after its load.
            loaded = {item.model for item in device.residents} | {item.model for item in device.reservations if not item.unloaded}
            names |= {full_name(model) for model in loaded if model}
    return names
