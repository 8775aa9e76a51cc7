"""Orders the jobs waiting for a device; drops and places none."""

from __future__ import annotations

from collections.abc import Sequence

from gpuqueue.contract.hookspecs import OrderCandidatesDetails, hookimpl
from gpuqueue.domain.job import Job
from gpuqueue.domain.models import full_name


class Ordering:
    """Priority descending; then jobs with a model that a device has loaded; then scheduled_at and id; over all queues.

    Once a device has loaded no other model for `affinity_s`, its models are no longer preferred. A job for another model
    therefore waits at most that long past its turn.
    """

    @hookimpl
    def order_candidates(self, details: OrderCandidatesDetails) -> Sequence[Job]:
        view = details.view
        preferred = set()
        for device in view.devices.values():
            served_s = 0.0 if device.model_since is None else (view.now - device.model_since).total_seconds()
            if served_s < device.settings.affinity_s:
                # A reservation's model counts too: a loaded model is only recorded at the first clean-up after its load.
                loaded = {item.model for item in device.residents} | {item.model for item in device.reservations}
                preferred |= {full_name(model) for model in loaded if model}
        return sorted(
            details.candidates,
            key=lambda job: (-job.priority, full_name(job.model) not in preferred, job.scheduled_at, job.id),
        )
