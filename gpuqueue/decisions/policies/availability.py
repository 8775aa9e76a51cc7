"""Holds, refuses or postpones jobs while a backend is unavailable; asks no backend itself.

Each backend has one breaker, its row in `backends`. A failed attempt or probe opens it; one that is answered closes it.
"""

from __future__ import annotations

from gpuqueue.contract.hookspecs import AttemptFailedDetails, QueueHoldDetails, hookimpl
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.endpoints import away, of_queue
from gpuqueue.domain.errors import REFUSAL, BackendUnavailable
from gpuqueue.domain.verdicts import Discard, Snooze

ANOTHER_S = 0.2


class Availability:
    """Applies a queue's `when_unavailable` while all its backends are unavailable.

    "reject" ends its jobs at once; "retry" and "wait" keep them without spending attempts.
    """

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        backends = of_queue(details.queue.backend, details.view.backends.values())
        if not backends or any(backend.available for backend in backends):
            return None
        why = "; ".join(away(backend, details.view) for backend in backends)
        if details.queue.when_unavailable == "reject":
            return Hold("unavailable", f"{REFUSAL} ({why})", refuse=True, advice="gpuqueue doctor")
        return Hold("unavailable", why, advice="gpuqueue doctor")

    @hookimpl
    def attempt_failed(self, details: AttemptFailedDetails) -> Snooze | Discard | None:
        if not isinstance(details.error, BackendUnavailable):
            return None
        if len(details.backends) > 1:
            return Snooze(ANOTHER_S)  # by then this backend's breaker is open, and the job goes to another
        if details.queue.when_unavailable == "reject":
            return Discard(REFUSAL, code="unavailable")
        return Snooze(details.queue.retry_every_s, waiting_for=details.error.backend)
