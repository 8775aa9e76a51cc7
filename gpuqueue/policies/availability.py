"""Owns what happens while a backend is away: which queues are held, refused or postponed; asks no backend itself.

Each backend has one breaker, its row in `backends`, opened by a failed attempt or probe and closed by an answered one.
"""

from __future__ import annotations

from gpuqueue.domain import Backend, Hold, View
from gpuqueue.errors import BackendUnavailable
from gpuqueue.hookspecs import AttemptFailedDetails, QueueHoldDetails, hookimpl
from gpuqueue.moments import clock
from gpuqueue.verdicts import Discard, Snooze

REFUSAL = "AI service temporarily unavailable"


def _asked_again(backend: Backend, view: View) -> str:
    # No `until`: nobody knows when it is back.
    return "" if backend.retry_at is None else f"; it is asked again at {clock(backend.retry_at, now=view.now)}"


class Availability:
    """Applies a queue's `when_unavailable`: reject ends its jobs at once, retry and wait keep them without spending attempts."""

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        backend = details.view.backends.get(details.queue.backend)
        if backend is None or backend.available:
            return None
        if details.queue.when_unavailable == "reject":
            return Hold("unavailable", f"{REFUSAL} ({backend.error}{_asked_again(backend, details.view)})", refuse=True)
        return Hold("unavailable", f"{backend.name} is away: {backend.error}{_asked_again(backend, details.view)}")

    @hookimpl
    def attempt_failed(self, details: AttemptFailedDetails) -> Snooze | Discard | None:
        if not isinstance(details.error, BackendUnavailable):
            return None
        if details.queue.when_unavailable == "reject":
            return Discard(REFUSAL, code="unavailable")
        return Snooze(details.queue.retry_every_s, waiting_for=details.error.backend)
